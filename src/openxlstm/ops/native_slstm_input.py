"""The sLSTM's input on the native CPU backend (`cpu/slstm_input_kernel.h`)."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops import native
from openxlstm.ops.dispatch import Request
from openxlstm.ops.native import dense, few_rows, long_kernel, register
from openxlstm.ops.torch_conv import last_inputs
from openxlstm.states import ConvState


def refuses(request: Request) -> str | None:
    """Why it cannot run a request, or None."""
    return (
        native.refuses(request)
        or native.narrow(request)
        or few_rows(request)
        or long_kernel(request)
    )


def slstm_input(
    x: Tensor,
    input_weight: Tensor,
    bias: Tensor,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    state: ConvState | None = None,
    *,
    reset: Tensor | None = None,
) -> tuple[Tensor, ConvState | None]:
    """`openxlstm.ops.slstm_input` for inputs that it has checked."""
    gates = torch.ops.openxlstm.slstm_input(
        x.contiguous(),
        input_weight.contiguous(),
        bias.contiguous(),
        dense(conv_weight),
        dense(conv_bias),
        None if state is None else state.x.contiguous(),
        dense(reset),
    )
    if conv_weight is None:
        return gates, None
    return gates, last_inputs(x, conv_weight.shape[1], state, reset)


def _fake(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    B, T, _ = x.shape
    return x.new_empty(B, T, *bias.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dgates: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    grads = torch.ops.openxlstm.slstm_input_grad(*tensors, dgates.contiguous())
    # An operator returns tensors only: an empty one stands for what is not there.
    return *(
        None if x is None else grad.view(x.shape) for grad, x in zip(grads, tensors, strict=False)
    ), None


def _grad_fake(
    x: Tensor, weight: Tensor, bias: Tensor, conv_weight: Any, conv_bias: Any, before: Any,
    *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    D = x.shape[2] if conv_weight is not None else 0
    return (
        x.new_empty(x.shape),
        x.new_empty(weight.shape),
        x.new_empty(weight.shape[0], 4 * weight.shape[2]),
        x.new_empty(x.shape[2], 0 if conv_weight is None else conv_weight.shape[1]),
        x.new_empty(D),
        x.new_empty((0, 0, 0) if before is None else before.shape),
    )


register("slstm_input", _fake, _setup, _backward, _grad_fake)
