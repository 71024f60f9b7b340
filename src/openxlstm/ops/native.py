"""The native CPU backend: the operators of `cpu/`, with what torch needs to see through them.

Importing `_native` registers `torch.ops.openxlstm.slstm`, `.mlstm` and their `…_grad`; here they
get their autograd formulas and, for tracing, the shapes of what they return.
"""

import importlib
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.dispatch import Request
from openxlstm.ops.stabilizer import segments, through_stabilizer
from openxlstm.ops.torch_mlstm import best_chunk_size
from openxlstm.reference.mlstm import initial_state, one
from openxlstm.states import MLSTMState, SLSTMState

MAX_CHUNK = 256
"""The most steps that a chunk may have; more would leave the cache anyway."""


def refuses(request: Request) -> str | None:
    """Why the native backend cannot run a request, or None."""
    if request.device != "cpu":
        return f"it runs on the CPU, not on {request.device}"
    if request.dtype == torch.float64:
        return "it computes in float32, and float64 was given"
    return missing()


@cache
def missing() -> str | None:
    """Why the extension is not there, or None after it was loaded."""
    try:
        importlib.import_module("openxlstm.ops._native")
    except ImportError as error:
        note = files("openxlstm.ops") / "_native_missing.txt"
        if note.is_file():
            return note.read_text(encoding="utf-8").strip()
        return f"its extension could not be loaded: {error}"
    _register()
    return None


def slstm(
    x: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor | None = None,
    state: SLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    forget_gate: str = "sigmoid",
) -> tuple[Tensor, SLSTMState]:
    """`openxlstm.ops.slstm` for inputs that it has checked."""
    if bias is not None:
        x = x + bias
    B, _, NH, _, DH = x.shape
    stacked = x.new_zeros(4, B, NH, DH) if state is None else torch.stack(state)
    save = torch.is_grad_enabled() and any(
        part.requires_grad for part in (x, recurrent_weight, stacked)
    )
    h, final, _ = torch.ops.openxlstm.slstm(
        _rows(x),
        recurrent_weight.contiguous(),
        stacked,
        None if reset is None else reset.contiguous(),
        forget_gate == "exp",
        save,
    )
    return h, SLSTMState(*final.unbind(0))


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
    inputs = (_rows(q), _rows(k), _rows(v), log_i.contiguous(), log_f.contiguous())
    initial = tuple(part.contiguous() for part in state)
    save = torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, *initial))
    h, C, n, m, *_ = torch.ops.openxlstm.mlstm(
        *inputs,
        *initial,
        None if reset is None else reset.contiguous(),
        eps,
        min(q.shape[2], MAX_CHUNK, chunk_size or best_chunk_size(q.shape[-1], v.shape[-1])),
        save,
    )
    return h, MLSTMState(C, n, m)


