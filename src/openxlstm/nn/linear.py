"""Linear maps that are block-diagonal: each group of channels for itself."""

import torch
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
