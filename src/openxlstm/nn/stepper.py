"""A recurrent layer that reads one step at a time, as fast as a CPU can.

`XLSTM.forward` does the same with a small operation after another, which of a single step take ten
times the arithmetic. A stepper runs a whole step in one call. It owns the state that it overwrites;
its weights are the layer's own, so that it says what the layer was last trained to say.

B batch · I input_size · H hidden_size
"""

import torch
from torch import Tensor, nn

from openxlstm.nn.norm import EPS
from openxlstm.nn.stack import Stack
from openxlstm.nn.step_plan import layer_plans, norm_weight, own, refuses
from openxlstm.ops.native_step import StepPlan, step
from openxlstm.states import StackState, XLSTMState, map_state


class Stepper:
    """Steps of `projection → stack` for B samples, without gradients and dropout.

    Args:
        in_proj: from I features to H; None where they are the same.
        stack: the blocks.
        state: what each sample has read so far. It is copied.
    """

    def __init__(self, in_proj: nn.Linear | None, stack: Stack, state: StackState) -> None:
        self._in_proj, self._stack = in_proj, stack
        self._state: StackState = own(state)
        self._size = next(len(part) for part in state.blocks[0].cell)
        weight = next(stack.parameters())
        D = stack.config.embedding_dim
        self._features = D if in_proj is None else in_proj.in_features
        self._y = torch.empty(self._size, D, dtype=weight.dtype, device=weight.device)
        self._plan = self._packed = None
        if refuses(stack, in_proj) is None:
            self._plan = self._make_plan()
            self._packed = self._plan.pack()

    def _make_plan(self) -> StepPlan:
        proj, config = self._in_proj, self._stack.config
        return StepPlan(
            batch_size=self._size,
            dim=config.embedding_dim,
            num_heads=config.num_heads,
            norm_eps=EPS,
            tokens=None,
            positions=None,
            position=None,
            num_features=self._features,
            proj=(None, None) if proj is None else (proj.weight, proj.bias),
            norm=norm_weight(self._stack.norm),
            head=None,
            layers=layer_plans(self._stack, self._state),
            out=self._y,
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
        y = self._y
        if x.shape != (self._size, self._features) or x.dtype != y.dtype or x.device != y.device:
            raise ValueError(
                f"x must be ({self._size}, {self._features}) {y.dtype} on {y.device}, not "
                f"{tuple(x.shape)} {x.dtype} on {x.device}"
            )
        if reset is not None:
            self._empty(reset)
        if self._packed is not None:
            step(self._packed, x.contiguous())
            return y.clone()
        x = x if self._in_proj is None else self._in_proj(x)
        out, self._state = self._stack(x[:, None], self._state)
        return out[:, 0]

    @property
    def state(self) -> XLSTMState:
        """What has been read so far, as a value of its own, of the kind that the layer returns."""
        return XLSTMState(map_state(Tensor.clone, self._state), None)

    def _empty(self, samples: Tensor) -> None:
        if samples.shape != (self._size,) or samples.dtype != torch.bool:
            raise ValueError(
                f"reset must be ({self._size},) torch.bool, not {tuple(samples.shape)} "
                f"{samples.dtype}"
            )
        map_state(lambda part: _empty_rows(part, samples), self._state)


def _empty_rows(part: Tensor, samples: Tensor) -> Tensor:
    return part.masked_fill_(samples.view(-1, *(1,) * (part.dim() - 1)), 0.0)
