"""The ops written a second time from their formulas, in plain autograd: the truth of their tests.

They have the signatures of the ops. The cells themselves are `openxlstm.reference`, which
`tests/reference/` holds against the papers.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from openxlstm.ops import (
    FeedForwardWeights,
    LargeInputs,
    LargeInputWeights,
    LargeOutputWeights,
    MLSTMBlockWeights,
    MLSTMInputs,
    MLSTMInputWeights,
    MLSTMOutputWeights,
    SLSTMBlockWeights,
    SLSTMLayerWeights,
)
from openxlstm.reference import mlstm as mlstm_reference
from openxlstm.reference import slstm as slstm_reference
from openxlstm.states import ConvState, LayerState, SLSTMState


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = x @ weight.T
    return y if bias is None else y + bias


def standardized(x: Tensor, eps: float) -> Tensor:
    deviation = x - x.mean(-1, keepdim=True)
    return deviation / (deviation.square().mean(-1, keepdim=True) + eps).sqrt()


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def log_sigmoid(x: Tensor) -> Tensor:
    return -torch.log1p(torch.exp(-x))


def heads(x: Tensor, NH: int) -> Tensor:
    """(B, T, NH·D) → (B, NH, T, D)."""
    return torch.stack(x.chunk(NH, -1), dim=1)


def layer_norm(x: Tensor, weight: Tensor, num_groups: int = 1, *, eps: float = 1e-5) -> Tensor:
    groups = [standardized(part, eps) for part in x.chunk(num_groups, dim=-1)]
    return torch.cat(groups, -1) * (1 + weight)


def rms_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    y = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    return y if bias is None else y + bias


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, state: ConvState | None = None, *,
    reset: Tensor | None = None, activation: str | None = None,
) -> tuple[Tensor, ConvState]:  # fmt: skip
    """torch's conv1d, sample by sample and from reset to reset."""
    (B, T, D), K = x.shape, weight.shape[1]
    before = x.new_zeros(B, K - 1, D) if state is None else state.x
    outputs, last = [], []
    for b in range(B):
        resets = [] if reset is None else reset[b].nonzero().flatten().tolist()
        begins, pieces, kept = sorted({0, *resets}), [], before[b]
        for begin, end in zip(begins, [*begins[1:], T], strict=True):
            kept = torch.zeros_like(kept) if begin in resets else kept
            inputs = torch.cat([kept, x[b, begin:end]])
            pieces.append(F.conv1d(inputs.T[None], weight[:, None], bias, groups=D)[0].T)
            kept = inputs[len(inputs) - (K - 1) :]
        outputs.append(torch.cat(pieces))
        last.append(kept)
    y = torch.stack(outputs)
    return silu(y) if activation == "silu" else y, ConvState(torch.stack(last))


def gated_feedforward(
    x: Tensor, weights: FeedForwardWeights, *, norm: str = "layer", eps: float = 1e-5,
    residual: bool = False, activation: str = "gelu",
) -> Tensor:  # fmt: skip
    normed = x
    if weights.norm is not None:
        y = rms_norm(x, weights.norm, eps=eps) if norm == "rms" else layer_norm(
            x, weights.norm, eps=eps
        )  # fmt: skip
        normed = y if weights.norm_bias is None else y + weights.norm_bias
    up = linear(normed, weights.up, weights.up_bias)
    if weights.value is None:
        gate, value = up.chunk(2, dim=-1)
    else:
        gate, value = up, linear(normed, weights.value, weights.value_bias)
    gate = gelu(gate) if activation == "gelu" else silu(gate)
    y = linear(gate * value, weights.down, weights.down_bias)
    return x + y if residual else y


def mlstm_input(
    x: Tensor, weights: MLSTMInputWeights, state: ConvState | None = None, *,
    reset: Tensor | None = None,
) -> tuple[MLSTMInputs, ConvState | None]:  # fmt: skip
    """The diagonal blocks are written out as matrices."""
    a, z = linear(x, weights.up, weights.up_bias).chunk(2, dim=-1)
    c = silu(a)
    if weights.conv_weight is not None:
        conv = weights.conv_weight, weights.conv_bias, state
        c, state = causal_conv(a, *conv, reset=reset, activation="silu")
    q = linear(c, torch.block_diag(*weights.q), weights.q_bias)
    k = linear(c, torch.block_diag(*weights.k), weights.k_bias)
    v = linear(a, torch.block_diag(*weights.v), weights.v_bias)
    gates = torch.einsum("btc,ghc->gbht", torch.cat([q, k, v], -1), weights.gate)
    i_preact, f_preact = gates + weights.gate_bias[:, None, :, None]
    q, k, v = (heads(y, weights.gate.shape[1]) for y in (q, k, v))
    return MLSTMInputs(q, k, v, i_preact, log_sigmoid(f_preact), c, z), state


