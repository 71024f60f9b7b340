"""The mLSTM block and its two halves around the cell on the native CPU backend.

`cpu/mlstm_parts_kernel.h` holds the halves, `cpu/mlstm_block.cpp` the fused block.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from openxlstm.ops.dispatch import Request, Sizes, by_sizes
from openxlstm.ops.native import backend as native
from openxlstm.ops.native.backend import (
    contiguous,
    empty_grads,
    grads_or_none,
    needs_saving,
    register,
)
from openxlstm.ops.native.mlstm import grad_of_final_m, through_m
from openxlstm.ops.plain.conv import last_inputs
from openxlstm.ops.plain.mlstm import best_chunk_size
from openxlstm.ops.weights import MLSTMBlockWeights, MLSTMInputWeights, MLSTMOutputWeights
from openxlstm.states import ConvState, LayerState, MLSTMState

LARGEST_SAMPLE = 1 << 18
"""Largest T·E for which one sample's E-wide buffers fit in a core's cache."""


def refuses_input(request: Request) -> str | None:
    """Why `mlstm_input` cannot run a request, or None."""
    return (
        native.refuses_layer(request)
        or native.long_kernel(request)
        or native.odd_inner_width(request)
        or _other_projections(request)
    )


@by_sizes
def _other_projections(sizes: Sizes) -> str | None:
    if sizes["side"] != 4:
        return f"its projections have diagonal blocks of 4, not of {sizes['side']}"
    return "it has no biases in the projections" if sizes["has_biases"] else None


def refuses_output(request: Request) -> str | None:
    """Why `mlstm_output` cannot run a request, or None."""
    return native.refuses_layer(request) or native.odd_inner_width(request)


def refuses_block(request: Request) -> str | None:
    """Why `mlstm_block` cannot run a request, or None."""
    return refuses_input(request) or native.compiled() or _unsuited_sizes(request)


@by_sizes
def _unsuited_sizes(sizes: Sizes) -> str | None:
    """Why the three ops one after the other are faster or needed, or None."""
    B, threads = sizes["B"], torch.get_num_threads()
    if threads > B:
        return f"a thread takes whole samples, and {B} are too few for {threads} threads"
    if sizes["T"] * sizes["E"] > LARGEST_SAMPLE:
        return "the samples are too long for it"
    return "it has no eps in the denominator" if sizes["has_eps"] else None


INPUT_OPERANDS = MLSTMInputWeights._fields[: MLSTMInputWeights._fields.index("conv_bias") + 1]
"""Names of the weights that the operators take, which are those without a bias of a projection."""


def mlstm_input(
    x: Tensor,
    weights: MLSTMInputWeights,
    state: ConvState | None = None,
    *,
    reset: Tensor | None = None,
) -> tuple[tuple[Tensor, ...], ConvState | None]:
    """`openxlstm.ops.mlstm_input` for checked inputs."""
    NH = weights.gate.shape[1]
    _, z, c, q, k, v, log_i, log_f, _ = torch.ops.openxlstm.mlstm_input(
        *_input_operands(x, weights, state, reset)
    )
    q, k, v = (y.unflatten(-1, (NH, -1)).transpose(1, 2) for y in (q, k, v))
    return (q, k, v, log_i, log_f, c, z), _conv_state(x, weights, state, reset)


def _input_operands(
    x: Tensor, weights: MLSTMInputWeights, state: ConvState | None, reset: Tensor | None
) -> tuple[Tensor | None, ...]:
    """x, the weights, the inputs before x and the reset as the operators take them."""
    up, q, k, v, gate, gate_bias, conv_weight, conv_bias, *_ = weights
    before = None if state is None else state.x
    gates = gate.flatten(0, 1), gate_bias.flatten()
    return tuple(map(contiguous, (x, up, q, k, v, *gates, conv_weight, conv_bias, before, reset)))


def _conv_state(
    x: Tensor, weights: MLSTMInputWeights, state: ConvState | None, reset: Tensor | None
) -> ConvState | None:
    """The convolution's state after x; None without a convolution.

    It projects the last inputs once more in PyTorch, which thereby takes care of their gradients.
    """
    if weights.conv_weight is None:
        return None
    E, K = weights.conv_weight.shape
    last = F.linear(x[:, -(K - 1) :], weights.up[:E]) if K > 1 else x.new_empty(len(x), 0, E)
    return last_inputs(last, K, state, None if reset is None else reset[:, -(K - 1) :])


def _input_fake(given: Any) -> tuple[Tensor, ...]:
    x, (B, T, _) = given.x, given.x.shape
    E, NH = len(given.up) // 2, len(given.gate) // 2
    return *(x.new_empty(B, T, E) for _ in range(6)), *(x.new_empty(B, NH, T) for _ in range(3))


def _input_backward(saved: Any, upstream: Any, needs_grad: Any) -> dict[str, Tensor | None]:
    wide = upstream.z, upstream.c, upstream.out_q, upstream.out_k, upstream.out_v
    dz, dc, dq, dk, dv = (
        torch.zeros_like(saved.a) if grad is None else grad.contiguous() for grad in wide
    )
    dlog_i, dlog_f = (
        torch.zeros_like(saved.f_preact) if grad is None else grad.contiguous()
        for grad in (upstream.log_i, upstream.log_f)
    )
    grads = torch.ops.openxlstm.mlstm_input_grad(
        *saved, dz=dz, dc=dc, dq=dq, dk=dk, dv=dv, dlog_i=dlog_i, dlog_f=dlog_f
    )
    return grads_or_none(_inputs_with_grad(saved), grads)


def _inputs_with_grad(saved: Any) -> dict[str, Tensor | None]:
    """Inputs of the first half by name, in the order of the gradients that an operator returns."""
    return {name: getattr(saved, name) for name in ("x", *INPUT_OPERANDS, "before")}


def _input_grad_fake(given: Any) -> tuple[Tensor, ...]:
    x, before, (rows, _) = given.x, given.before, given.up.shape
    E, K = rows // 2, 0 if given.conv_weight is None else given.conv_weight.shape[1]
    block = E, 4
    shapes = (
        x.shape, given.up.shape, block, block, block, given.gate.shape, given.gate_bias.shape,
        (E, K), (E if K else 0,), (0, 0, 0) if before is None else before.shape,
    )  # fmt: skip
    return tuple(map(x.new_empty, shapes))


def mlstm_output(
    h: Tensor, c: Tensor, z: Tensor, weights: MLSTMOutputWeights, *, eps: float
) -> Tensor:
    """`openxlstm.ops.mlstm_output` for checked inputs."""
    norm, skip, down, down_bias = weights
    tensors = map(contiguous, (h, c, z, norm, skip, down))
    return _with_bias(torch.ops.openxlstm.mlstm_output(*tensors, eps), down_bias)


def _with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias


def _output_fake(given: Any) -> Tensor:
    B, T, _ = given.c.shape
    return given.h.new_empty(B, T, len(given.down))


def _output_backward(saved: Any, upstream: Any, needs_grad: Any) -> dict[str, Tensor | None]:
    h, c, z, norm, skip, down, _ = saved
    inputs = {"h": h, "c": c, "z": z, "norm": norm, "skip": skip, "down": down}
    grads = torch.ops.openxlstm.mlstm_output_grad(*saved, upstream.result.contiguous())
    return grads_or_none(inputs, grads)


def _output_grad_fake(given: Any) -> list[Tensor]:
    return empty_grads(given.h, given.c, given.z, given.norm, given.skip, given.down)


def mlstm_block(
    x: Tensor,
    weights: MLSTMBlockWeights,
    state: LayerState | None = None,
    *,
    reset: Tensor | None = None,
    eps: float = 0.0,
    norm_eps: float = 1e-5,
) -> tuple[Tensor, LayerState]:
    """`openxlstm.ops.mlstm_block` for checked inputs."""
    conv_state, cell_state = (None, None) if state is None else state
    norm, skip, down, down_bias = weights.output
    B, NH, DH = len(x), weights.input.gate.shape[1], len(skip) // weights.input.gate.shape[1]
    if cell_state is None:
        cell_state = MLSTMState.empty(B, NH, DH, DH, dtype=x.dtype, device=x.device)
    inputs = _input_operands(x, weights.input, conv_state, reset)
    initial = tuple(map(contiguous, cell_state))
    output = tuple(map(contiguous, (norm, skip, down)))
    y, C, n, m, *_ = torch.ops.openxlstm.mlstm_block(
        *inputs, *initial, *output, norm_eps, min(x.shape[1], best_chunk_size(DH, DH)),
        needs_saving(*inputs, *initial, *output),
    )  # fmt: skip
    after = _conv_state(x, weights.input, conv_state, reset)
    return _with_bias(y, down_bias), LayerState(after, MLSTMState(C, n, m))


def _block_fake(given: Any) -> tuple[Tensor, ...]:
    x, (B, T, D), (_, NH, DH) = given.x, given.x.shape, given.n_0.shape
    NC = -(-T // given.chunk_size)
    saved = (
        (B, T, NH * DH), (B, T, NH * DH), (B, NH, T, DH),
        (B, NH, NC, DH, DH), (B, NH, NC, DH), (B, NH, T), (B, NH, T),
    )  # fmt: skip
    a, z, h, *chunks = (x.new_empty(size if given.save else (0,) * len(size)) for size in saved)
    state = (torch.empty_like(part) for part in (given.C_0, given.n_0, given.m_0))
    gates = (x.new_empty(B, NH, T) for _ in range(3))
    return x.new_empty(B, T, D), *state, a, z, h, *gates, *chunks


def _block_backward(saved: Any, upstream: Any, needs_grad: Any) -> dict[str, Tensor | None]:
    *operands, C_0, n_0, C, n = saved
    on_state = any(grad is not None for grad in (upstream.C, upstream.n, upstream.m))
    dy = torch.zeros_like(saved.x) if upstream.y is None else upstream.y.contiguous()
    dC_T = torch.zeros_like(C) if upstream.C is None else upstream.C.contiguous()
    dn_T = torch.zeros_like(n) if upstream.n is None else upstream.n.contiguous()
    initial = needs_grad.C_0 or needs_grad.n_0 or needs_grad.m_0
    more_i = more_f = more_0 = None
    if on_state:
        dm = torch.zeros_like(saved.log_i)
        dm[..., -1] = grad_of_final_m(C, n, dC_T, dn_T, upstream.m)
        more = through_m(dm, saved.log_i, saved.log_f, saved.m_0, saved.reset)
        more_i, more_f, more_0 = (part.contiguous() for part in more)
    *grads, dC, dn, d_norm, d_skip, d_down = torch.ops.openxlstm.mlstm_block_grad(
        *operands, dy=dy, dC_T=dC_T, dn_T=dn_T, more_i=more_i, more_f=more_f, initial=initial
    )
    of_initial: dict[str, Tensor | None] = {}
    if initial:
        dm_0 = (C_0 * dC).sum((-2, -1)) + (n_0 * dn).sum(-1)
        of_initial = {"C_0": dC, "n_0": dn, "m_0": dm_0 if more_0 is None else dm_0 + more_0}
    of_output = {"norm": d_norm, "skip": d_skip, "down": d_down}
    return grads_or_none(_inputs_with_grad(saved), grads) | of_initial | of_output


def _block_grad_fake(given: Any) -> tuple[Tensor, ...]:
    others = given.dC_T, given.dn_T, given.norm, given.skip, given.down
    return *_input_grad_fake(given), *map(torch.empty_like, others)


register(
    "mlstm_input",
    ("x", *INPUT_OPERANDS, "before", "reset"),
    fake=_input_fake,
    backward=_input_backward,
    grad_fake=_input_grad_fake,
)
register(
    "mlstm_output",
    ("h", "c", "z", "norm", "skip", "down", "eps"),
    fake=_output_fake,
    backward=_output_backward,
    grad_fake=_output_grad_fake,
)
register(
    "mlstm_block",
    (
        *("x", *INPUT_OPERANDS, "before", "reset", "C_0", "n_0", "m_0"),
        *("norm", "skip", "down", "eps", "chunk_size", "save"),
    ),
    fake=_block_fake,
    backward=_block_backward,
    grad_fake=_block_grad_fake,
    also_saved=("C_0", "n_0", "C", "n"),
)
