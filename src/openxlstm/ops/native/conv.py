"""The causal convolution on the native CPU backend (`cpu/conv_kernel.h`)."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.dispatch import Request
from openxlstm.ops.native import backend as native
from openxlstm.ops.native.backend import dense, long_kernel, present, register
from openxlstm.ops.plain.conv import last_inputs
from openxlstm.states import ConvState


def refuses(request: Request) -> str | None:
    """Why it cannot run a request, or None."""
    return native.refuses_layer(request) or long_kernel(request)


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    state: ConvState | None = None,
    *,
    reset: Tensor | None = None,
    activation: str | None = None,
) -> tuple[Tensor, ConvState]:
    """`openxlstm.ops.causal_conv` for inputs that it has checked."""
    before = None if state is None else state.x.contiguous()
    y = torch.ops.openxlstm.conv(
        x.contiguous(),
        weight.contiguous(),
        dense(bias),
        before,
        dense(reset),
        activation == "silu",
    )
    return y, last_inputs(x, weight.shape[1], state, reset)


def _fake(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, reset = ctx.saved_tensors
    grads = torch.ops.openxlstm.conv_grad(*tensors, reset, ctx.silu, dy.contiguous())
    return *present(grads, tensors), None, None


def _grad_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    return (
        torch.empty_like(x),
        torch.empty_like(weight),
        x.new_empty(0) if bias is None else torch.empty_like(bias),
        x.new_empty(0, 0, 0) if before is None else torch.empty_like(before),
    )


register("conv", _fake, _setup, _backward, _grad_fake)
