"""The causal convolution on the native CPU backend (`cpu/conv_kernel.h`)."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.dispatch import Request
from openxlstm.ops.native import backend as native
from openxlstm.ops.native.backend import contiguous, grads_or_none, long_kernel, register
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
    before = None if state is None else state.x
    y = torch.ops.openxlstm.conv(
        *map(contiguous, (x, weight, bias, before, reset)), activation == "silu"
    )
    return y, last_inputs(x, weight.shape[1], state, reset)


def _fake(given: Any) -> Tensor:
    return torch.empty_like(given.x)


def _backward(saved: Any, upstream: Any, needs_grad: Any) -> dict[str, Tensor | None]:
    inputs = {name: getattr(saved, name) for name in ("x", "weight", "bias", "before")}
    grads = torch.ops.openxlstm.conv_grad(*saved, upstream.result.contiguous())
    return grads_or_none(inputs, grads)


def _grad_fake(given: Any) -> tuple[Tensor, ...]:
    x, weight, bias, before, *_ = given
    return (
        torch.empty_like(x),
        torch.empty_like(weight),
        x.new_empty(0) if bias is None else torch.empty_like(bias),
        x.new_empty(0, 0, 0) if before is None else torch.empty_like(before),
    )


register(
    "conv",
    ("x", "weight", "bias", "before", "reset", "silu"),
    fake=_fake,
    backward=_backward,
    grad_fake=_grad_fake,
)
