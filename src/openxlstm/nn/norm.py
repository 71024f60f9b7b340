"""Norms. In the paper's blocks the scale is 1 + weight, without bias; in large blocks
(arXiv:2503.13427) it is weight. Each is as in the original checkpoints."""

import torch
import torch.nn.functional as F
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
    """Layer norm of each head's output separately, times 1 + weight; then the heads are joined.

    h (B, T, NH, DH) → (B, T, NH·DH).
    """

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.weight = nn.Parameter(torch.zeros(num_heads * head_dim))

    def forward(self, h: Tensor) -> Tensor:
        return ops.layer_norm(h.flatten(-2), self.weight, self.num_heads, eps=EPS)


class WholeNorm(nn.Module):
    """Base of the norms in large blocks: weight and bias."""

    def __init__(self, dim: int, *, eps: float = 1e-6, bias: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None


class RMSNorm(WholeNorm):
    """x over the root of its mean square, times weight (arXiv:1910.07467); x, y (…, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.bias, eps=self.eps)


class LargeHeadNorm(WholeNorm):
    """Layer norm of each head's output separately, times weight; then the heads are joined.

    h (B, T, NH, DHV) → (B, T, NH·DHV).
    """

    def forward(self, h: Tensor) -> Tensor:
        normed = F.layer_norm(h, h.shape[-1:], eps=self.eps).flatten(-2) * self.weight
        return normed if self.bias is None else normed + self.bias
