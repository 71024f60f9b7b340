"""The two halves of a large block around its cell (arXiv:2503.13427, figure 8)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from openxlstm.ops.check import check_floating, check_parts, check_tensor, state_dtype
from openxlstm.ops.dispatch import Backend, never, pick
from openxlstm.ops.native import backend as native
from openxlstm.ops.native import large_block as native_large_block
from openxlstm.ops.norm import rms_norm, scale
from openxlstm.ops.weights import LargeInputWeights, LargeOutputWeights


class LargeInputs(NamedTuple):
    """Inputs of a large block's cell, and the output gate."""

    q: Tensor
    """Queries (B, NH, T, DQK)."""
    k: Tensor
    """Keys (B, NH, T, DQK)."""
    v: Tensor
    """Values (B, NH, T, DHV)."""
    log_i: Tensor
    """Logarithm of the input gate (B, NH, T): ĩ, softly capped."""
    log_f: Tensor
    """Logarithm of the forget gate (B, NH, T): log σ(f̃), f̃ softly capped."""
    o: Tensor
    """Pre-activation of the output gate (B, T, V)."""


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap · tanh(x / cap): near x where x is small, and never beyond ±cap. A cap of 0 returns x.

    It is computed in float32 or wider, and stays so: bfloat16 has only 8 significant bits.
    """
    return cap * torch.tanh(x.to(state_dtype(x.dtype)) / cap) if cap else x


def large_input(
    x: Tensor,
    weights: LargeInputWeights,
    *,
    eps: float = 1e-6,
    gate_soft_cap: float = 15.0,
    backend: str | None = None,
) -> LargeInputs:
    """The half of a large block in front of its cell: projections of rmsnorm(x).

    Args:
        x: (B, T, D).
        eps: added to the mean square by the norm.
        gate_soft_cap: largest absolute value of the gates' pre-activations; 0 for no limit.
        backend: the name of a backend in BACKENDS; None takes the first that can run this.

    Returns:
        the inputs of the cell and the output gate. Gates of inputs in bfloat16 are float32.

    Raises:
        ValueError: on shapes, dtypes or devices that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("x", x, "B, T, D")
    check_floating("weights.q", weights.q, "QK, D")
    check_floating("weights.v", weights.v, "V, D")
    check_floating("weights.gates", weights.gates, "2, NH, D")
    B, T, D = x.shape
    QK, V, NH = weights.q.shape[0], weights.v.shape[0], weights.gates.shape[1]
    for name, width in (("q", QK), ("v", V)):
        if width % NH:
            raise ValueError(f"weights.{name} must have a multiple of NH = {NH} rows, not {width}")
    check_parts(
        "weights", weights, x,
        norm=(D,), norm_bias=(D,), q=(QK, D), k=(QK, D), v=(V, D), o=(V, D), gates=(2, NH, D),
        q_bias=(QK,), k_bias=(QK,), v_bias=(V,), o_bias=(V,), gate_bias=(2, NH),
    )  # fmt: skip
    sizes = {"rows": B * T, "D": D, "QK": QK, "V": V, "NH": NH}
    run = pick("large_input", BACKENDS, x, sizes, backend)
    q, k, v, o, log_i, log_f = run(x, weights, eps=eps, gate_soft_cap=gate_soft_cap)
    q, k, v = (y.unflatten(-1, (NH, -1)).transpose(1, 2) for y in (q, k, v))
    return LargeInputs(q, k, v, log_i, log_f, o)


def large_output(
    h: Tensor,
    o: Tensor,
    weights: LargeOutputWeights,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-6,
    backend: str | None = None,
) -> Tensor:
    """The half of a large block behind its cell: residual + down(σ(o) ⊙ headnorm(h)).

    Args:
        h: output of the cell (B, NH, T, DHV).
        o: pre-activation of the output gate (B, T, V), V = NH·DHV.
        residual: (B, T, D); None adds nothing.
        eps: added to the variance by the norm, a layer norm per head.
        backend: the name of a backend in BACKENDS; None takes the first that can run this.

    Returns:
        y (B, T, D).

    Raises:
        ValueError: on shapes, dtypes or devices that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("h", h, "B, NH, T, DHV")
    check_floating("weights.down", weights.down, "D, V")
    B, NH, T, DHV = h.shape
    D, V = weights.down.shape[0], NH * DHV
    check_tensor("o", o, (B, T, V), h)
    check_parts("weights", weights, h, norm=(V,), norm_bias=(V,), down=(D, V), down_bias=(D,))
    check_tensor("residual", residual, (B, T, D), h)
    sizes = {"rows": B * T, "D": D, "V": V, "NH": NH}
    return pick("large_output", BACKENDS, h, sizes, backend)(h, o, weights, residual, eps=eps)


def _plain_input(
    x: Tensor, weights: LargeInputWeights, *, eps: float, gate_soft_cap: float
) -> tuple[Tensor, ...]:
    """`large_input` in plain PyTorch."""
    u = rms_norm(x, weights.norm, weights.norm_bias, eps=eps)
    gates = F.linear(u, weights.gates.flatten(0, 1), weights.gate_bias.flatten())  # (B, T, 2·NH)
    gates = soft_cap(gates.to(state_dtype(x.dtype)), gate_soft_cap)
    log_i, f_preact = gates.mT.chunk(2, dim=1)
    q, k, v, o = (
        F.linear(u, weight, bias)
        for weight, bias in (
            (weights.q, weights.q_bias),
            (weights.k, weights.k_bias),
            (weights.v, weights.v_bias),
            (weights.o, weights.o_bias),
        )
    )
    return q, k, v, o, log_i, F.logsigmoid(f_preact)


def _plain_output(
    h: Tensor, o: Tensor, weights: LargeOutputWeights, residual: Tensor | None, *, eps: float
) -> Tensor:
    """`large_output` in plain PyTorch."""
    normed = F.layer_norm(h.transpose(1, 2), h.shape[-1:], eps=eps).flatten(-2)  # (B, T, V)
    normed = scale(normed, weights.norm, weights.norm_bias)
    y = F.linear(torch.sigmoid(o) * normed, weights.down, weights.down_bias)
    return y if residual is None else residual + y


BACKENDS = {
    "large_input": (
        Backend("native", native.refuses_layer, native_large_block.large_input),
        Backend("torch", never, _plain_input),
    ),
    "large_output": (
        Backend("native", native.refuses_layer, native_large_block.large_output),
        Backend("torch", never, _plain_output),
    ),
}
