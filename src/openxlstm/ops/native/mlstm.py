"""mLSTM on the native CPU backend (`cpu/mlstm_kernel.h`), and its gradients."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.native.backend import MAX_CHUNK, contiguous, dense_rows, needs_saving, register
from openxlstm.ops.plain.mlstm import best_chunk_size
from openxlstm.ops.plain.stabilizer import segments, through_stabilizer
from openxlstm.reference.mlstm import initial_state, one
from openxlstm.states import MLSTMState


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
    inputs = (*map(dense_rows, (q, k, v)), log_i.contiguous(), log_f.contiguous())
    initial = tuple(part.contiguous() for part in state)
    save = needs_saving(*inputs, *initial)
    L = min(MAX_CHUNK, chunk_size or best_chunk_size(q.shape[-1], v.shape[-1]))
    if not torch.compiler.is_compiling():  # there it would fix T, which may be any number
        L = min(L, q.shape[2])
    h, C, n, m, *_ = torch.ops.openxlstm.mlstm(*inputs, *initial, contiguous(reset), eps, L, save)
    return h, MLSTMState(C, n, m)


def _fake(given: Any) -> tuple[Tensor, ...]:
    q, (B, NH, T, DQK), DHV = given.q, given.q.shape, given.v.shape[-1]
    NC = -(-T // given.chunk_size)
    saved = (B, NH, NC, DQK, DHV), (B, NH, NC, DQK), (B, NH, T), (B, NH, T)
    return (
        q.new_empty(B, NH, T, DHV),
        *(torch.empty_like(part) for part in (given.C_0, given.n_0, given.m_0)),
        *(q.new_empty(sizes if given.save else (0,) * len(sizes)) for sizes in saved),
    )


def _backward(saved: Any, upstream: Any, needs_grad: Any) -> dict[str, Tensor | None]:
    *operands, C_0, n_0, C, n = saved
    log_i, log_f, m_0, reset, eps = saved.log_i, saved.log_f, saved.m_0, saved.reset, saved.eps
    on_state = any(grad is not None for grad in (upstream.C, upstream.n, upstream.m))
    dh = torch.zeros_like(saved.h) if upstream.h is None else dense_rows(upstream.h)
    dC_T = torch.zeros_like(C) if upstream.C is None else upstream.C.contiguous()
    dn_T = torch.zeros_like(n) if upstream.n is None else upstream.n.contiguous()
    initial = needs_grad.C_0 or needs_grad.n_0 or needs_grad.m_0
    dq, dk, dv, dlog_i, dlog_f, dC, dn = torch.ops.openxlstm.mlstm_grad(
        *operands, dh=dh, dC_T=dC_T, dn_T=dn_T, initial=initial
    )
    dm_0 = (C_0 * dC).sum((-2, -1)) + (n_0 * dn).sum(-1)

    # h depends on m only if eps is not 0.
    dm = torch.zeros_like(saved.m_steps)
    if eps:
        denominator = torch.maximum(saved.normalizer.abs(), one(saved.m_steps)) + eps
        dm -= eps * (dh * saved.h).sum(-1) / denominator
    if on_state:
        dm[..., -1] += grad_of_final_m(C, n, dC_T, dn_T, upstream.m)
    if eps or on_state:
        more_i, more_f, more_0 = through_m(dm, log_i, log_f, m_0, reset)
        dlog_i, dlog_f, dm_0 = dlog_i + more_i, dlog_f + more_f, dm_0 + more_0
    return {
        "q": dq, "k": dk, "v": dv, "log_i": dlog_i, "log_f": dlog_f, "C_0": dC, "n_0": dn,
        "m_0": dm_0,
    }  # fmt: skip


def grad_of_final_m(
    C: Tensor, n: Tensor, dC_T: Tensor, dn_T: Tensor, dm_T: Tensor | None
) -> Tensor:
    """The gradient of the final m, on which C and n depend: they are stored over exp(m)."""
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


def _grad_fake(given: Any) -> tuple[Tensor, ...]:
    return (
        *(_empty_like(x) for x in (given.q, given.k, given.v)),
        *(x.new_empty(x.shape) for x in (given.log_i, given.log_f)),
        *(torch.empty_like(x) for x in (given.dC_T, given.dn_T)),
    )


def _empty_like(x: Tensor) -> Tensor:
    """A tensor of x's shape, whose heads lie inside a step where those of x do."""
    B, NH, T, D = x.shape
    inside = x.stride(1) < x.stride(2)
    return x.new_empty(B, T, NH, D).transpose(1, 2) if inside else x.new_empty(x.shape)


register(
    "mlstm",
    ("q", "k", "v", "log_i", "log_f", "C_0", "n_0", "m_0", "reset", "eps", "chunk_size", "save"),
    fake=_fake,
    backward=_backward,
    grad_fake=_grad_fake,
    also_saved=("C_0", "n_0", "C", "n"),
)