def _rows(x: Tensor) -> Tensor:
    """x itself where its last dimension is dense, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _slstm_fake(
    x: Tensor, R: Tensor, state: Tensor, reset: Tensor | None, exp_gate: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, NH, _, DH = x.shape
    saved = x.new_empty((B, T, NH, 7, DH) if save else (0, 0, 0, 0, 0))
    return x.new_empty(B, T, NH, DH), torch.empty_like(state), saved


def _slstm_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, R, state, reset, _, _ = inputs
    ctx.save_for_backward(R, state, reset, *output)
    ctx.set_materialize_grads(False)


def _slstm_backward(
    ctx: Any, dh: Tensor | None, d_final: Tensor | None, _: Any
) -> tuple[Tensor | None, ...]:
    R, state, reset, h, final, saved = ctx.saved_tensors
    dh = torch.zeros_like(h) if dh is None else dh.contiguous()
    # h does not depend on m. A loss on the final state may: c and n are its content over exp(m).
    if d_final is None:
        d_final = torch.zeros_like(final)
    else:
        dm = d_final[3] - final[1] * d_final[1] - final[2] * d_final[2]
        d_final = torch.cat([d_final[:3], dm[None]])
    dx, d_state = torch.ops.openxlstm.slstm_grad(R, state, reset, h, saved, dh, d_final)
    dm_0 = d_state[3] + state[1] * d_state[1] + state[2] * d_state[2]
    h_before = torch.cat([state[:1].transpose(0, 1), h[:, :-1]], dim=1)
    if reset is not None:
        h_before = h_before.masked_fill(reset[..., None, None], 0.0)
    by_head = dx.flatten(3).flatten(0, 1).permute(1, 2, 0)  # (NH, 4·DH, B·T)
    dR = torch.bmm(by_head, h_before.flatten(0, 1).transpose(0, 1)).view(R.shape)
    return dx, dR, torch.cat([d_state[:3], dm_0[None]]), None, None, None


def _mlstm_fake(
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


def _mlstm_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps, ctx.chunk_size, _ = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _mlstm_backward(
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
    dh = torch.zeros_like(h) if dh is None else _rows(dh)
    dC_T = torch.zeros_like(C) if dC_T is None else dC_T.contiguous()
    dn_T = torch.zeros_like(n) if dn_T is None else dn_T.contiguous()
    dq, dk, dv, dlog_i, dlog_f, dC, dn = torch.ops.openxlstm.mlstm_grad(
        q, k, v, log_i, log_f, m_0, reset, ctx.eps, ctx.chunk_size, h, *saved, dh, dC_T, dn_T
    )
    dm_0 = (C_0 * dC).sum((-2, -1)) + (n_0 * dn).sum(-1)

    # h does not depend on m but for eps. A loss on the final state may: C and n are over exp(m).
    dm = torch.zeros_like(m_steps)
    if ctx.eps:
        denominator = torch.maximum(normalizer.abs(), one(m_steps)) + ctx.eps
        dm -= ctx.eps * (dh * h).sum(-1) / denominator
    if on_state:
        dm[..., -1] -= (C * dC_T).sum((-2, -1)) + (n * dn_T).sum(-1)
        dm[..., -1] += 0.0 if dm_T is None else dm_T
    if ctx.eps or on_state:
        segment = None if reset is None else segments(reset, q.shape[1])
        more_i, more_f, more_0 = through_stabilizer(
            dm.flatten(0, 1), log_i.flatten(0, 1), log_f.flatten(0, 1), m_0.flatten(), segment
        )
        dlog_i = dlog_i + more_i.view_as(dlog_i)
        dlog_f = dlog_f + more_f.view_as(dlog_f)
        dm_0 = dm_0 + more_0.view_as(dm_0)
    return dq, dk, dv, dlog_i, dlog_f, dC, dn, dm_0, None, None, None, None


def _slstm_grad_fake(
    R: Tensor, state: Tensor, reset: Tensor | None, h: Tensor, *rest: Tensor
) -> tuple[Tensor, Tensor]:
    B, T, NH, DH = h.shape
    return h.new_empty(B, T, NH, 4, DH), torch.empty_like(state)


def _mlstm_grad_fake(
    q: Tensor, k: Tensor, v: Tensor, log_i: Tensor, log_f: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    dC_T, dn_T = rest[-2:]
    dense = (x.new_empty(x.shape) for x in (q, k, v, log_i, log_f))
    return (*dense, torch.empty_like(dC_T), torch.empty_like(dn_T))


def _register() -> None:
    register_fake, register_autograd = torch.library.register_fake, torch.library.register_autograd
    register_fake("openxlstm::slstm", _slstm_fake)
    register_fake("openxlstm::slstm_grad", _slstm_grad_fake)
    register_fake("openxlstm::mlstm", _mlstm_fake)
    register_fake("openxlstm::mlstm_grad", _mlstm_grad_fake)
    register_autograd("openxlstm::slstm", _slstm_backward, setup_context=_slstm_setup)
    register_autograd("openxlstm::mlstm", _mlstm_backward, setup_context=_mlstm_setup)
