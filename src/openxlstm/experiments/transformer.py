"""The Transformer contender: causal, pre-norm, with rotary positions, torch's attention, and a
key-value cache for generation.

B batch · T time · S steps in the cache · D width · NH heads · DH width of a head
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROTARY_BASE = 10_000.0
"""Longest wavelength of the rotary positions over 2π (arXiv:2104.09864), in steps."""


class Cache:
    """Keys and values of the steps that one block has read, for up to `capacity` steps.

    Steps are written in place and read as a view, so that nothing is copied as the context grows.
    """

    def __init__(self, batch_size: int, num_heads: int, capacity: int, head_dim: int) -> None:
        shape = (batch_size, num_heads, capacity, head_dim)
        self.keys, self.values = torch.empty(shape), torch.empty(shape)
        self.length = 0

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds k and v (B, NH, T, DH); returns all so far (B, NH, S, DH)."""
        start, self.length = self.length, self.length + k.shape[2]
        self.keys[:, :, start : self.length] = k
        self.values[:, :, start : self.length] = v
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class TransformerBlock(nn.Module):
    """Attention and a feed-forward of four times the width. x (B, T, D) → (B, T, D)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.ff_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.ff = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, turns: Tensor, cache: Cache | None = None) -> Tensor:
        """`turns` (T, DH/2) are the rotations of the steps' positions, complex."""
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, NH, T, DH)
            for part in self.qkv_proj(self.attention_norm(x)).chunk(3, dim=-1)
        )
        q, k = rotate(q, turns), rotate(k, turns)
        if cache is not None:
            k, v = cache.extend(k, v)
        assert q.shape[2] in (1, k.shape[2]), "a step, or a whole sequence from its start"
        h = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
        x = x + self.out_proj(h.transpose(1, 2).flatten(2))
        return x + self.ff(self.ff_norm(x))


class Transformer(nn.Module):
    """Blocks, then a norm. x (B, T, D) → (B, T, D); each step sees itself and those before it."""

    def __init__(self, width: int, num_blocks: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, width // num_heads
        self.blocks = nn.ModuleList(TransformerBlock(width, num_heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)

    def empty_caches(self, batch_size: int, capacity: int) -> list[Cache]:
        """One cache per block, for contexts of up to `capacity` steps."""
        return [Cache(batch_size, self.num_heads, capacity, self.head_dim) for _ in self.blocks]

    def forward(self, x: Tensor, caches: list[Cache] | None = None) -> Tensor:
        """Reads T steps from the start, or with caches one more step."""
        start = caches[0].length if caches else 0
        turns = rotations(start, x.shape[1], self.head_dim)
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks), strict=True):
            x = block(x, turns, cache)
        return self.norm(x)


def rotations(start: int, steps: int, head_dim: int) -> Tensor:
    """Complex rotations of pairs of channels at positions start, start + 1, … (T, DH/2)."""
    rates = ROTARY_BASE ** -(torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.arange(start, start + steps)[:, None] * rates
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """x (B, NH, T, DH) with its pairs of channels rotated."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns).flatten(-2)
