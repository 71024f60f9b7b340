"""sLSTM, one equation per line (arXiv:2405.04517, section 2.2 and appendix A.2).

B batch · T time · NH heads · DH width of a head · gates in the order i, f, z, o

    c_t = f_t c_{t-1} + i_t z_t                                                        (8)
    n_t = f_t n_{t-1} + i_t                                                            (9)
    h_t = o_t c_t / n_t                                                               (10)
    z_t = tanh(z̃_t)   i_t = exp(ĩ_t)   f_t = σ(f̃_t) or exp(f̃_t)   o_t = σ(õ_t)   (11)-(14)

and (15)-(17), the stabilizer m: c and n are stored divided by exp(m). Their ratio h does not depend
on m, and every exponent is at most 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from openxlstm.states import SLSTMState


def initial_state(x: Tensor) -> SLSTMState:
    """The empty state for inputs x (B, T, NH, 4, DH), in x's dtype."""
    B, _, NH, _, DH = x.shape
    return SLSTMState(*(x.new_zeros(B, NH, DH) for _ in range(4)))


def step(
    x_t: Tensor, recurrent_weight: Tensor, state: SLSTMState, forget_gate: str = "sigmoid"
) -> SLSTMState:
    """One step; the output is the new state's h.

    Args:
        x_t: gate pre-activations from the input, bias included (B, NH, 4, DH).
        recurrent_weight: R, block-diagonal over the heads (NH, 4, DH, DH), [head, gate, out, in].
        state: each part (B, NH, DH).
        forget_gate: "sigmoid" or "exp".
    """
    h, c, n, m = state
    preact = x_t + torch.einsum("hgoi,bhi->bhgo", recurrent_weight, h)  # W x + R h + b
    i_preact, f_preact, z_preact, o_preact = preact.unbind(2)  # each (B, NH, DH)

    log_i = i_preact  #                                            i = exp(ĩ)         (12)
    log_f = F.logsigmoid(f_preact) if forget_gate == "sigmoid" else f_preact  #      (13)
    z = torch.tanh(z_preact)  #                                                      (11)
    o = torch.sigmoid(o_preact)  #                                                   (14)

    log_f = torch.where(n == 0, -torch.inf, log_f)  # an empty memory has no scale to keep
    m_new = torch.maximum(log_f + m, log_i)  #                                       (15)
    i = torch.exp(log_i - m_new)  #                                                  (16)
    f = torch.exp(log_f + m - m_new)  #                                              (17)

    c = f * c + i * z  #                                                              (8)
    n = f * n + i  #                                                                  (9)
    h = o * (c / n)  #                                                               (10)
    return SLSTMState(h, c, n, m_new)


def recurrent(
    x: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor | None = None,
    state: SLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    forget_gate: str = "sigmoid",
) -> tuple[Tensor, SLSTMState]:
    """The whole sequence, step by step.

    Args:
        x: input pre-activations (B, T, NH, 4, DH).
        recurrent_weight: (NH, 4, DH, DH), [head, gate, out, in].
        bias: (NH, 4, DH).
        state: where to start; None is empty.
        reset: (B, T) bool; the state is emptied before a step where it is true.
        forget_gate: "sigmoid" or "exp".

    Returns:
        h (B, T, NH, DH) and the state after the last step.
    """
    if bias is not None:
        x = x + bias
    state = initial_state(x) if state is None else state
    outputs = []
    for t in range(x.shape[1]):
        if reset is not None:
            empty = reset[:, t, None, None]
            state = SLSTMState(*(torch.where(empty, 0.0, part) for part in state))
        state = step(x[:, t], recurrent_weight, state, forget_gate)
        outputs.append(state.h)
    return torch.stack(outputs, dim=1), state
