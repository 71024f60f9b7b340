"""A recurrent layer that reads one step at a time, as fast as a CPU can.

`XLSTM.forward` does the same with a small operation after another, which of a single step take ten
times the arithmetic. A stepper runs a whole step in one call. It owns the state that it overwrites;
its weights are the layer's own, so that it says what the layer was last trained to say.

B batch · I input_size · H hidden_size
"""

import torch
from torch import Tensor, nn

from openxlstm.nn.stack import Stack
from openxlstm.nn.step_plan import (
    in_dtypes,
    layer_plans,
    norm_options,
    norm_weights,
    own,
    refuses,
    wide,
)
from openxlstm.ops.native.step import ModelStepWeights, StepPlan, step
from openxlstm.states import StackState, XLSTMState, map_state, tensors


class Stepper:
    """Steps of `projection → stack` for B samples, without gradients and dropout.

    Args:
        in_proj: from I features to H; None where they are the same.
        stack: the blocks.
        state: what each sample has read so far. It is copied.
    """

    def __init__(self, in_proj: nn.Linear | None, stack: Stack, state: StackState) -> None:
        self._in_proj, self._stack = in_proj, stack
        self._size = next(len(part) for part in state.blocks[0].cell)
        weight = next(stack.parameters())
        D = stack.config.embedding_dim
        self._features = D if in_proj is None else in_proj.in_features
        self._dtype, self._device = weight.dtype, weight.device
        self._y = torch.empty(self._size, D, dtype=torch.float32, device="cpu")
        self._dtypes = [part.dtype for part in tensors(state)]
        self._plan = self._packed = None
        native = refuses(stack, in_proj) is None
        self._state: StackState = own(state, widened=native)
        if native:
            self._plan = self._make_plan()
            self._packed = self._plan.pack()

    def _make_plan(self) -> StepPlan:
        proj, config = self._in_proj, self._stack.config
        return StepPlan(
            batch_size=self._size,
            dim=config.embedding_dim,
            num_heads=config.num_heads,
            weights=ModelStepWeights(
                proj=None if proj is None else proj.weight,
                proj_bias=None if proj is None else wide(proj.bias),
                **norm_weights(self._stack),
            ),
            num_features=self._features,
            layers=layer_plans(self._stack, self._state),
            out=self._y,
            dtype=self._dtype,
            **norm_options(self._stack),
        )

    @torch.no_grad()
    def step(self, x: Tensor, reset: Tensor | None = None) -> Tensor:
        """Reads one step: x (B, I) → y (B, H).

        Args:
            x: the features, in the dtype of the weights and where they are.
            reset: (B,) bool; the state of a sample is emptied before the step where it is true.

        Raises:
            ValueError: if x or reset have another shape, dtype or device.
        """
        kind = self._dtype, self._device
        if x.shape != (self._size, self._features) or (x.dtype, x.device) != kind:
            raise ValueError(
                f"x must be ({self._size}, {self._features}) {self._dtype} on {self._device}, not "
                f"{tuple(x.shape)} {x.dtype} on {x.device}"
            )
        if reset is not None:
            self._empty(reset)
        if self._packed is not None:
            step(self._packed, x.float().contiguous())
            return self._y.to(self._dtype, copy=True)
        x = x if self._in_proj is None else self._in_proj(x)
        out, self._state = self._stack(x[:, None], self._state)
        return out[:, 0]

    @property
    def state(self) -> XLSTMState:
        """What has been read so far, as a value of its own, of the kind that the layer returns."""
        return XLSTMState(in_dtypes(self._state, self._dtypes), None)

    def _empty(self, samples: Tensor) -> None:
        if samples.shape != (self._size,) or samples.dtype != torch.bool:
            raise ValueError(
                f"reset must be ({self._size},) torch.bool, not {tuple(samples.shape)} "
                f"{samples.dtype}"
            )
        map_state(lambda part: _empty_rows(part, samples), self._state)


def _empty_rows(part: Tensor, samples: Tensor) -> Tensor:
    return part.masked_fill_(samples.view(-1, *(1,) * (part.dim() - 1)), 0.0)
