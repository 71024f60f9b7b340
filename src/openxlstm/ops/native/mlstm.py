"""mLSTM on the native CPU backend (`cpu/mlstm_kernel.h`), and its gradients."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.native.backend import register, rows, saves
from openxlstm.ops.plain.mlstm import best_chunk_size
from openxlstm.ops.plain.stabilizer import segments, through_stabilizer
from openxlstm.reference.mlstm import initial_state, one
from openxlstm.states import MLSTMState

MAX_CHUNK = 256
"""The most steps that a chunk may have; more would leave the cache anyway."""


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_i: Tensor,
    log_f: Tensor,
    state: MLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    eps: float = 0.0,
    chunk_size: int | None = None,
) -> tuple[Tensor, MLSTMState]:
    """`openxlstm.ops.mlstm` for inputs that it has checked."""
    state = initial_state(q, v) if state is None else state
    inputs = (rows(q), rows(k), rows(v), log_i.contiguous(), log_f.contiguous())
    initial = tuple(part.contiguous() for part in state)
    save = saves(*inputs, *initial)
    L = min(MAX_CHUNK, chunk_size or best_chunk_size(q.shape[-1], v.shape[-1]))
    if not torch.compiler.is_compiling():  # there it would fix T, which may be any number
        L = min(L, q.shape[2])
    h, C, n, m, *_ = torch.ops.openxlstm.mlstm(
        *inputs,
        *initial,
        None if reset is None else reset.contiguous(),
        eps,
        L,
        save,
    )
    return h, MLSTMState(C, n, m)


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_i: Tensor,
    log_f: Tensor,
    C_0: Tensor,
    n_0: Tensor,
    m_0: Tensor,
    reset: Tensor | None,
    eps: float,
    chunk_size: int,
    save: bool,
) -> tuple[Tensor, ...]:
    B, NH, T, DQK = q.shape
    DHV, NC = v.shape[-1], -(-T // chunk_size)
    saved = ((B, NH, NC, DQK, DHV), (B, NH, NC, DQK), (B, NH, T), (B, NH, T))
    return (
        q.new_empty(B, NH, T, DHV),
        *(torch.empty_like(part) for part in (C_0, n_0, m_0)),
        *(q.new_empty(sizes if save else (0,) * len(sizes)) for sizes in saved),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps, ctx.chunk_size, _ = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any,
    dh: Tensor | None,
    dC_T: Tensor | None,
    dn_T: Tensor | None,
    dm_T: Tensor | None,
    *_: Any,
) -> tuple[Tensor | None, ...]:
    q, k, v, log_i, log_f, C_0, n_0, m_0, reset, h, C, n, *saved = ctx.saved_tensors
    _, *saved = saved  # m
    m_steps, normalizer = saved[-2:]
    on_state = not (dC_T is None and dn_T is None and dm_T is None)
    dh = torch.zeros_like(h) if dh is None else rows(dh)
    dC_T = torch.zeros_like(C) if dC_T is None else dC_T.contiguous()
    dn_T = torch.zeros_like(n) if dn_T is None else dn_T.contiguous()
    dq, dk, dv, dlog_i, dlog_f, dC, dn = torch.ops.openxlstm.mlstm_grad(
        q, k, v, log_i, log_f, m_0, reset, ctx.eps, ctx.chunk_size, h, *saved, dh, dC_T, dn_T,
        any(ctx.needs_input_grad[5:8]),
    )  # fmt: skip
    dm_0 = (C_0 * dC).sum((-2, -1)) + (n_0 * dn).sum(-1)

    # h does not depend on m but for eps.
    dm = torch.zeros_like(m_steps)
    if ctx.eps:
        denominator = torch.maximum(normalizer.abs(), one(m_steps)) + ctx.eps
        dm -= ctx.eps * (dh * h).sum(-1) / denominator
    if on_state:
        dm[..., -1] += of_final_m(C, n, dC_T, dn_T, dm_T)
    if ctx.eps or on_state:
        more_i, more_f, more_0 = through_m(dm, log_i, log_f, m_0, reset)
        dlog_i, dlog_f, dm_0 = dlog_i + more_i, dlog_f + more_f, dm_0 + more_0
    return dq, dk, dv, dlog_i, dlog_f, dC, dn, dm_0, None, None, None, None


def of_final_m(C: Tensor, n: Tensor, dC_T: Tensor, dn_T: Tensor, dm_T: Tensor | None) -> Tensor:
    """The gradient of the final m: C and n are stored over exp(m)."""
    dm = -(C * dC_T).sum((-2, -1)) - (n * dn_T).sum(-1)
    return dm if dm_T is None else dm + dm_T


def through_m(
    dm: Tensor, log_i: Tensor, log_f: Tensor, m_0: Tensor, reset: Tensor | None
) -> list[Tensor]:
    """Gradients of log_i, log_f and m_0 from that of m (B, NH, T)."""
    segment = None if reset is None else segments(reset, m_0.shape[1])
    grads = through_stabilizer(
        dm.flatten(0, 1), log_i.flatten(0, 1), log_f.flatten(0, 1), m_0.flatten(), segment
    )
    return [grad.view_as(x) for grad, x in zip(grads, (log_i, log_f, m_0), strict=True)]


def _grad_fake(
    q: Tensor, k: Tensor, v: Tensor, log_i: Tensor, log_f: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    dC_T, dn_T = rest[-3:-1]
    like = (_empty_like(x) for x in (q, k, v))
    gates = (x.new_empty(x.shape) for x in (log_i, log_f))
    return (*like, *gates, torch.empty_like(dC_T), torch.empty_like(dn_T))


def _empty_like(x: Tensor) -> Tensor:
    """A tensor of x's shape, whose heads lie inside a step where those of x do."""
    B, NH, T, D = x.shape
    inside = x.stride(1) < x.stride(2)
    return x.new_empty(B, T, NH, D).transpose(1, 2) if inside else x.new_empty(x.shape)


register("mlstm", _fake, _setup, _backward, _grad_fake)
