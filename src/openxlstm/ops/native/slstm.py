"""sLSTM on the native CPU backend: the scan of `cpu/slstm_kernel.h`, and its gradients."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.native.backend import dense, register, rows, saves
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


def slstm_layer(
    convolved: Tensor,
    raw: Tensor,
    input_weight: Tensor,
    bias: Tensor,
    recurrent_weight: Tensor,
    state: SLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    forget_gate: str = "sigmoid",
) -> tuple[Tensor, SLSTMState]:
    """`openxlstm.ops.slstm_layer` for inputs that it has checked."""
    NH, _, DH, _ = input_weight.shape
    stacked = raw.new_zeros(4, len(raw), NH, DH) if state is None else torch.stack(state)
    weights = input_weight.contiguous(), recurrent_weight.contiguous(), bias.contiguous()
    save = saves(convolved, raw, *weights, stacked)
    h, final, _ = torch.ops.openxlstm.slstm_layer(
        convolved.contiguous(), raw.contiguous(), *weights, stacked, dense(reset),
        forget_gate == "exp", save,
    )  # fmt: skip
    return h, SLSTMState(*final.unbind(0))


def _empty(like: Tensor, state: Tensor, sizes: tuple[int, ...], save: bool) -> tuple[Tensor, ...]:
    B, T, NH, DH = sizes
    saved = like.new_empty((NH, B, T, 5, DH) if save else (0, 0, 0, 0, 0))
    return like.new_empty(B, T, NH, DH), torch.empty_like(state), saved


def _fake(
    x: Tensor, R: Tensor, bias: Any, state: Tensor, reset: Any, exp_gate: bool, save: bool
) -> tuple[Tensor, ...]:
    B, T, NH, _, DH = x.shape
    return _empty(x, state, (B, T, NH, DH), save)


def _fake_layer(
    convolved: Tensor, raw: Tensor, W: Tensor, R: Tensor, bias: Any, state: Tensor, reset: Any,
    exp_gate: bool, save: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _empty(raw, state, (*raw.shape[:2], W.shape[0], W.shape[3]), save)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, _ = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def upstream(
    dh: Tensor | None, d_final: Tensor | None, h: Tensor, final: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of h and of the final state as the scan takes them.

    h does not depend on m. A loss on the final state may: c and n are its content over exp(m).
    """
    dh = torch.zeros_like(h) if dh is None else dh.contiguous()
    if d_final is None:
        return dh, torch.zeros_like(final)
    dm = d_final[3] - final[1] * d_final[1] - final[2] * d_final[2]
    return dh, torch.cat([d_final[:3], dm[None]])


def of_initial(d_state: Tensor, state: Tensor) -> Tensor:
    """The gradient of the initial state from what the scan gives back."""
    dm = d_state[3] + state[1] * d_state[1] + state[2] * d_state[2]
    return torch.cat([d_state[:3], dm[None]])


def _backward(
    ctx: Any, dh: Tensor | None, d_final: Tensor | None, _: Any
) -> tuple[Tensor | None, ...]:
    _, R, bias, state, reset, h, final, saved = ctx.saved_tensors
    from_above = upstream(dh, d_final, h, final)
    dx, dR, d_bias, d_state = torch.ops.openxlstm.slstm_grad(
        R, bias, state, reset, h, final, saved, *from_above
    )
    d_bias = None if bias is None else d_bias.view(bias.shape)
    return dx, dR, d_bias, of_initial(d_state, state), None, None, None


def _backward_layer(
    ctx: Any, dh: Tensor | None, d_final: Tensor | None, _: Any
) -> tuple[Tensor | None, ...]:
    convolved, raw, W, R, bias, state, reset, h, final, saved = ctx.saved_tensors
    from_above = upstream(dh, d_final, h, final)
    inputs = any(ctx.needs_input_grad[:2])  # not those of a first layer
    *grads, d_bias, d_state = torch.ops.openxlstm.slstm_layer_grad(
        convolved, raw, W, R, state, reset, h, final, saved, *from_above, inputs
    )
    if not inputs:
        grads[:2] = None, None
    return *grads, d_bias.view(bias.shape), of_initial(d_state, state), None, None, None


def _grad_fake(
    R: Tensor, bias: Tensor | None, state: Tensor, reset: Any, h: Tensor, *rest: Tensor
) -> tuple[Tensor, ...]:
    B, T, NH, DH = h.shape
    d_bias = h.new_empty(NH if bias is not None else 0, 4 * DH)
    return h.new_empty(B, T, NH, 4, DH), torch.empty_like(R), d_bias, torch.empty_like(state)


def _grad_fake_layer(
    convolved: Tensor, raw: Tensor, W: Tensor, R: Tensor, state: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    d_bias = raw.new_empty(W.shape[0], 4 * W.shape[3])
    *_, inputs = rest
    of_inputs = (x.new_empty(x.shape if inputs else (0, 0, 0)) for x in (convolved, raw))
    return *of_inputs, *(torch.empty_like(x) for x in (W, R)), d_bias, torch.empty_like(state)


register("slstm", _fake, _setup, _backward, _grad_fake)
register("slstm_layer", _fake_layer, _setup, _backward_layer, _grad_fake_layer)