def mlstm_output(
    h: Tensor, c: Tensor, z: Tensor, weights: MLSTMOutputWeights, *, eps: float = 1e-5
) -> Tensor:
    normed = layer_norm(torch.cat(h.unbind(1), -1), weights.norm, h.shape[1], eps=eps)
    return linear((normed + weights.skip * c) * silu(z), weights.down, weights.down_bias)


def mlstm_block(
    x: Tensor, weights: MLSTMBlockWeights, state: LayerState | None = None, *,
    reset: Tensor | None = None, eps: float = 0.0, norm_eps: float = 1e-5,
) -> tuple[Tensor, LayerState]:  # fmt: skip
    conv, cell = (None, None) if state is None else state
    (*sequence, c, z), conv = mlstm_input(x, weights.input, conv, reset=reset)
    options: Any = {"reset": reset, "eps": eps}
    h, cell = mlstm_reference.recurrent(*sequence, cell, **options)  # pyright: ignore
    return mlstm_output(h, c, z, weights.output, eps=norm_eps), LayerState(conv, cell)


def slstm_layer(
    convolved: Tensor, raw: Tensor, weights: SLSTMLayerWeights, state: SLSTMState | None = None,
    **options: Any,
) -> tuple[Tensor, SLSTMState]:  # fmt: skip
    """The gates are projected one by one."""
    W, R, bias = weights
    sources = [x.unflatten(-1, (len(bias), -1)) for x in (convolved, convolved, raw, raw)]
    gates = [
        torch.einsum("bthi,hoi->btho", x, W[:, gate]) + bias[:, gate]
        for gate, x in enumerate(sources)
    ]
    return slstm_reference.recurrent(torch.stack(gates, dim=3), R, None, state, **options)


def slstm_block(
    x: Tensor, weights: SLSTMBlockWeights, state: LayerState | None = None, *,
    reset: Tensor | None = None, forget_gate: str = "sigmoid", eps: float = 1e-5,
) -> tuple[Tensor, LayerState]:  # fmt: skip
    conv, cell = (None, None) if state is None else state
    raw = convolved = layer_norm(x, weights.norm, eps=eps)
    if weights.conv_weight is not None:
        of_conv = weights.conv_weight, weights.conv_bias, conv
        convolved, conv = causal_conv(raw, *of_conv, reset=reset, activation="silu")
    layer = SLSTMLayerWeights(weights.input_weight, weights.recurrent_weight, weights.bias)
    options: Any = {"reset": reset, "forget_gate": forget_gate}
    h, cell = slstm_layer(convolved, raw, layer, cell, **options)  # pyright: ignore
    x = x + layer_norm(h.flatten(-2), weights.head_norm, h.shape[2], eps=eps)
    ff = FeedForwardWeights(
        weights.ff_norm, None, weights.up, None, weights.down, weights.up_bias, None,
        weights.down_bias,
    )  # fmt: skip
    return gated_feedforward(x, ff, eps=eps, residual=True), LayerState(conv, cell)


def large_input(
    x: Tensor, weights: LargeInputWeights, *, eps: float = 1e-6, gate_soft_cap: float = 15.0
) -> LargeInputs:
    u, NH = rms_norm(x, weights.norm, weights.norm_bias, eps=eps), weights.gates.shape[1]
    q = heads(linear(u, weights.q, weights.q_bias), NH)
    k = heads(linear(u, weights.k, weights.k_bias), NH)
    v = heads(linear(u, weights.v, weights.v_bias), NH)
    preact = torch.einsum("btd,ghd->gbht", u, weights.gates)
    preact = preact + weights.gate_bias[:, None, :, None]
    cap = gate_soft_cap
    log_i, f_preact = cap * torch.tanh(preact / cap) if cap else preact
    return LargeInputs(q, k, v, log_i, log_sigmoid(f_preact), linear(u, weights.o, weights.o_bias))


def large_output(
    h: Tensor, o: Tensor, weights: LargeOutputWeights, residual: Tensor | None = None, *,
    eps: float = 1e-6,
) -> Tensor:  # fmt: skip
    normed = torch.cat([standardized(head, eps) for head in h.unbind(1)], -1) * weights.norm
    normed = normed if weights.norm_bias is None else normed + weights.norm_bias
    y = linear(normed / (1 + torch.exp(-o)), weights.down, weights.down_bias)
    return y if residual is None else residual + y
