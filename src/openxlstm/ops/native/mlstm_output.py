"""The mLSTM's output on the native CPU backend (`cpu/mlstm_block_kernel.h`)."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.dispatch import Request
from openxlstm.ops.native import backend as native
from openxlstm.ops.native.backend import odd_inner_width, register


def refuses(request: Request) -> str | None:
    """Why it cannot run a request, or None."""
    return native.refuses_layer(request) or odd_inner_width(request)


def mlstm_output(
    h: Tensor,
    c: Tensor,
    z: Tensor,
    norm_weight: Tensor,
    skip: Tensor,
    down_weight: Tensor,
    *,
    eps: float = 1e-5,
) -> Tensor:
    """`openxlstm.ops.mlstm_output` for inputs that it has checked."""
    tensors = (x.contiguous() for x in (h, c, z, norm_weight, skip, down_weight))
    return torch.ops.openxlstm.mlstm_output(*tensors, eps)


def _fake(h: Tensor, c: Tensor, z: Tensor, norm: Any, skip: Any, down: Tensor, eps: Any) -> Tensor:
    return h.new_empty(c.shape[0], c.shape[1], down.shape[0])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.openxlstm.mlstm_output_grad(*ctx.saved_tensors, ctx.eps, dy.contiguous())
    return *grads, None


def _grad_fake(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in arguments[:6])


register("mlstm_output", _fake, _setup, _backward, _grad_fake)
