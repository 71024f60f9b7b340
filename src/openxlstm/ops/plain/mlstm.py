"""mLSTM in plain PyTorch for every device: chunkwise, with a hand-written backward.

B batch · NH heads, G = B·NH · T time = NC chunks of L steps, N = G·NC · DQK, DHV widths

Inside a chunk all pairs of steps are weighted at once, as in attention; the state is carried from
chunk to chunk. With b the sum of log_f from the chunk's start to a step,

    log_D[t, s] = b_t - b_s + log_i_s           weight of step s in the output of step t, s ≤ t
    b_t + m_prev                                weight of the state before the chunk
    b_last - b_s + log_i_s                      weight of step s in the state after the chunk

each less the stabilizer m of the step that it arrives at. Gates are one number per head and step,
so float64 sums of them cost little; matrices have the dtype of the inputs.

The backward is the true gradient. If eps is 0, h does not depend on m, and the backward treats m as
a constant. `stabilizer.py` adds the gradients that go through m: from eps, and from a loss on the
final state.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from openxlstm.ops.dispatch import without_autocast
from openxlstm.ops.plain.stabilizer import (
    reverse_cumsum,
    running_maximum,
    segments,
    starts,
    through_stabilizer,
)
from openxlstm.reference.mlstm import initial_state, one, step
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
    """`openxlstm.ops.mlstm` for checked inputs."""
    T = q.shape[2]
    if T == 1 and reset is None and not torch.is_grad_enabled():
        q_t, k_t, v_t, log_i, log_f = (x[:, :, 0] for x in (q, k, v, log_i, log_f))
        h, final = step(q_t, k_t, v_t, log_i, log_f, state or initial_state(q, v), eps)
        return h[:, :, None], final

    L = min(T, chunk_size or best_chunk_size(q.shape[-1], v.shape[-1]))
    num_chunks = -(-T // L)
    if chunk_size is None:
        L = -(-T // num_chunks)  # chunks of equal size need little padding
    padding = num_chunks * L - T
    if padding:  # steps that write nothing and forget nothing
        q, k, v = (F.pad(x, (0, 0, 0, padding)) for x in (q, k, v))
        log_i = F.pad(log_i, (0, padding), value=-torch.inf)
        log_f = F.pad(log_f, (0, padding))
        reset = None if reset is None else F.pad(reset, (0, padding))
    initial = (None, None, None) if state is None else state
    h, C, n, m = _Chunkwise.apply(q, k, v, log_i, log_f, *initial, reset, eps, L)  # pyright: ignore
    return h[:, :, :T], MLSTMState(C, n, m)


def best_chunk_size(DQK: int, DHV: int) -> int:
    """The chunk size that was fastest on CPUs: work grows with L in a chunk, with 1/L between."""
    widest = max(DQK, DHV)
    return 32 if widest <= 32 else 64 if widest < 128 else 96


class _Gates(NamedTuple):
    """Weights of all terms in the sums over steps; weights across a reset are 0."""

    row: Tensor
    """b_t - m_t (N, L): with `column`, the exponent of D."""
    column: Tensor
    """log_i_s - b_s (N, L)."""
    initial: Tensor
    """Weight of the chunk's initial state in each output (N, L)."""
    write: Tensor
    """Weight of each step in the chunk's final state (N, L)."""
    decay: Tensor
    """Weight of the chunk's initial state in its final state (G, NC)."""
    m: Tensor
    """Stabilizer (G, T)."""


