"""Single steps of an sLSTM or an mLSTM, with the interface of `torch.nn.LSTMCell`.

A cell computes one step of a layer of `openxlstm.XLSTM(…, block="bare")`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from openxlstm.nn.bare import LAYERS
from openxlstm.nn.check import check_finite, check_input, check_state
from openxlstm.nn.fusion import any_weight
from openxlstm.nn.rnn import input_projection, stack_config
from openxlstm.states import LayerState, MLSTMState, SLSTMState


class _Cell(nn.Module):
    """Base of both cells: projection, layer and checks."""

    def __init__(
        self, kind: str, input_size: int, hidden_size: int, project_input: bool | None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        device, dtype = options.pop("device"), options.pop("dtype")
        config = stack_config(hidden_size, None, kind, block="bare", **options)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.num_heads = config.num_heads
        self.in_proj = input_projection(input_size, hidden_size, project_input)
        self.layer = LAYERS[kind](config)
        self.to(device=device, dtype=dtype)

    def initial_state(self, batch_size: int) -> Any:
        """The empty state of `batch_size` samples; None in its place means the same."""
        return self.layer.initial_state(batch_size).cell

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, num_heads={self.num_heads}"

    def _step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        parameter = any_weight(self)
        x = check_input("x", x, self.input_size, "(B, I) or (I,)", (1, 2), parameter)
        check_finite("x", x)
        is_batch = x.dim() == 2
        x = x[:, None] if is_batch else x[None, None]  # (B, 1, I)
        if state is not None:
            check_state(state, self.initial_state(0), x.shape[0])
        if self.in_proj is not None:
            x = self.in_proj(x).to(parameter.dtype)  # autocast would change the dtype
        h, after = self.layer(x, None if state is None else LayerState(None, state))
        return (h[:, 0] if is_batch else h[0, 0]), after.cell


class SLSTMCell(_Cell):
    """One step of an sLSTM with memory mixing inside its heads (arXiv:2405.04517, eqs. 8-17).

        cell = openxlstm.SLSTMCell(input_size=8, hidden_size=128)
        h, state = cell(x, state)

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of h.
        num_heads: heads, a divisor of hidden_size.
        project_input: whether to put a dense projection before the block-diagonal input weights, so
            that every head reads all of x; None to do so if input_size is not hidden_size.
        forget_gate: "sigmoid" or "exp".
        recurrent_init: initialization of the recurrent weights: "zeros", as in the paper, or
            "uniform" within ±1/√H, as in `torch.nn.LSTMCell`.
        device, dtype: of the parameters.

    Raises:
        ValueError: on sizes that do not fit together.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_heads: int = 4,
        *,
        project_input: bool | None = None,
        forget_gate: str = "sigmoid",
        recurrent_init: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            "s", input_size, hidden_size, project_input, num_heads=num_heads,
            forget_gate=forget_gate, recurrent_init=recurrent_init,
            device=device, dtype=dtype,
        )  # fmt: skip

    def forward(self, x: Tensor, state: SLSTMState | None = None) -> tuple[Tensor, SLSTMState]:
        """x (B, I), or (I,) of a single sample → h (B, H), or (H,), and the state after it.

        Args:
            x: the step's input.
            state: as the step before returned it, each part (B, num_heads, H/num_heads), B = 1 for
                a single sample; None is empty.

        Raises:
            ValueError: if x or state have another shape, dtype or device, or x is not finite.
        """
        return self._step(x, state)


class MLSTMCell(_Cell):
    """One step of an mLSTM (arXiv:2405.04517, eqs. 19-27).

        cell = openxlstm.MLSTMCell(input_size=8, hidden_size=128)
        h, state = cell(x, state)

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of h, and of the queries, keys and values of all heads.
        num_heads: heads, a divisor of hidden_size.
        bias: whether query, key, value and output gate have biases; input and forget gate always
            do.
        project_input: whether to put a dense projection before them; None to do so if input_size is
            not hidden_size.
        device, dtype: of the parameters.

    Raises:
        ValueError: on sizes that do not fit together.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_heads: int = 4,
        *,
        bias: bool = False,
        project_input: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            "m", input_size, hidden_size, project_input, num_heads=num_heads, bias=bias,
            device=device, dtype=dtype,
        )  # fmt: skip

    def forward(self, x: Tensor, state: MLSTMState | None = None) -> tuple[Tensor, MLSTMState]:
        """x (B, I), or (I,) of a single sample → h (B, H), or (H,), and the state after it.

        Args:
            x: the step's input.
            state: as the step before returned it, C (B, num_heads, DH, DH), n (B, num_heads, DH)
                and m (B, num_heads) with DH = H/num_heads, B = 1 for a single sample; None is
                empty.

        Raises:
            ValueError: if x or state have another shape, dtype or device, or x is not finite.
        """
        return self._step(x, state)
