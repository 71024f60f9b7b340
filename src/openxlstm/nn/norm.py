"""Norms of the paper's blocks: a scale that is stored less 1, and no bias."""

import torch
from torch import Tensor, nn

from openxlstm import ops

EPS = 1e-5


class LayerNorm(nn.Module):
    """Layer norm over the last dimension, times 1 + weight."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, eps=EPS)


class HeadNorm(nn.Module):
    """Layer norm of each head's output for itself, times 1 + weight; the heads are joined after.

    h (B, T, NH, DH) → (B, T, NH·DH).
    """

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.weight = nn.Parameter(torch.zeros(num_heads * head_dim))

    def forward(self, h: Tensor) -> Tensor:
        return ops.layer_norm(h.flatten(-2), self.weight, self.num_heads, eps=EPS)
