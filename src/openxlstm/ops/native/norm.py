"""Norms on the native CPU backend (`cpu/norm_kernel.h`)."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.dispatch import Request
from openxlstm.ops.native import backend as native
from openxlstm.ops.native.backend import dense, empties, present, register


def refuses(request: Request) -> str | None:
    """Why it cannot run a request, or None."""
    return native.refuses(request) or native.narrow(request)


def layer_norm(x: Tensor, weight: Tensor, num_groups: int = 1, *, eps: float = 1e-5) -> Tensor:
    """`openxlstm.ops.layer_norm` for inputs that it has checked."""
    return _norm(x, weight, None, num_groups, False, eps)


def rms_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    """`openxlstm.ops.rms_norm` for inputs that it has checked."""
    return _norm(x, weight, bias, 1, True, eps)


def _norm(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    by_row = x.reshape(-1, x.shape[-1]).contiguous()
    weights = weight.contiguous(), dense(bias)
    return torch.ops.openxlstm.norm(by_row, *weights, *options).view(x.shape)


def _fake(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, num_groups, rms, eps = inputs
    ctx.options = num_groups, rms, eps
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    grads = torch.ops.openxlstm.norm_grad(*tensors, *ctx.options, dy.contiguous())
    return *present(grads, tensors), None, None, None


def _grad_fake(*arguments: Any) -> list[Tensor]:
    return empties(*arguments[:3])


register("norm", _fake, _setup, _backward, _grad_fake)
