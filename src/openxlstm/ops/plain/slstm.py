"""sLSTM in plain PyTorch for every device: a scan with a hand-written backward.

B batch · T time · NH heads · DH width of a head · gates in the order i, f, z, o

Each step depends on the one before, so speed comes from cheap steps: no autograd graph, no
allocation, one batched matmul over the heads, and the layout (T, NH, B, ·), in which a step is one
contiguous slice. The forward saves the activations. The backward computes the factors of all steps
at once, which leaves six small operations to its loop.

h does not depend on the stabilizer m, and the backward treats m as a constant. Only a loss on the
final state depends on m itself; its gradient follows the branch that won each maximum.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from openxlstm.ops.dispatch import without_autocast
from openxlstm.reference.slstm import initial_state, step
from openxlstm.states import SLSTMState


def slstm(
    x: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor | None = None,
    state: SLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    forget_gate: str = "sigmoid",
) -> tuple[Tensor, SLSTMState]:
    """`openxlstm.ops.slstm` for checked inputs."""
    if bias is not None:
        x = x + bias
    if state is None:
        state = initial_state(x)
    if x.shape[1] == 1 and reset is None and not torch.is_grad_enabled():
        state = step(x[:, 0], recurrent_weight, state, forget_gate)
        return state.h[
            :, None
        ].clone(), state  # so that changing h in place does not change the state
    output, *final = _Scan.apply(x, recurrent_weight, *state, reset, forget_gate)  # pyright: ignore
    return output, SLSTMState(*final)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        recurrent_weight: Tensor,
        h_0: Tensor,
        c_0: Tensor,
        n_0: Tensor,
        m_0: Tensor,
        reset: Tensor | None,
        forget_gate: str,
    ) -> tuple[Tensor, ...]:
        B, T, NH, _, DH = x.shape
        # (T, NH, B, 4·DH): first the pre-activations, gate by gate overwritten with what they do.
        by_gate = x.permute(1, 2, 0, 3, 4).clone(memory_format=torch.contiguous_format)
        gates = by_gate.view(T, NH, B, 4 * DH)
        R = recurrent_weight.reshape(NH, 4 * DH, DH).mT.contiguous()  # (NH, in, gate·out)
        keep = None if reset is None else (~reset).T.to(x.dtype)[:, None, :, None]  # (T, 1, B, 1)

        h, c, n, m = (x.new_empty(T + 1, NH, B, DH) for _ in range(4))
        for states, initial in ((h, h_0), (c, c_0), (n, n_0), (m, m_0)):
            states[0] = initial.transpose(0, 1)
        log_f = x.new_empty(T, NH, B, DH) if forget_gate == "sigmoid" else None

        # x_[t] is step t of x: unbinding once costs less than indexing T times.
        gates_, i_and_f = gates.unbind(0), by_gate[:, :, :, :2].unbind(0)
        i_, f_, z_, o_ = (gate.unbind(0) for gate in by_gate.unbind(3))
        h_, c_, n_, m_ = (states.unbind(0) for states in (h, c, n, m))
        log_f_ = f_ if log_f is None else log_f.unbind(0)
        keep_ = None if keep is None else keep.unbind(0)
        for t in range(T):
            i, f, z, o = i_[t], f_[t], z_[t], o_[t]
            h_prev, c_prev, n_prev = h_[t], c_[t], n_[t]
            h_t, c_t, n_t, m_t = h_[t + 1], c_[t + 1], n_[t + 1], m_[t + 1]
            if keep_ is not None:
                h_prev, c_prev, n_prev = (x * keep_[t] for x in (h_prev, c_prev, n_prev))
            gates_[t].baddbmm_(h_prev, R)  # W x + R h + b
            z.tanh_()
            o.sigmoid_()
            if log_f is not None:
                F.logsigmoid(f, out=log_f_[t])  # pyright: ignore[reportCallIssue]
                f.copy_(log_f_[t])
            f.add_(m_[t])
            if t == 0 or keep_ is not None:  # n ≥ 1 after a step: memory is empty only at a start
                f.masked_fill_(n_prev == 0, -torch.inf)
            torch.maximum(f, i, out=m_t)
            i_and_f[t].sub_(m_t.unsqueeze(2)).exp_()
            torch.mul(i, z, out=c_t).addcmul_(f, c_prev)
            torch.addcmul(i, f, n_prev, out=n_t)
            torch.div(c_t, n_t, out=h_t).mul_(o)

        ctx.save_for_backward(by_gate, log_f, R, h, c, n, m, keep)
        ctx.set_materialize_grads(False)
        # Copies: views, as B = 1 would give, would keep the states of all steps alive.
        output = h[1:].permute(2, 0, 1, 3).clone(memory_format=torch.contiguous_format)
        final = (x[T].transpose(0, 1) for x in (h, c, n, m))
        return (output, *(x.clone(memory_format=torch.contiguous_format) for x in final))

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        dh: Tensor | None,
        dh_T: Tensor | None,
        dc_T: Tensor | None,
        dn_T: Tensor | None,
        dm_T: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        by_gate, log_f, R, h, c, n, _, keep = ctx.saved_tensors
        T, NH, B, _, DH = by_gate.shape
        i, f, z, o = by_gate.unbind(3)
        h_prev, c_prev, n_prev = h[:-1], c[:-1], n[:-1]
        if keep is not None:
            h_prev, c_prev, n_prev = h_prev * keep, c_prev * keep, n_prev * keep

        f_slope = torch.ones_like(f) if log_f is None else -torch.expm1(log_f)  # of log_f

        # Factors for all steps: dc and dn are carried together as the rows of one tensor.
        n_inverse = 1 / n[1:]
        h_factor = torch.stack([o * n_inverse, -h[1:] * n_inverse], dim=1)  # of dh in dc, dn
        o_factor = h[1:] * (1 - o)  # of dh in d o_preact
        c_factor = torch.stack([i * z, f_slope * f * c_prev, i * (1 - z * z)], dim=3)  # of dc, dn
        n_factor = torch.stack([i, f_slope * f * n_prev], dim=3)  # in d i, f, z preact

        d_preact = torch.empty_like(by_gate)
        dh_all = h.new_zeros(T, NH, B, DH) if dh is None else dh.permute(1, 2, 0, 3).contiguous()
        dh_t = h.new_zeros(NH, B, DH)
        dcn = h.new_zeros(2, NH, B, DH)
        for carried, final in ((dh_t, dh_T), (dcn[0], dc_T), (dcn[1], dn_T)):
            if final is not None:
                carried.copy_(final.transpose(0, 1))
        dm = None
        if not (dc_T is None and dn_T is None and dm_T is None):
            dm = -(c[T] * dcn[0] + n[T] * dcn[1])
            if dm_T is not None:
                dm.add_(dm_T.transpose(0, 1))
        R_out = R.mT.contiguous()  # (NH, gate·out, in)
        d_, dh_ = d_preact.view(T, NH, B, 4 * DH).unbind(0), dh_all.unbind(0)
        d_ifz, d_if = d_preact[:, :, :, :3].unbind(0), d_preact[:, :, :, :2].unbind(0)
        d_i, d_f, _, d_o = (d.unbind(0) for d in d_preact.unbind(3))
        f_, h_factor_, o_factor_ = f.unbind(0), h_factor.unbind(0), o_factor.unbind(0)
        c_factor_, n_factor_ = c_factor.unbind(0), n_factor.unbind(0)
        dc, dn = dcn.unsqueeze(3).unbind(0)
        for t in reversed(range(T)):
            dh_t.add_(dh_[t])
            dcn.addcmul_(h_factor_[t], dh_t)
            # No out=: torch.compile does not accept non-contiguous outputs.
            d_o[t].copy_(o_factor_[t]).mul_(dh_t)
            d_ifz[t].copy_(c_factor_[t]).mul_(dc)
            d_if[t].addcmul_(n_factor_[t], dn)
            dcn.mul_(f_[t])
            if dm is not None:
                dm_i = torch.where(i[t] == 1, dm, 0.0)  # m_t was ĩ_t, else log_f_t + m_{t-1}
                dm = dm - dm_i
                d_i[t].add_(dm_i)
                d_f[t].add_(dm * f_slope[t])
            torch.bmm(d_[t], R_out, out=dh_t)
            if keep is not None:
                dh_t.mul_(keep[t])

        by_head = d_preact.transpose(0, 1).reshape(NH, T * B, 4 * DH)
        dR = torch.bmm(by_head.mT, h_prev.transpose(0, 1).reshape(NH, T * B, DH))
        dm_0 = c[0] * dcn[0] + n[0] * dcn[1]
        if dm is not None:
            dm_0 = dm_0 + dm
        return (
            d_preact.permute(2, 0, 1, 3, 4),
            dR.view(NH, 4, DH, DH),
            *(part.transpose(0, 1) for part in (dh_t, dcn[0], dcn[1], dm_0)),
            None,
            None,
        )
