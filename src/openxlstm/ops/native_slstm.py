"""sLSTM on the native CPU backend: the scan of `cpu/slstm_kernel.h`, and its gradients."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.native import dense, register, rows, saves
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
    """`openxlstm.ops.slstm` for inputs that it has checked."""
    B, _, NH, _, DH = x.shape
    stacked = x.new_zeros(4, B, NH, DH) if state is None else torch.stack(state)
    bias, reset = dense(bias), dense(reset)
    save = saves(x, recurrent_weight, bias, stacked)
    h, final, _ = torch.ops.openxlstm.slstm(
        rows(x), recurrent_weight.contiguous(), bias, stacked, reset, forget_gate == "exp", save
    )
    return h, SLSTMState(*final.unbind(0))


def _fake(
    x: Tensor, R: Tensor, bias: Any, state: Tensor, reset: Any, exp_gate: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, NH, _, DH = x.shape
    saved = x.new_empty((NH, B, T, 5, DH) if save else (0, 0, 0, 0, 0))
    return x.new_empty(B, T, NH, DH), torch.empty_like(state), saved


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, R, bias, state, reset, _, _ = inputs
    ctx.save_for_backward(R, bias, state, reset, *output)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, dh: Tensor | None, d_final: Tensor | None, _: Any
) -> tuple[Tensor | None, ...]:
    R, bias, state, reset, h, final, saved = ctx.saved_tensors
    dh = torch.zeros_like(h) if dh is None else dh.contiguous()
    # h does not depend on m. A loss on the final state may: c and n are its content over exp(m).
    if d_final is None:
        d_final = torch.zeros_like(final)
    else:
        dm = d_final[3] - final[1] * d_final[1] - final[2] * d_final[2]
        d_final = torch.cat([d_final[:3], dm[None]])
    dx, dR, d_bias, d_state = torch.ops.openxlstm.slstm_grad(
        R, bias, state, reset, h, final, saved, dh, d_final
    )
    dm_0 = d_state[3] + state[1] * d_state[1] + state[2] * d_state[2]
    d_bias = None if bias is None else d_bias.view(bias.shape)
    return dx, dR, d_bias, torch.cat([d_state[:3], dm_0[None]]), None, None, None


def _grad_fake(
    R: Tensor, bias: Tensor | None, state: Tensor, reset: Any, h: Tensor, *rest: Tensor
) -> tuple[Tensor, ...]:
    B, T, NH, DH = h.shape
    d_bias = h.new_empty(NH if bias is not None else 0, 4 * DH)
    return h.new_empty(B, T, NH, 4, DH), torch.empty_like(R), d_bias, torch.empty_like(state)


register("slstm", _fake, _setup, _backward, _grad_fake)
