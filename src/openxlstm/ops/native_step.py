"""One token through a language model on the native CPU backend (`cpu/step_kernel.h`).

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
    norm: Tensor
    conv: tuple[Tensor | None, Tensor | None]
    head_norm: Tensor
    weights: Sequence[Tensor | None]
    """mLSTM: up, its bias, q, k, v, their biases, gate, its bias, skip, down, its bias.
    sLSTM: input weight, bias, R, then of the feed-forward norm, up, its bias, down, its bias."""
    window: Tensor | None
    """The convolution's last inputs (B, K-1, width)."""
    state: Sequence[Tensor]
    """C, n, m; or h, c, n, m."""

    def pack(self) -> bytes:
        return struct.pack(
            "=4qd22q",
            self.is_slstm, self.inner, self.kernel_size, self.option, self.eps,
            *map(_address, (self.norm, *self.conv, self.head_norm)),
            *map(_address, _padded(self.weights, 13)),
            _address(self.window),
            *map(_address, _padded(self.state, 4)),
        )  # fmt: skip


class StepPlan(NamedTuple):
    """The whole model, and the rows that it reads for."""

    num_heads: int
    norm_eps: float
    tokens: Tensor
    """Embedding (V, D)."""
    positions: Tensor | None
    norm: Tensor
    head: Tensor
    layers: Sequence[LayerPlan]
    position: Tensor
    """Tokens read so far (B,) int64."""
    logits: Tensor
    """Where the result goes (B, V)."""

    def pack(self) -> bytes:
        """The plan as `step` reads it."""
        V, D = self.tokens.shape
        num_positions = 0 if self.positions is None else len(self.positions)
        header = struct.pack(
            "=6qd6q",
            len(self.position), D, V, self.num_heads, len(self.layers), num_positions,
            self.norm_eps,
            *map(_address, (self.tokens, self.positions, self.norm, self.head)),
            _address(self.position), _address(self.logits),
        )  # fmt: skip
        return header + b"".join(layer.pack() for layer in self.layers)


def step(plan: bytes, ids: Tensor) -> None:
    """Reads ids (B,) int64, contiguous, each a token of the model; states and logits are
    overwritten."""
    importlib.import_module("openxlstm.ops._native").step(plan, ids.data_ptr())


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _padded(tensors: Sequence[Tensor | None], count: int) -> list[Tensor | None]:
    return [*tensors, *(None,) * (count - len(tensors))]
