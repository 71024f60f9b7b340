"""The state of a batch as a cache of transformers, which `generate` passes from step to step."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from openxlstm.lm.model import LanguageModel
from openxlstm.nn.decoder import Decoder
from openxlstm.states import ModelState, detach, select


class OpenXLSTMCache(Cache):
    """The state of a batch, in the place of a Transformer's key-value cache.

    A call with a cache stores the new state in it. The state itself is a value: keep `cache.state`,
    or a copy of the cache, to return to it.

    Args:
        state: the state of each sequence; None is empty.
        seen: number of columns read, padding included; None for the length of the longest sequence.
    """

    def __init__(self, state: ModelState | None = None, seen: int | None = None) -> None:
        super().__init__(layers=[])
        if seen is None:
            seen = 0 if state is None else int(state.position.max())
        self.replace(state, seen)

    @property
    def state(self) -> ModelState | None:
        """The current state, as a value."""
        return self._state if self._decoder is None else self._decoder.state

    def replace(self, state: ModelState | None, seen: int) -> None:
        """Replaces the state."""
        self._state, self._seen = state, seen
        self._size = 0 if state is None else len(state.position)
        self._decoder: Decoder | None = None
        self._decoder_of: Any = None

    def detach(self) -> "OpenXLSTMCache":
        """The same cache, detached from the autograd graph, for truncated backpropagation."""
        return OpenXLSTMCache(detach(self.state), self._seen)

    def step(self, model: LanguageModel, ids: Tensor) -> Tensor:
        """Reads one token per sequence, ids (B,), with the model's decoder: logits (B, V)."""
        if self._decoder is None or self._decoder_of is not model:
            state = self.state
            assert state is not None
            self._decoder, self._decoder_of = model.decoder(state), model
        logits = self._decoder.step(ids).clone()
        self._state = None  # the decoder has it
        self._seen += 1
        return logits

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies the state only, because a decoder points to memory."""
        return OpenXLSTMCache, (self.state, self._seen)

    # The interface of a cache in transformers.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def __len__(self) -> int:
        """Number of blocks."""
        state = self.state
        return 0 if state is None else len(state.stack.blocks)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"OpenXLSTMCache(seen={self._seen})"

    @property
    def batch_size(self) -> int:
        """Number of sequences."""
        return self._size

    @property
    def is_initialized(self) -> bool:
        return self._seen > 0

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_croppable(self) -> bool:
        return False

    def reset(self) -> None:
        self.replace(None, 0)

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise ValueError("a state cannot forget its last tokens; keep a copy of the cache")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replaces each sequence i by sequence beam_idx[i], for beam search."""
        rows = beam_idx.tolist()
        if rows != list(range(self._size)):
            self._pick(rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._pick(torch.arange(self._size)[indices.cpu()].tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each sequence `repeats` times, in adjacent rows."""
        self._pick([row for row in range(self._size) for _ in range(repeats)])

    def _pick(self, rows: list[int]) -> None:
        if self._state is None and self._decoder is None:
            return
        if self._decoder is not None and len(rows) == self._size:
            self._decoder.reorder(rows)
        elif self._decoder is not None:
            self._decoder = self._decoder.select(rows)
        else:
            self._state = select(self._state, rows)
        self._size = len(rows)
