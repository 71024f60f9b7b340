"""An mLSTM block in one on the native CPU backend (`cpu/mlstm_whole.h`)."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.dispatch import Request
from openxlstm.ops.native import mlstm_input as native_mlstm_input
from openxlstm.ops.native.backend import present, register, saves
from openxlstm.ops.native.mlstm import of_final_m, through_m
from openxlstm.ops.native.mlstm_input import conv_state, grad_fake, operands
from openxlstm.ops.plain.mlstm import best_chunk_size
from openxlstm.states import ConvState, MLSTMState

LARGEST_SAMPLE = 1 << 18
"""Numbers in what is E wide, up to which a sample's stay in a core's cache."""


def refuses(request: Request) -> str | None:
    """Why it cannot run a request, or None."""
    return native_mlstm_input.refuses(request) or _unsuited(request)


def _unsuited(request: Request) -> str | None:
    """Why the three ops one after the other are better, or None."""
    if torch.compiler.is_compiling():
        return "what is compiled has lengths of its own"
    sizes, threads = dict(request.sizes), torch.get_num_threads()
    if sizes.get("B", threads) < threads:
        return f"a thread takes whole samples, and {sizes['B']} are too few for {threads} of them"
    if sizes.get("T", 1) * sizes.get("E", 1) > LARGEST_SAMPLE:
        return "the samples are too long for it"
    return "it has no eps in the denominator" if sizes.get("eps") else None


def mlstm_block(
    x: Tensor,
    up_weight: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    norm_weight: Tensor,
    skip: Tensor,
    down_weight: Tensor,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    before: ConvState | None = None,
    state: MLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    biases: None = None,
    eps: float = 0.0,
    norm_eps: float = 1e-5,
) -> tuple[Tensor, ConvState | None, MLSTMState]:
    """`openxlstm.ops.mlstm_block` for inputs that it has checked."""
    weights = up_weight, q_weight, k_weight, v_weight, gate_weight, gate_bias
    inputs = operands(x, weights, conv_weight, conv_bias, before, reset)
    output = tuple(w.contiguous() for w in (norm_weight, skip, down_weight))
    B, NH, E = len(x), gate_weight.shape[1], skip.shape[0]
    DH = E // NH
    if state is None:
        state = MLSTMState.empty(B, NH, DH, DH, dtype=x.dtype, device=x.device)
    initial = tuple(part.contiguous() for part in state)
    y, C, n, m, *_ = torch.ops.openxlstm.mlstm_block(
        *inputs, *initial, *output, norm_eps, min(x.shape[1], best_chunk_size(DH, DH)),
        saves(*inputs, *initial, *output),
    )  # fmt: skip
    after = None if conv_weight is None else conv_state(x, up_weight, conv_weight, before, reset)
    return y, after, MLSTMState(C, n, m)


def _fake(x: Tensor, up: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    B, T, D = x.shape
    C_0, n_0, m_0, _, _, _, _, chunk_size, save = rest[-9:]
    NH, DH, NC = m_0.shape[1], n_0.shape[2], -(-T // chunk_size)
    kept = (
        (B, T, NH * DH), (B, T, NH * DH), (B, NH, T, DH),
        (B, NH, NC, DH, DH), (B, NH, NC, DH), (B, NH, T), (B, NH, T),
    )  # fmt: skip
    a, z, h, *chunks = (x.new_empty(size if save else (0,) * len(size)) for size in kept)
    state = (torch.empty_like(part) for part in (C_0, n_0, m_0))
    gates = (x.new_empty(B, NH, T) for _ in range(3))
    return x.new_empty(B, T, D), *state, a, z, h, *gates, *chunks


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps, ctx.chunk_size, _ = inputs
    _, C, n, _, *kept = output
    ctx.save_for_backward(*tensors, C, n, *kept)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any,
    dy: Tensor | None,
    dC_T: Tensor | None,
    dn_T: Tensor | None,
    dm_T: Tensor | None,
    *_: Any,
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # asked for once: where blocks are recomputed, it is made anew
    *inputs, C_0, n_0, m_0, norm, skip, down, C, n = saved[:19]
    kept, reset = saved[19:], inputs[-1]
    on_state = not (dC_T is None and dn_T is None and dm_T is None)
    dy = torch.zeros_like(inputs[0]) if dy is None else dy.contiguous()
    dC_T = torch.zeros_like(C) if dC_T is None else dC_T.contiguous()
    dn_T = torch.zeros_like(n) if dn_T is None else dn_T.contiguous()
    initial = any(ctx.needs_input_grad[11:14])
    more_i = more_f = more_0 = None
    if on_state:
        log_i, log_f = kept[4:6]
        dm = torch.zeros_like(log_i)
        dm[..., -1] = of_final_m(C, n, dC_T, dn_T, dm_T)
        more = through_m(dm, log_i, log_f, m_0, reset)
        more_i, more_f, more_0 = (part.contiguous() for part in more)
    *grads, dC, dn, dnorm, dskip, ddown = torch.ops.openxlstm.mlstm_block_grad(
        *inputs, m_0, norm, skip, down, ctx.eps, ctx.chunk_size, *kept, dy, dC_T, dn_T,
        more_i, more_f, initial,
    )  # fmt: skip
    of_initial: tuple[Tensor | None, ...] = (None, None, None)
    if initial:
        dm_0 = (C_0 * dC).sum((-2, -1)) + (n_0 * dn).sum(-1)
        of_initial = dC, dn, dm_0 if more_0 is None else dm_0 + more_0
    of_inputs = present(grads, inputs[:-1])
    return *of_inputs, None, *of_initial, dnorm, dskip, ddown, None, None, None


def _grad_fake(*arguments: Any) -> tuple[Tensor, ...]:
    _, norm, skip, down = arguments[11:15]
    dC_T, dn_T = arguments[-5:-3]
    state = (torch.empty_like(part) for part in (dC_T, dn_T))
    output = (torch.empty_like(part) for part in (norm, skip, down))
    return *grad_fake(*arguments[:10]), *state, *output


register("mlstm_block", _fake, _setup, _backward, _grad_fake)
