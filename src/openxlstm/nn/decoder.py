"""Decoding: a language model that reads one token at a time, in one native call per token.

`forward` runs many small operations, whose overhead for a single token is more than the arithmetic.
A decoder runs a whole step in one call. It reads bfloat16 matrices directly and computes in
float32, the dtype of its states.

B batch · V vocabulary
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from openxlstm.nn.native_steps import NativeSteps
from openxlstm.states import ModelState, map_state, select, tensors


class Decoder(NativeSteps[ModelState]):
    """Steps of a language model for B sequences, without gradients and dropout.

    It owns its state and overwrites it. The weights are the model's own: after training, loading or
    moving the model, or replacing or hooking a part of it, the next step uses the change.

    Args:
        model: an `openxlstm.LanguageModel`.
        state: the initial state of each sequence. It is copied.

    Raises:
        ValueError: if the state does not fit the model.
    """

    _model: Any

    def __init__(self, model: Any, state: ModelState) -> None:
        _check_state(state, model.initial_state(len(state.position)))
        super().__init__(model, state)

    def step(self, ids: Tensor) -> Tensor:
        """Reads one token per sequence: ids (B,) int64 → logits (B, V), good until the next step.

        Raises:
            ValueError: if ids are not (B,) int64.
            IndexError: if one of them is not a token of the model; nothing has changed then.
        """
        self._prepare_if_changed()
        if self._reason is None:
            return self._native_step(ids, "ids")
        if ids.shape != (self._batch_size,) or ids.dtype != torch.long:
            raise ValueError(
                f"ids must be ({self._batch_size},) torch.int64, not {tuple(ids.shape)} {ids.dtype}"
            )
        if bool(((ids < 0) | (ids >= self._model.config.vocab_size)).any()):
            raise IndexError("a token is not one of the model's")
        return self._called_step(ids)

    @property
    def state(self) -> ModelState:
        """A copy of the current state, in the dtypes of the model's states."""
        return self._state_copy()

    def select(self, rows: Sequence[int]) -> "Decoder":
        """A decoder of some of the sequences, by index, in the given order."""
        return Decoder(self._model, select(self._state, rows))

    def reorder(self, rows: Sequence[int]) -> None:
        """Replaces each sequence i by sequence rows[i]; their number stays the same."""
        if len(rows) != self._batch_size:
            raise ValueError(f"rows must be {self._batch_size} indices, not {len(rows)}")
        with torch.no_grad():
            map_state(Tensor.copy_, self._state, select(self._state, rows))

    def _initial_state(self, batch_size: int) -> ModelState:
        return self._model.initial_state(batch_size)

    def _forward(self, x: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        logits, state = self._model(x[:, None], state)
        return logits[:, -1], state


def _check_state(state: ModelState, expected: ModelState) -> None:
    parts, likes = tensors(state.stack), tensors(expected.stack)
    if [x.shape for x in parts] != [x.shape for x in likes]:
        raise ValueError("the state does not fit the model: the shapes differ")
