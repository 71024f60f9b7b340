"""What a batch of sequences has read, as `generate` of transformers passes it from step to step."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from openxlstm.lm.model import LanguageModel
from openxlstm.nn.decoder import Decoder
from openxlstm.states import ModelState, detach, select


class OpenXLSTMCache(Cache):
    """The state of a batch, in place of the keys and values of a Transformer.

    As with those, a call that is given one leaves the new state in it. The state itself is a value:
    keep `cache.state`, or a copy of the cache, to come back to it.

    Args:
        state: of each sequence; None is empty.
        seen: columns of the batch that were read, padding included; None for as many as the
            longest sequence has tokens.
    """

    def __init__(self, state: ModelState | None = None, seen: int | None = None) -> None:
        super().__init__(layers=[])
        if seen is None:
            seen = 0 if state is None else int(state.position.max())
        self.replace(state, seen)

    @property
    def state(self) -> ModelState | None:
        """What was read, as a value of its own."""
        return self._state if self._decoder is None else self._decoder.state

    def replace(self, state: ModelState | None, seen: int) -> None:
        """Holds another state from now on."""
        self._state, self._seen = state, seen
        self._size = 0 if state is None else len(state.position)
        self._decoder: Decoder | None = None
        self._decoder_of: Any = None

    def detach(self) -> "OpenXLSTMCache":
        """The same, cut from the autograd graph: where truncated backpropagation stops."""
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
        """Copies hold the state alone: a decoder points to memory."""
        return OpenXLSTMCache, (self.state, self._seen)

    # What transformers asks of a cache.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def __len__(self) -> int:
        """Blocks that it has a state of."""
        state = self.state
        return 0 if state is None else len(state.stack.blocks)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"OpenXLSTMCache(seen={self._seen})"

    @property
    def batch_size(self) -> int:
        """Sequences that it has a state of."""
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
        """Sequence i becomes what sequence beam_idx[i] was, as beams do that outlive others."""
        rows = beam_idx.tolist()
        if rows != list(range(self._size)):
            self._pick(rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._pick(torch.arange(self._size)[indices.cpu()].tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence so many times, next to one another."""
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
