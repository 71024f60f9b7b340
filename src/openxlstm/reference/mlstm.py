"""mLSTM, one equation per line, in three forms (arXiv:2405.04517, section 2.3, appendix A.3).

B batch · NH heads · T time · DQK, DHV width of keys and values · L chunk size

    C_t = f_t C_{t-1} + i_t k_t v_tᵀ                            (19), transposed: key by value
    n_t = f_t n_{t-1} + i_t k_t                                 (20)
    h_t = C_tᵀ q_t / max(|n_tᵀ q_t|, 1)                         (21)

with q scaled by 1/√DQK, the input gate i = exp(log_i) and the forget gate f = exp(log_f), where
log_i = ĩ, and log_f = log σ(f̃) or f̃. C and n are stored divided by exp(m); the 1 in (21) then reads
exp(-m). m is a gauge: h does not depend on it, and states are compared as C·exp(m) and n·exp(m).

The three forms return the same h and the same state, including m.
"""

import torch
from torch import Tensor

from openxlstm.states import MLSTMState


def initial_state(q: Tensor, v: Tensor) -> MLSTMState:
    """The empty state for queries (B, NH, T, DQK) and values (B, NH, T, DHV)."""
    B, NH, _, DQK = q.shape
    return MLSTMState.empty(B, NH, DQK, v.shape[-1], dtype=q.dtype, device=q.device)


def one(m: Tensor) -> Tensor:
    """exp(-m), the 1 of (21) in units of exp(m); never 0, so that an empty memory gives h = 0."""
    return torch.exp(-m).clamp_min(torch.finfo(m.dtype).tiny)


def step(
    q_t: Tensor,
    k_t: Tensor,
    v_t: Tensor,
    log_i: Tensor,
    log_f: Tensor,
    state: MLSTMState,
    eps: float = 0.0,
) -> tuple[Tensor, MLSTMState]:
    """One step.

    Args:
        q_t, k_t: (B, NH, DQK). v_t: (B, NH, DHV). log_i, log_f: (B, NH).
        state: C (B, NH, DQK, DHV), n (B, NH, DQK), m (B, NH).
        eps: added to the denominator; 0 is exact.

    Returns:
        h (B, NH, DHV) and the state after the step.
    """
    C, n, m = state
    q_t = q_t * q_t.shape[-1] ** -0.5

    m_new = torch.maximum(log_f + m, log_i)
    f = torch.exp(log_f + m - m_new)
    i = torch.exp(log_i - m_new)

    C = f[..., None, None] * C + i[..., None, None] * k_t[..., :, None] * v_t[..., None, :]  # (19)
    n = f[..., None] * n + i[..., None] * k_t  #                                               (20)
    numerator = torch.einsum("bhkv,bhk->bhv", C, q_t)
    denominator = torch.maximum(torch.einsum("bhk,bhk->bh", n, q_t).abs(), one(m_new))
    h = numerator / (denominator + eps)[..., None]  #                                          (21)
    return h, MLSTMState(C, n, m_new)


def recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_i: Tensor,
    log_f: Tensor,
    state: MLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, MLSTMState]:
    """The whole sequence, step by step.

    Args:
        q, k: (B, NH, T, DQK). v: (B, NH, T, DHV). log_i, log_f: (B, NH, T).
        state: where to start; None is empty.
        reset: (B, T) bool; the state is emptied before a step where it is true.
        eps: added to the denominator; 0 is exact.

    Returns:
        h (B, NH, T, DHV) and the state after the last step.
    """
    C, n, m = initial_state(q, v) if state is None else state
    outputs = []
    for t in range(q.shape[2]):
        if reset is not None:
            empty = reset[:, t, None]
            C = torch.where(empty[..., None, None], 0.0, C)
            n = torch.where(empty[..., None], 0.0, n)
            m = torch.where(empty, 0.0, m)
        h, (C, n, m) = step(
            q[:, :, t], k[:, :, t], v[:, :, t], log_i[:, :, t], log_f[:, :, t],
            MLSTMState(C, n, m), eps,
        )  # fmt: skip
        outputs.append(h)
    return torch.stack(outputs, dim=2), MLSTMState(C, n, m)


