"""The stabilizer m of an mLSTM for all steps at once, and gradients through m.

G heads of samples · T time

m is the one of the recurrent form, m_t = max(log_f_t + m_{t-1}, log_i_t). With F the running sum of
log_f, m_t = F_t + max(m_0, max over s ≤ t of (log_i_s - F_s)). A reset begins a new segment, whose
memory is empty and starts from m = 0. Everything is computed in float64, since the sums are long.
"""

import torch
from torch import Tensor


def segments(reset: Tensor, num_heads: int) -> Tensor:
    """Number of resets up to each step, per head (B·NH, T), from reset (B, T)."""
    return reset.cumsum(1).repeat_interleave(num_heads, dim=0)


def starts(segment: Tensor) -> Tensor:
    """Where a segment begins: the resets (G, T)."""
    return segment.diff(dim=-1, prepend=segment.new_zeros(segment.shape[0], 1)) > 0


def running_maximum(log_i: Tensor, log_f: Tensor, m_0: Tensor, segment: Tensor | None) -> Tensor:
    """m_t - F_t (G, T) from log gates (G, T) and m_0 (G,)."""
    best, _ = _winners(log_i, log_f, segment)
    with_start = torch.maximum(best, m_0.double()[:, None])
    return with_start if segment is None else torch.where(segment > 0, best, with_start)


def through_stabilizer(
    dm: Tensor, log_i: Tensor, log_f: Tensor, m_0: Tensor, segment: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of log_i, log_f (G, T) and m_0 (G,) from dm (G, T), the gradient of m itself.

    m_t is log_i_s + log_f_{s+1} + … + log_f_t for the step s that won the maximum. Where the
    initial memory (m_0) or the empty memory after a reset (0) won, it is that plus all log_f since.
    """
    G, T = dm.shape
    best, s = _winners(log_i, log_f, segment)
    from_start = m_0.double()[:, None] > best
    from_reset = torch.zeros_like(from_start)
    if segment is not None:
        from_start = from_start & (segment == 0)
        from_reset = (starts(segment) & (log_f > log_i)).gather(1, s)
    from_gate = ~(from_start | from_reset)
    dlog_i = torch.zeros_like(dm).scatter_add_(1, s, dm * from_gate)
    dm_0 = (dm * from_start).sum(1)
    # The sum of log_f begins after s, at the reset s itself, or at step 0.
    begin = torch.where(from_start, 0, s + from_gate)
    d_sum = dm.new_zeros(G, T + 1).scatter_add_(1, begin, -dm)
    d_sum[:, 1:] += dm
    return dlog_i, reverse_cumsum(d_sum)[:, 1:], dm_0


def reverse_cumsum(x: Tensor) -> Tensor:
    """Sums from each step to the last."""
    return x.flip(-1).cumsum(-1).flip(-1)


def _winners(log_i: Tensor, log_f: Tensor, segment: Tensor | None) -> tuple[Tensor, Tensor]:
    """The largest log_i_s - F_s up to each step, in its segment, and the step s (G, T)."""
    log_i, log_f = log_i.double(), log_f.double()
    log_m_s = _written(log_i, log_f, segment) - log_f.cumsum(-1)
    if segment is None:
        best, source = log_m_s.cummax(-1)
        return best, source
    # Each segment is lifted over those before it, so that earlier maxima cannot win in it.
    lift = segment * (_span(log_m_s) + 1)
    best, source = (log_m_s + lift).cummax(-1)
    return best - lift, source


def _written(log_i: Tensor, log_f: Tensor, segment: Tensor | None) -> Tensor:
    """The candidate of each step for m: log_i, or after a reset the decayed empty memory, log_f."""
    if segment is None:
        return log_i
    return torch.where(starts(segment), torch.maximum(log_i, log_f), log_i)


def _span(x: Tensor) -> Tensor:
    """Distance from the smallest to the largest finite value of each row."""
    finite = x.masked_fill(x.isinf(), 0.0)
    return finite.amax(-1, keepdim=True) - finite.amin(-1, keepdim=True)
