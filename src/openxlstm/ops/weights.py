"""The weights of the ops that take many, as named tuples.

Fields stand in the order of the operators' C++ schemas in `cpu/`, which the modules in `native/`
check when they are imported. Fields that no native operator takes come last.

D width of the residual stream · E inner width of an mLSTM block · NH heads · DH = E/NH, of an sLSTM
D/NH · S side of a diagonal block · K kernel size · F feed-forward width · QK = NH·DQK, V = NH·DHV
"""

from typing import NamedTuple

from torch import Tensor


class MLSTMInputWeights(NamedTuple):
    """Weights between the residual stream and an mLSTM cell (arXiv:2405.04517, figure 11)."""

    up: Tensor
    """Up-projection (2·E, D): the rows of the cell's branch, then those of the gate's branch."""
    q: Tensor
    """Block-diagonal map to queries (E/S, S, S), [block, out, in]."""
    k: Tensor
    """Block-diagonal map to keys, like `q`."""
    v: Tensor
    """Block-diagonal map to values, like `q`."""
    gate: Tensor
    """Gates from queries, keys and values (2, NH, 3·E); gates in the order i, f."""
    gate_bias: Tensor
    """Bias of the gates (2, NH)."""
    conv_weight: Tensor | None
    """Causal convolution (E, K), the newest step last; None without a convolution."""
    conv_bias: Tensor | None
    """Bias of the convolution (E,); given exactly if `conv_weight` is."""
    up_bias: Tensor | None = None
    """Bias of `up` (2·E,)."""
    q_bias: Tensor | None = None
    """Bias of `q` (E,)."""
    k_bias: Tensor | None = None
    """Bias of `k` (E,)."""
    v_bias: Tensor | None = None
    """Bias of `v` (E,)."""


class MLSTMOutputWeights(NamedTuple):
    """Weights between an mLSTM cell and the residual stream (arXiv:2405.04517, figure 11)."""

    norm: Tensor
    """Scale of the head norm less 1 (E,)."""
    skip: Tensor
    """Scale of the skip connection around the cell (E,)."""
    down: Tensor
    """Down-projection (D, E)."""
    down_bias: Tensor | None = None
    """Bias of `down` (D,)."""


class MLSTMBlockWeights(NamedTuple):
    """Weights of an mLSTM layer from its normed input to what is added to the residual stream."""

    input: MLSTMInputWeights
    """Weights in front of the cell."""
    output: MLSTMOutputWeights
    """Weights behind the cell."""


class SLSTMLayerWeights(NamedTuple):
    """Weights of an sLSTM cell and of the projections in front of it."""

    input_weight: Tensor
    """W (NH, 4, DH, DH), [head, gate, out, in], gates in the order i, f, z, o."""
    recurrent_weight: Tensor
    """R (NH, 4, DH, DH), like W."""
    bias: Tensor
    """b (NH, 4, DH)."""


class SLSTMBlockWeights(NamedTuple):
    """Weights of an sLSTM block with its feed-forward (arXiv:2405.04517, figure 10)."""

    norm: Tensor
    """Scale of the norm in front of the layer less 1 (D,)."""
    conv_weight: Tensor | None
    """Causal convolution (D, K), the newest step last; None without a convolution."""
    conv_bias: Tensor | None
    """Bias of the convolution (D,)."""
    input_weight: Tensor
    """W (NH, 4, DH, DH), [head, gate, out, in], gates in the order i, f, z, o."""
    recurrent_weight: Tensor
    """R (NH, 4, DH, DH), like W."""
    bias: Tensor
    """b (NH, 4, DH)."""
    head_norm: Tensor
    """Scale of the head norm behind the cell less 1 (D,)."""
    ff_norm: Tensor
    """Scale of the norm in front of the feed-forward less 1 (D,)."""
    up: Tensor
    """Up-projection of the feed-forward (2·F, D): the gate's rows, then the value's."""
    down: Tensor
    """Down-projection of the feed-forward (D, F)."""
    up_bias: Tensor | None = None
    """Bias of `up` (2·F,)."""
    down_bias: Tensor | None = None
    """Bias of `down` (D,)."""


class FeedForwardWeights(NamedTuple):
    """Weights of a gated feed-forward, and of a norm in front of it."""

    norm: Tensor | None
    """Scale of the norm (D,), of a layer norm less 1; None without a norm."""
    norm_bias: Tensor | None
    """Bias of the norm (D,)."""
    up: Tensor
    """Up-projection (2·F, D): the gate's rows, then the value's. With `value`, only the gate's."""
    value: Tensor | None
    """The value's up-projection (F, D), where `up` does not hold it."""
    down: Tensor
    """Down-projection (D, F)."""
    up_bias: Tensor | None = None
    """Bias of `up`, as long as it has rows."""
    value_bias: Tensor | None = None
    """Bias of `value` (F,)."""
    down_bias: Tensor | None = None
    """Bias of `down` (D,)."""


class LargeInputWeights(NamedTuple):
    """Weights in front of the cell of a large block (arXiv:2503.13427, figure 8)."""

    norm: Tensor
    """Scale of the RMS norm (D,)."""
    norm_bias: Tensor | None
    """Bias of the RMS norm (D,)."""
    q: Tensor
    """Projection to queries (QK, D)."""
    k: Tensor
    """Projection to keys (QK, D)."""
    v: Tensor
    """Projection to values (V, D)."""
    o: Tensor
    """Projection to the output gate (V, D)."""
    gates: Tensor
    """Projection to the input and forget gates (2, NH, D), in the order i, f."""
    q_bias: Tensor | None
    """Bias of `q` (QK,)."""
    k_bias: Tensor | None
    """Bias of `k` (QK,)."""
    v_bias: Tensor | None
    """Bias of `v` (V,)."""
    o_bias: Tensor | None
    """Bias of `o` (V,)."""
    gate_bias: Tensor
    """Bias of `gates` (2, NH)."""


class LargeOutputWeights(NamedTuple):
    """Weights behind the cell of a large block (arXiv:2503.13427, figure 8)."""

    norm: Tensor
    """Scale of the head norm (V,)."""
    norm_bias: Tensor | None
    """Bias of the head norm (V,)."""
    down: Tensor
    """Projection back to the residual stream (D, V)."""
    down_bias: Tensor | None = None
    """Bias of `down` (D,)."""
