"""sLSTM on the native CPU backend: the scan of `cpu/slstm_kernel.h`, and its gradients."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.native.backend import contiguous, dense_rows, needs_saving, register
from openxlstm.ops.weights import SLSTMLayerWeights
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
    B, _, NH, _, DH = x.shape
    stacked = stack_state(x, state, (B, NH, DH))
    bias, reset = contiguous(bias), contiguous(reset)
    save = needs_saving(x, recurrent_weight, bias, stacked)
    h, final, _ = torch.ops.openxlstm.slstm(
        dense_rows(x), recurrent_weight.contiguous(), bias, stacked, reset, forget_gate == "exp",
        save,
    )  # fmt: skip
    return h, SLSTMState(*final.unbind(0))


def slstm_layer(
    convolved: Tensor,
    raw: Tensor,
    weights: SLSTMLayerWeights,
    state: SLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    forget_gate: str = "sigmoid",
) -> tuple[Tensor, SLSTMState]:
    """`openxlstm.ops.slstm_layer` for checked inputs."""
    NH, _, DH, _ = weights.input_weight.shape
    stacked = stack_state(raw, state, (len(raw), NH, DH))
    tensors = (*map(contiguous, (convolved, raw, *weights)), stacked)
    h, final, _ = torch.ops.openxlstm.slstm_layer(
        *tensors, contiguous(reset), forget_gate == "exp", needs_saving(*tensors)
    )
    return h, SLSTMState(*final.unbind(0))


def stack_state(like: Tensor, state: SLSTMState | None, shape: tuple[int, int, int]) -> Tensor:
    """h, c, n and m as one tensor (4, B, NH, DH); zeros for an empty state."""
    return like.new_zeros(4, *shape) if state is None else torch.stack(state)


def _fake(given: Any) -> tuple[Tensor, ...]:
    B, T, NH, _, DH = given.x.shape
    return _empty(given, given.x, (B, T, NH, DH))


def _fake_layer(given: Any) -> tuple[Tensor, ...]:
    B, T, _ = given.raw.shape
    NH, _, DH, _ = given.W.shape
    return _empty(given, given.raw, (B, T, NH, DH))


def _empty(given: Any, like: Tensor, sizes: tuple[int, int, int, int]) -> tuple[Tensor, ...]:
    B, T, NH, DH = sizes
    saved = like.new_empty((NH, B, T, 5, DH) if given.save else (0, 0, 0, 0, 0))
    return like.new_empty(sizes), torch.empty_like(given.state), saved


def upstream_of_scan(
    dh: Tensor | None, d_final: Tensor | None, h: Tensor, final: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of h and of the final state as the scan takes them.

    h does not depend on m. A loss on the final state may, since c and n are stored over exp(m).
    """
    dh = torch.zeros_like(h) if dh is None else dh.contiguous()
    if d_final is None:
        return dh, torch.zeros_like(final)
    _, c, n, _ = final
    dh_T, dc_T, dn_T, dm_T = d_final
    return dh, torch.stack([dh_T, dc_T, dn_T, dm_T - c * dc_T - n * dn_T])


def grad_of_initial_state(d_state: Tensor, state: Tensor) -> Tensor:
    """The gradient of the initial state from what the scan returns."""
    _, c, n, _ = state
    dh_0, dc_0, dn_0, dm_0 = d_state
    return torch.stack([dh_0, dc_0, dn_0, dm_0 + c * dc_0 + n * dn_0])


def _backward(saved: Any, upstream: Any, needs_grad: Any) -> dict[str, Tensor | None]:
    from_above = upstream_of_scan(upstream.h, upstream.final, saved.h, saved.final)
    dx, dR, d_bias, d_state = torch.ops.openxlstm.slstm_grad(*saved, *from_above)
    return {
        "x": dx,
        "R": dR,
        "bias": None if saved.bias is None else d_bias.view(saved.bias.shape),
        "state": grad_of_initial_state(d_state, saved.state),
    }


def _backward_layer(saved: Any, upstream: Any, needs_grad: Any) -> dict[str, Tensor | None]:
    from_above = upstream_of_scan(upstream.h, upstream.final, saved.h, saved.final)
    inputs = needs_grad.convolved or needs_grad.raw  # a model's first layer needs neither
    d_convolved, d_raw, dW, dR, d_bias, d_state = torch.ops.openxlstm.slstm_layer_grad(
        *saved, *from_above, inputs
    )
    return {
        "convolved": d_convolved if inputs else None,
        "raw": d_raw if inputs else None,
        "W": dW,
        "R": dR,
        "bias": d_bias.view(*dW.shape[:3]),
        "state": grad_of_initial_state(d_state, saved.state),
    }


def _grad_fake(given: Any) -> tuple[Tensor, ...]:
    h, (B, T, NH, DH) = given.h, given.h.shape
    return (
        h.new_empty(B, T, NH, 4, DH),
        torch.empty_like(given.R),
        h.new_empty(NH if given.bias is not None else 0, 4 * DH),
        torch.empty_like(given.state),
    )


def _grad_fake_layer(given: Any) -> tuple[Tensor, ...]:
    NH, _, DH, _ = given.W.shape
    return (
        *(
            x.new_empty(x.shape if given.inputs else (0, 0, 0))
            for x in (given.convolved, given.raw)
        ),
        torch.empty_like(given.W),
        torch.empty_like(given.R),
        given.raw.new_empty(NH, 4 * DH),
        torch.empty_like(given.state),
    )


register(
    "slstm",
    ("x", "R", "bias", "state", "reset", "exp_gate", "save"),
    fake=_fake,
    backward=_backward,
    grad_fake=_grad_fake,
)
register(
    "slstm_layer",
    ("convolved", "raw", "W", "R", "bias", "state", "reset", "exp_gate", "save"),
    fake=_fake_layer,
    backward=_backward_layer,
    grad_fake=_grad_fake_layer,
)