def parallel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_i: Tensor,
    log_f: Tensor,
    state: MLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, MLSTMState]:
    """All steps at once, in time and memory that grow with T²; arguments as for `recurrent`.

    With F = cumsum(log_f), step t weighs what step s ≤ t wrote by exp(log_D[t, s]), where
    log_D[t, s] = F_t - F_s + log_i_s, and the initial memory by exp(F_t + m_0). Pairs with a reset
    between s and t are masked.
    """
    T = q.shape[2]
    C_0, n_0, m_0 = initial_state(q, v) if state is None else state
    q = q * q.shape[-1] ** -0.5
    reset = torch.zeros(q.shape[0], T, dtype=torch.bool) if reset is None else reset
    reset = reset.to(q.device)
    segment = reset.cumsum(1)  # (B, T) number of resets so far
    same = (segment[:, :, None] == segment[:, None, :])[:, None]  # (B, 1, T, T)
    first = (segment == 0)[:, None]  # (B, 1, T): the initial state is not reset yet
    causal = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()

    F = log_f.cumsum(-1)  # (B, NH, T)
    log_D = F[..., :, None] - F[..., None, :] + log_i[..., None, :]  # (B, NH, T, T)
    log_D = log_D.masked_fill(~(same & causal), -torch.inf)
    log_initial = (F + m_0[..., None]).masked_fill(~first, -torch.inf)  # (B, NH, T)

    # As in the recurrent form, a memory emptied by a reset starts at m = 0 and decays.
    log_empty = F[..., :, None] - F[..., None, :] + log_f[..., None, :]
    log_empty = log_empty.masked_fill(~(same & causal & reset[:, None, None, :]), -torch.inf)
    m = torch.maximum(log_D.amax(-1), torch.maximum(log_empty.amax(-1), log_initial))

    D = torch.exp(log_D - m[..., None])  # (B, NH, T, T)
    initial = torch.exp(log_initial - m)  # (B, NH, T)
    gated_scores = torch.einsum("bhtk,bhsk->bhts", q, k) * D
    numerator = torch.einsum("bhts,bhsv->bhtv", gated_scores, v)
    numerator = numerator + initial[..., None] * torch.einsum("bhkv,bhtk->bhtv", C_0, q)
    normalizer = gated_scores.sum(-1) + initial * torch.einsum("bhk,bhtk->bht", n_0, q)
    denominator = torch.maximum(normalizer.abs(), one(m))
    h = numerator / (denominator + eps)[..., None]

    k_end = D[..., -1, :, None] * k  # each step's share of the final state
    C = initial[..., -1, None, None] * C_0 + torch.einsum("bhsk,bhsv->bhkv", k_end, v)
    n = initial[..., -1, None] * n_0 + k_end.sum(2)
    return h, MLSTMState(C, n, m[..., -1])


def chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_i: Tensor,
    log_f: Tensor,
    state: MLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    eps: float = 0.0,
    chunk_size: int = 64,
) -> tuple[Tensor, MLSTMState]:
    """Parallel inside a chunk, recurrent from chunk to chunk; arguments as for `recurrent`.

    The time grows with T·chunk_size. Any T works with any chunk size.
    """
    state = initial_state(q, v) if state is None else state
    outputs = []
    for start in range(0, q.shape[2], chunk_size):
        chunk = slice(start, start + chunk_size)
        h, state = parallel(
            q[:, :, chunk], k[:, :, chunk], v[:, :, chunk], log_i[:, :, chunk], log_f[:, :, chunk],
            state, reset=None if reset is None else reset[:, chunk], eps=eps,
        )  # fmt: skip
        outputs.append(h)
    return torch.cat(outputs, dim=2), state
