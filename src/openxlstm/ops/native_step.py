"""One step of a whole model on the native CPU backend (`cpu/step_kernel.h`).

A plan says where weights, states and results are, as 64-bit words in the order of
`cpu/step_args.h`. It holds addresses: whoever makes one keeps its tensors alive and where they are.
"""

import importlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class LayerPlan(NamedTuple):
    """One block of the model."""

    is_slstm: bool
    inner: int
    """E of an mLSTM; F of an sLSTM's feed-forward, 0 for none."""
    kernel_size: int
    """K of the convolution, 0 for none."""
    option: int
    """Side of the blocks of an mLSTM's projections; whether an sLSTM's forget gate is exp."""
    eps: float
    """Of the mLSTM's denominator."""
    norm: Tensor | None
    """None for a bare block, which has no norms and no residual."""
    conv: tuple[Tensor | None, Tensor | None]
    head_norm: Tensor | None
    weights: Sequence[Tensor | None]
    """mLSTM: up, its bias, q, k, v, their biases, gate, its bias, skip, down, its bias.
    sLSTM: input weight, bias, R, then of the feed-forward norm, up, its bias, down, its bias.
    Bare mLSTM: qkvo, its bias, gate, its bias. Bare sLSTM: input weight, bias, R."""
    window: Tensor | None
    """The convolution's last inputs (B, K-1, width)."""
    state: Sequence[Tensor]
    """C, n, m; or h, c, n, m."""
    proj: tuple[Tensor | None, Tensor | None] = (None, None)
    """The map in front of a bare block, and its bias."""

    def pack(self) -> bytes:
        return struct.pack(
            "=4qd22q",
            self.is_slstm, self.inner, self.kernel_size, self.option, self.eps,
            *map(_address, (self.norm, *self.conv, self.head_norm)),
            *map(_address, self._slots()),
            _address(self.window),
            *map(_address, _padded(self.state, 4)),
        )  # fmt: skip

    def _slots(self) -> list[Tensor | None]:
        if self.norm is not None:
            return _padded(self.weights, 13)
        return [*_padded(self.weights, 11), *self.proj]


class StepPlan(NamedTuple):
    """The whole model, and the rows that it reads for."""

    batch_size: int
    dim: int
    """Width of the blocks, D."""
    num_heads: int
    norm_eps: float
    tokens: Tensor | None
    """Embedding (V, D); None where features are read."""
    positions: Tensor | None
    position: Tensor | None
    """Tokens read so far (B,) int64; None where features are read."""
    num_features: int
    """I of an input (B, I), 0 where tokens are read."""
    proj: tuple[Tensor | None, Tensor | None]
    """Of features: (D, I) and (D,), None where I is D."""
    norm: Tensor | None
    head: Tensor | None
    """(V, D); None for what the norm gives."""
    layers: Sequence[LayerPlan]
    out: Tensor
    """Where the result goes (B, V), without a head (B, D)."""

    def pack(self) -> bytes:
        """The plan as `step` reads it."""
        V = 0 if self.tokens is None else len(self.tokens)
        num_positions = 0 if self.positions is None else len(self.positions)
        header = struct.pack(
            "=7qd8q",
            self.batch_size, self.dim, V, self.num_heads, len(self.layers), num_positions,
            self.num_features, self.norm_eps,
            *map(_address, (self.tokens, self.positions, *self.proj, self.norm, self.head)),
            _address(self.position), _address(self.out),
        )  # fmt: skip
        return header + b"".join(layer.pack() for layer in self.layers)


def step(plan: bytes, x: Tensor) -> None:
    """Reads x, contiguous: tokens (B,) int64, each one of the model's, or features (B, I) float32.
    States and results are overwritten."""
    importlib.import_module("openxlstm.ops._native").step(plan, x.data_ptr())


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _padded(tensors: Sequence[Tensor | None], count: int) -> list[Tensor | None]:
    return [*tensors, *(None,) * (count - len(tensors))]
