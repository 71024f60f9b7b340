"""A recurrent layer that reads one step at a time, as fast as a CPU can.

`XLSTM.forward` does the same as a row of small operations, whose overhead for a single step is ten
times the arithmetic. A stepper runs a whole step in one call.

B batch · I input_size · H hidden_size
"""

from typing import Any

import torch
from torch import Tensor

from openxlstm.nn.fusion import any_weight
from openxlstm.nn.native_steps import NativeSteps
from openxlstm.states import StackState, XLSTMState, map_state


class Stepper(NativeSteps[StackState]):
    """Steps of an `XLSTM` for B samples, without gradients and dropout.

    It owns its state and overwrites it. The weights are the layer's own: after training, loading or
    moving the layer, or replacing or hooking a part of it, the next step uses the change.

    Args:
        layer: the layer, in one direction.
        state: the initial state of each sample. It is copied.
    """

    _model: Any

    def step(self, x: Tensor, reset: Tensor | None = None) -> Tensor:
        """Reads one step: x (B, I) → y (B, H).

        Args:
            x: the features, in the dtype and on the device of the weights.
            reset: (B,) bool; the state of a sample is emptied before the step where it is true.

        Raises:
            ValueError: if x or reset have another shape, dtype or device.
        """
        self._prepare_if_changed()
        if x.shape != self._shape or x.dtype != self._dtype or x.device != self._device:
            raise ValueError(
                f"x must be {self._shape} {self._dtype} on {self._device}, not "
                f"{tuple(x.shape)} {x.dtype} on {x.device}"
            )
        if reset is not None:
            self._empty(reset)
        if self._reason is not None:
            return self._called_step(x)
        y = self._native_step(x.float(), "x")
        return y.to(self._dtype, copy=True)

    @property
    def state(self) -> XLSTMState:
        """A copy of the current state, of the type that the layer returns."""
        return XLSTMState(self._state_copy(), None)

    def _prepare(self) -> None:
        super()._prepare()
        weight = any_weight(self._model)
        self._shape = self._batch_size, self._model.input_size
        self._dtype, self._device = weight.dtype, weight.device

    def _initial_state(self, batch_size: int) -> StackState:
        return self._model.stack.initial_state(batch_size)

    def _forward(self, x: Tensor, state: StackState) -> tuple[Tensor, StackState]:
        layer = self._model
        x = x[:, None] if layer.batch_first else x[None]
        y, after = layer(x, XLSTMState(state, None))
        return (y[:, 0] if layer.batch_first else y[0]), after.forward

    def _empty(self, samples: Tensor) -> None:
        if samples.shape != (self._batch_size,) or samples.dtype != torch.bool:
            raise ValueError(
                f"reset must be ({self._batch_size},) torch.bool, not {tuple(samples.shape)} "
                f"{samples.dtype}"
            )
        with torch.no_grad():
            map_state(lambda part: _empty_rows(part, samples), self._state)


def _empty_rows(part: Tensor, samples: Tensor) -> Tensor:
    return part.masked_fill_(samples.view(-1, *(1,) * (part.dim() - 1)), 0.0)
