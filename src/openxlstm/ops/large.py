"""Around the cell of a large block (arXiv:2503.13427, figure 8): what goes in, what comes out, and
who computes it."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from openxlstm.ops.check import check_floating, check_tensors, state_dtype
from openxlstm.ops.dispatch import Backend, Request, choose, never
from openxlstm.ops.native import backend as native
from openxlstm.ops.native import large as native_large
from openxlstm.ops.norm import rms_norm, scale


class LargeInputs(NamedTuple):
    """What the cell reads, and what gates its output afterwards."""

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
    """cap · tanh(x / cap): x where it is small, never beyond ±cap; x itself for a cap of 0.

    It is computed in float32 or wider, and stays so: bfloat16 has no more than 8 bits for ±30.
    """
    return cap * torch.tanh(x.to(state_dtype(x.dtype)) / cap) if cap else x


def large_input(
    x: Tensor,
    norm_weight: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    o_weight: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    norm_bias: Tensor | None = None,
    biases: tuple[Tensor, ...] | None = None,
    *,
    eps: float = 1e-6,
    gate_soft_cap: float = 15.0,
    backend: str | None = None,
) -> LargeInputs:
    """What a large block does in front of its cell: everything is a projection of rmsnorm(x).

    Args:
        x: (B, T, D).
        norm_weight, norm_bias: scale and bias of the norm (D,); no bias where it is None.
        q_weight, k_weight: (QK, D), QK = NH·DQK.
        v_weight, o_weight: (V, D), V = NH·DHV.
        gate_weight: (2, NH, D), gates in the order i, f.
        gate_bias: (2, NH).
        biases: of q, k (QK,), v and o (V,); None for none.
        eps: of the norm.
        gate_soft_cap: how far from 0 the gates' pre-activations may be; 0 for no limit.
        backend: the name of one of INPUT_BACKENDS; None takes the first that can run this.

    Returns:
        what the cell reads, and what gates its output. The gates of inputs in bfloat16 are float32.

    Raises:
        ValueError: on shapes or dtypes that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("x", x, "B, T, D")
    check_floating("q_weight", q_weight, "QK, D")
    check_floating("v_weight", v_weight, "V, D")
    check_floating("gate_weight", gate_weight, "2, NH, D")
    B, T, D = x.shape
    QK, V, NH, dtypes = q_weight.shape[0], v_weight.shape[0], gate_weight.shape[1], (x.dtype,)
    for name, width in (("q_weight", QK), ("v_weight", V)):
        if width % NH:
            raise ValueError(f"{name} must have a multiple of NH = {NH} rows, not {width}")
    named = zip("qkvo", biases or (None,) * 4, (QK, QK, V, V), strict=True)
    check_tensors(
        x,
        [
            ("norm_weight", norm_weight, (D,), dtypes),
            ("norm_bias", norm_bias, (D,), dtypes),
            ("q_weight", q_weight, (QK, D), dtypes),
            ("k_weight", k_weight, (QK, D), dtypes),
            ("v_weight", v_weight, (V, D), dtypes),
            ("o_weight", o_weight, (V, D), dtypes),
            ("gate_weight", gate_weight, (2, NH, D), dtypes),
            ("gate_bias", gate_bias, (2, NH), dtypes),
            *((f"the bias of {name}", bias, (size,), dtypes) for name, bias, size in named),
        ],
    )
    sizes = (("rows", B * T), ("D", D), ("QK", QK), ("V", V), ("NH", NH))
    request = Request(x.device.type, x.dtype, sizes, torch.is_grad_enabled())
    run = choose("large_input", INPUT_BACKENDS, request, backend)
    weights = q_weight, k_weight, v_weight, o_weight
    q, k, v, o, log_i, log_f = run(
        x, norm_weight, norm_bias, weights, biases or (None,) * 4, gate_weight, gate_bias,
        eps=eps, gate_soft_cap=gate_soft_cap,
    )  # fmt: skip
    q, k, v = (y.unflatten(-1, (NH, -1)).transpose(1, 2) for y in (q, k, v))
    return LargeInputs(q, k, v, log_i, log_f, o)


def plain_input(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    weights: tuple[Tensor, ...],
    biases: tuple[Tensor | None, ...],
    gate_weight: Tensor,
    gate_bias: Tensor,
    *,
    eps: float,
    gate_soft_cap: float,
) -> tuple[Tensor, ...]:
    """`large_input` in plain PyTorch, for inputs that it has checked."""
    u = rms_norm(x, norm_weight, norm_bias, eps=eps)
    wide = (F.linear(u, weight, bias) for weight, bias in zip(weights, biases, strict=True))
    gates = F.linear(u, gate_weight.flatten(0, 1), gate_bias.flatten())  # (B, T, 2·NH)
    gates = soft_cap(gates.to(state_dtype(x.dtype)), gate_soft_cap)
    log_i, f_preact = gates.mT.chunk(2, dim=1)
    return *wide, log_i, F.logsigmoid(f_preact)


def large_output(
    h: Tensor,
    o: Tensor,
    norm_weight: Tensor,
    out_weight: Tensor,
    norm_bias: Tensor | None = None,
    out_bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-6,
    backend: str | None = None,
) -> Tensor:
    """What a large block does behind its cell: residual + out(σ(o) ⊙ headnorm(h)).

    Args:
        h: (B, NH, T, DHV).
        o: pre-activation of the output gate (B, T, V), V = NH·DHV.
        norm_weight, norm_bias: scale and bias (V,) of a layer norm of each head for itself; no bias
            where it is None.
        out_weight, out_bias: (D, V) and (D,).
        residual: (B, T, D); None for none.
        eps: of the norm.
        backend: the name of one of OUTPUT_BACKENDS; None takes the first that can run this.

    Returns:
        y (B, T, D).

    Raises:
        ValueError: on shapes or dtypes that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("h", h, "B, NH, T, DHV")
    check_floating("out_weight", out_weight, "D, V")
    B, NH, T, DHV = h.shape
    D, V, dtypes = out_weight.shape[0], NH * DHV, (h.dtype,)
    check_tensors(
        h,
        [
            ("o", o, (B, T, V), dtypes),
            ("norm_weight", norm_weight, (V,), dtypes),
            ("norm_bias", norm_bias, (V,), dtypes),
            ("out_weight", out_weight, (D, V), dtypes),
            ("out_bias", out_bias, (D,), dtypes),
            ("residual", residual, (B, T, D), dtypes),
        ],
    )
    sizes = (("rows", B * T), ("D", D), ("V", V), ("NH", NH))
    request = Request(h.device.type, h.dtype, sizes, torch.is_grad_enabled())
    run = choose("large_output", OUTPUT_BACKENDS, request, backend)
    return run(h, o, norm_weight, norm_bias, out_weight, out_bias, residual, eps=eps)


def plain_output(
    h: Tensor,
    o: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    residual: Tensor | None,
    *,
    eps: float,
) -> Tensor:
    """`large_output` in plain PyTorch, for inputs that it has checked."""
    normed = F.layer_norm(h.transpose(1, 2), h.shape[-1:], eps=eps).flatten(-2)  # (B, T, V)
    y = F.linear(torch.sigmoid(o) * scale(normed, norm_weight, norm_bias), out_weight, out_bias)
    return y if residual is None else residual + y


INPUT_BACKENDS = (
    Backend("native", native.refuses_layer, native_large.large_input),
    Backend("torch", never, plain_input),
)
OUTPUT_BACKENDS = (
    Backend("native", native.refuses_layer, native_large.large_output),
    Backend("torch", never, plain_output),
)
