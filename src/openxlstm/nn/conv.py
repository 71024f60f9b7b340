"""The causal convolution before a cell."""

import torch
from torch import Tensor, nn

from openxlstm import ops
from openxlstm.nn.fusion import any_weight
from openxlstm.nn.init import uniform_init_
from openxlstm.states import ConvState


class CausalConv1d(nn.Module):
    """SiLU of each channel convolved over the last `kernel_size` steps; x, y (B, T, D)."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(uniform_init_(torch.empty(dim, kernel_size), kernel_size))
        self.bias = nn.Parameter(uniform_init_(torch.empty(dim), kernel_size))

    def initial_state(self, batch_size: int) -> ConvState:
        (dim, kernel_size), weight = self.weight.shape, any_weight(self)
        return ConvState(
            torch.zeros(batch_size, kernel_size - 1, dim, dtype=weight.dtype, device=weight.device)
        )

    def forward(
        self, x: Tensor, state: ConvState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, ConvState]:
        return ops.causal_conv(x, self.weight, self.bias, state, reset=reset, activation="silu")


def weights_of(conv: CausalConv1d | None) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of a convolution, or two Nones."""
    return (None, None) if conv is None else (conv.weight, conv.bias)
