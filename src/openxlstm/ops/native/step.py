"""One step of a whole model on the native CPU backend (`cpu/step_kernel.h`).

A plan says where weights, states and results are, as 64-bit words in the order of
`cpu/step_args.h`. It holds addresses: whoever makes one keeps its tensors alive and where they are.
"""

import importlib
import struct
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

NUM_WEIGHTS = 20
"""How many addresses of weights a block has room for."""


class Norms(NamedTuple):
    """Of the rows: that in front of each block is its own; the last one is here."""

    rms: bool
    """Whether they are those of large blocks."""
    eps: float
    weight: Tensor | None
    """Of the last one; None for none."""
    bias: Tensor | None


class LayerPlan(NamedTuple):
    """One block of the model. Matrices are in the dtype of the model; all else is float32."""

    kind: Literal["mlstm", "slstm", "large"]
    """Which cell; "large" is an mLSTM in a large block."""
    inner: int
    """E of an mLSTM; F of an sLSTM's or a large block's feed-forward, 0 for none."""
    norm: Tensor | None
    """None for a bare block, which has no norms and no residual."""
    head_norm: Tensor | None
    weights: Sequence[Tensor | None]
    """mLSTM: up, its bias, q, k, v, their biases, gate, its bias, skip, down, its bias.
    sLSTM: input weight, bias, R, then of the feed-forward norm, up, its bias, down, its bias.
    Large: q, k, v, o, gates and their biases, out, its bias, then of the feed-forward norm, its
    bias, gate, up, down and their biases.
    Bare mLSTM: qkvo, its bias, gate, its bias. Bare sLSTM: input weight, bias, R."""
    state: Sequence[Tensor]
    """C, n, m; or h, c, n, m."""
    head_dims: tuple[int, int] = (0, 0)
    """DQK and DHV of an mLSTM."""
    kernel_size: int = 0
    """K of the convolution, 0 for none."""
    option: int = 0
    """Side of the blocks of an mLSTM's projections; whether an sLSTM's forget gate is exp."""
    eps: float = 0.0
    """Of the mLSTM's denominator."""
    gate_soft_cap: float = 0.0
    """Of a large block's gates."""
    norm_bias: Tensor | None = None
    conv: tuple[Tensor | None, Tensor | None] = (None, None)
    head_norm_bias: Tensor | None = None
    window: Tensor | None = None
    """The convolution's last inputs (B, K-1, width)."""
    proj: tuple[Tensor | None, Tensor | None] = (None, None)
    """The map in front of a bare block, and its bias."""

    def pack(self) -> bytes:
        return struct.pack(
            "=7q2d31q",
            self.kind == "slstm", self.kind == "large", self.inner, *self.head_dims,
            self.kernel_size, self.option, self.eps, self.gate_soft_cap,
            *map(_address, (self.norm, self.norm_bias, *self.conv)),
            *map(_address, (self.head_norm, self.head_norm_bias)),
            *map(_address, self._slots()),
            _address(self.window),
            *map(_address, _padded(self.state, 4)),
        )  # fmt: skip

    def _slots(self) -> list[Tensor | None]:
        if self.kind == "large":
            return list(self.weights)
        return [*_padded(self.weights, NUM_WEIGHTS - 2), *self.proj]


class StepPlan(NamedTuple):
    """The whole model, and the rows that it reads for."""

    batch_size: int
    dim: int
    """Width of the blocks, D."""
    num_heads: int
    norms: Norms
    tokens: Tensor | None
    """Embedding (V, D); None where features are read."""
    positions: Tensor | None
    position: Tensor | None
    """Tokens read so far (B,) int64; None where features are read."""
    num_features: int
    """I of an input (B, I), 0 where tokens are read."""
    proj: tuple[Tensor | None, Tensor | None]
    """Of features: (D, I) and (D,), None where I is D."""
    head: Tensor | None
    """(V, D); None for what the norm gives."""
    layers: Sequence[LayerPlan]
    out: Tensor
    """Where the result goes (B, V), without a head (B, D)."""
    narrow: bool
    """Whether matrices are in bfloat16."""
    soft_cap: float = 0.0
    """Of the result; 0 for none."""

    def pack(self) -> bytes:
        """The plan as `step` reads it."""
        V = 0 if self.tokens is None else len(self.tokens)
        num_positions = 0 if self.positions is None else len(self.positions)
        rms, eps, norm, norm_bias = self.norms
        header = struct.pack(
            "=9q2d9q",
            self.batch_size, self.dim, V, self.num_heads, len(self.layers), num_positions,
            self.num_features, self.narrow, rms, eps, self.soft_cap,
            *map(_address, (self.tokens, self.positions, *self.proj, norm, norm_bias, self.head)),
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
