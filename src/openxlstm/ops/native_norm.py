"""Layer norm on the native CPU backend (`cpu/norm_kernel.h`)."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops import native
from openxlstm.ops.dispatch import Request
from openxlstm.ops.native import register


def refuses(request: Request) -> str | None:
    """Why it cannot run a request, or None."""
    return native.refuses(request) or native.narrow(request)


def layer_norm(x: Tensor, weight: Tensor, num_groups: int = 1, *, eps: float = 1e-5) -> Tensor:
    """`openxlstm.ops.layer_norm` for inputs that it has checked."""
    by_row = x.reshape(-1, x.shape[-1]).contiguous()
    return torch.ops.openxlstm.norm(by_row, weight.contiguous(), num_groups, eps).view(x.shape)


def _fake(x: Tensor, weight: Tensor, num_groups: int, eps: float) -> Tensor:
    return torch.empty_like(x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.num_groups, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    grads = torch.ops.openxlstm.norm_grad(x, weight, ctx.num_groups, ctx.eps, dy.contiguous())
    return *grads, None, None


def _grad_fake(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


register("norm", _fake, _setup, _backward, _grad_fake)