def _gates(log_i: Tensor, log_f: Tensor, m_0: Tensor, segment: Tensor | None, L: int) -> _Gates:
    """All weights from the log gates (G, T), m_0 (G,) and the segment (G, T) of each step."""
    G, T = log_f.shape
    dtype, log_i, log_f = log_f.dtype, log_i.double(), log_f.double()
    sum_log_f = log_f.cumsum(-1)
    m = (sum_log_f + running_maximum(log_i, log_f, m_0, segment)).to(dtype)

    chunked = (G, T // L, L)
    m_t = m.view(chunked).double()
    m_next = m_t[..., -1]
    m_prev = torch.cat([m_0.double()[:, None], m_next[:, :-1]], dim=1)
    start = (sum_log_f - log_f).view(chunked)[..., :1]
    b = sum_log_f.view(chunked) - start
    row, column = b - m_t, log_i.view(chunked) - b
    initial = b + m_prev[..., None] - m_t
    write = b[..., -1:] + column - m_next[..., None]
    decay = b[..., -1] + m_prev - m_next
    if segment is not None:
        s = segment.view(chunked)
        before = torch.cat([s.new_zeros(G, 1), s[:, :-1, -1]], dim=1)[..., None]
        initial = initial.masked_fill(s != before, -torch.inf)
        write = write.masked_fill(s != s[..., -1:], -torch.inf)
        decay = decay.masked_fill(s[..., -1] != before[..., 0], -torch.inf)
    row, column = row.to(dtype).view(-1, L), column.to(dtype).view(-1, L)
    initial, write = initial.exp().to(dtype).view(-1, L), write.exp().to(dtype).view(-1, L)
    return _Gates(row, column, initial, write, decay.exp().to(dtype), m)


def _decay_matrix(gates: _Gates, segment: Tensor | None) -> Tensor:
    """D = exp(log_D - m_t) for s ≤ t in one segment, else 0 (N, L, L)."""
    D = (gates.row[:, :, None] + gates.column[:, None, :]).exp_().tril_()
    if segment is not None:
        s = segment.view(-1, D.shape[-1])
        D.masked_fill_(s[:, :, None] != s[:, None, :], 0.0)
    return D


class _Chunkwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_i: Tensor,
        log_f: Tensor,
        C_0: Tensor | None,
        n_0: Tensor | None,
        m_0: Tensor | None,
        reset: Tensor | None,
        eps: float,
        L: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        B, NH, T, DQK = q.shape
        DHV, G, NC = v.shape[-1], B * NH, T // L
        scale = DQK**-0.5
        q, k = q.reshape(-1, L, DQK), k.reshape(-1, L, DQK)
        v = v.reshape(-1, L, DHV)
        log_i, log_f = (x.reshape(G, T).contiguous() for x in (log_i, log_f))
        segment = None
        if reset is not None:
            segment = segments(reset, NH)
        m_0 = log_f.new_zeros(G) if m_0 is None else m_0.reshape(G)
        gates = _gates(log_i, log_f, m_0, segment, L)

        # The state before each chunk, and after the last.
        k_written = k * gates.write[..., None]
        C = q.new_empty(G, NC + 1, DQK, DHV)
        n = q.new_empty(G, NC + 1, DQK)
        C[:, 0] = 0.0 if C_0 is None else C_0.reshape(G, DQK, DHV)
        n[:, 0] = 0.0 if n_0 is None else n_0.reshape(G, DQK)
        written = torch.bmm(k_written.mT, v).view(G, NC, DQK, DHV)
        n_written = k_written.sum(1).view(G, NC, DQK)
        for j in range(NC):
            decay = gates.decay[:, j, None]
            C[:, j + 1].copy_(written[:, j]).addcmul_(decay[..., None], C[:, j])
            n[:, j + 1].copy_(n_written[:, j]).addcmul_(decay, n[:, j])

        # Within the chunk, and from the state before it.
        D = _decay_matrix(gates, segment).mul_(scale)
        gated_scores = torch.bmm(q, k.mT).mul_(D)
        h = torch.bmm(gated_scores, v)
        normalizer = gated_scores.sum(-1)
        ctx.reads_state = NC > 1 or C_0 is not None  # else it is empty: half of the work is saved
        if ctx.reads_state:
            C_prev, n_prev = C[:, :-1].reshape(-1, DQK, DHV), n[:, :-1].reshape(-1, 1, DQK)
            q_decayed = q * (gates.initial * scale)[..., None]
            h.baddbmm_(q_decayed, C_prev)
            normalizer.add_((q_decayed * n_prev).sum(-1))
        floor = one(gates.m).view(-1, L)
        denominator = torch.maximum(normalizer.abs(), floor).add_(eps)
        h.div_(denominator[..., None])

        sign = torch.where(normalizer.abs() > floor, normalizer.sign(), 0.0)
        ctx.save_for_backward(
            q, k, v, log_i, log_f, m_0, segment, C, n, D, gated_scores, h, denominator, sign, *gates
        )
        ctx.eps = eps
        ctx.shape = (B, NH, T, DQK, DHV, L)
        ctx.set_materialize_grads(False)
        # Copies, since a view would keep the states before all chunks alive with the last.
        return (
            h.view(B, NH, T, DHV),
            C[:, -1].reshape(B, NH, DQK, DHV).clone(),
            n[:, -1].reshape(B, NH, DQK).clone(),
            gates.m[:, -1].reshape(B, NH).clone(),
        )

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dh: Tensor | None, dC_T: Tensor | None, dn_T: Tensor | None, dm_T: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        q, k, v, log_i, log_f, m_0, segment, C, n, D, gated_scores, h, denominator, sign, *rest = (
            ctx.saved_tensors
        )
        gates = _Gates(*rest)
        B, NH, T, DQK, DHV, L = ctx.shape
        G, NC = B * NH, T // L
        writes_state = NC > 1 or not (dC_T is None and dn_T is None)

        # h = numerator / denominator
        dh = h.new_zeros(h.shape) if dh is None else dh.reshape(h.shape)
        d_numerator = dh / denominator[..., None]
        d_denominator = (h * d_numerator).sum(-1).neg_()
        d_normalizer = (d_denominator * sign)[..., None]

        # Within the chunk.
        d_scores = torch.baddbmm(d_normalizer, d_numerator, v.mT).mul_(D)
        dv = torch.bmm(gated_scores.mT, d_numerator)
        dk = torch.bmm(d_scores.mT, q)
        dq = torch.bmm(d_scores, k)

        # From the state before the chunk.
        dC, dn = torch.zeros_like(C), torch.zeros_like(n)
        if ctx.reads_state:
            C_prev, n_prev = C[:, :-1].reshape(-1, DQK, DHV), n[:, :-1].reshape(-1, 1, DQK)
            initial = (gates.initial * DQK**-0.5)[..., None]
            dq_decayed = torch.bmm(d_numerator, C_prev.mT).addcmul_(d_normalizer, n_prev)
            dq.addcmul_(dq_decayed, initial)
            q_decayed = q * initial
            dC[:, :-1] = torch.bmm(q_decayed.mT, d_numerator).view(G, NC, DQK, DHV)
            dn[:, :-1] = (q_decayed * d_normalizer).sum(1).view(G, NC, DQK)

        # From the last chunk's state back to the first's.
        dC[:, -1] = 0.0 if dC_T is None else dC_T.reshape(G, DQK, DHV)
        dn[:, -1] = 0.0 if dn_T is None else dn_T.reshape(G, DQK)
        for j in reversed(range(NC)):
            decay = gates.decay[:, j, None]
            dC[:, j].addcmul_(decay[..., None], dC[:, j + 1])
            dn[:, j].addcmul_(decay, dn[:, j + 1])

        # Into what the chunk wrote, and how it let the state before it decay.
        d_sum_log_f = q.new_zeros(G * NC)
        if writes_state:
            dC_next, dn_next = dC[:, 1:].reshape(-1, DQK, DHV), dn[:, 1:].reshape(-1, 1, DQK)
            write = gates.write[..., None]
            k_written = k * write
            dk_written = torch.bmm(v, dC_next.mT).add_(dn_next)
            dv.baddbmm_(k_written, dC_next)
            dk.addcmul_(dk_written, write)
            d_decay = (C[:, :-1] * dC[:, 1:]).sum((-2, -1)) + (n[:, :-1] * dn[:, 1:]).sum(-1)
            d_sum_log_f = (gates.decay * d_decay).view(-1) + (k_written * dk_written).sum((-2, -1))

        # A gate is a factor of all that it lets through: its gradient is what came of that.
        dlog_i = (k * dk).sum(-1)  # (N, L)
        db = (q * dq).sum(-1) - dlog_i
        db[:, -1] += d_sum_log_f
        dlog_f = reverse_cumsum(db).view(G, T)
        if segment is not None:  # nothing passes a reset; without this a rounding error would
            dlog_f = dlog_f.masked_fill(starts(segment), 0.0)
        dlog_i = dlog_i.view(G, T)
        dm_0 = (C[:, 0] * dC[:, 0]).sum((-2, -1)) + (n[:, 0] * dn[:, 0]).sum(-1)

        dm = ctx.eps * d_denominator.view(G, T) if ctx.eps else None
        if not (dC_T is None and dn_T is None and dm_T is None):
            dm = h.new_zeros(G, T) if dm is None else dm
            dm[:, -1] -= (C[:, -1] * dC[:, -1]).sum((-2, -1)) + (n[:, -1] * dn[:, -1]).sum(-1)
            dm[:, -1] += 0.0 if dm_T is None else dm_T.reshape(G)
        if dm is not None:
            gate_grads = through_stabilizer(dm, log_i, log_f, m_0, segment)
            dlog_i, dlog_f, dm_0 = (
                x + y for x, y in zip((dlog_i, dlog_f, dm_0), gate_grads, strict=True)
            )
        initial_grads: tuple[Tensor | None, ...] = (None, None, None)
        if any(ctx.needs_input_grad[5:8]):
            initial_grads = (
                dC[:, 0].reshape(B, NH, DQK, DHV), dn[:, 0].reshape(B, NH, DQK), dm_0.view(B, NH),
            )  # fmt: skip
        return (
            dq.view(B, NH, T, DQK),
            dk.view(B, NH, T, DQK),
            dv.view(B, NH, T, DHV),
            dlog_i.view(B, NH, T),
            dlog_f.view(B, NH, T),
            *initial_grads,
            None,
            None,
            None,
        )
