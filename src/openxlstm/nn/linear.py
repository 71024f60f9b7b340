"""Linear maps beside `torch.nn.Linear`: block-diagonal ones, and those of the heads' gates."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openxlstm.nn.init import small_init_
from openxlstm.ops.plain.blockwise import blockwise


class HeadwiseLinear(nn.Module):
    """y[h] = W[h] x[h] for contiguous groups of channels; x (…, H·in) → y (…, H·out).

    Args:
        dim: H·in, and H·out.
        num_blocks: H, how many groups.
        model_dim: width of the model, for the initialisation.
        bias: whether to add one.
    """

    def __init__(self, dim: int, num_blocks: int, *, model_dim: int, bias: bool = False) -> None:
        super().__init__()
        size = dim // num_blocks
        self.weight = nn.Parameter(small_init_(torch.empty(num_blocks, size, size), model_dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = blockwise(x, self.weight)
        return y if self.bias is None else y + self.bias


def gate_preactivations(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Pre-activations of the gates of an mLSTM's heads, one number per head and step.

    They are computed with autocast off, since an exponential gate needs more than 8 bits.

    Args:
        x: (B, T, E).
        weight, bias: (2, NH, E) and (2, NH), gates in the order i, f.

    Returns:
        (B, 2·NH, T), the input gates of all heads first.
    """
    device = x.device.type
    with torch.autocast(device, enabled=False) if device in ("cpu", "cuda") else nullcontext():
        return F.linear(x, weight.flatten(0, 1), bias.flatten()).mT
