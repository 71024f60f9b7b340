"""Norms on the native CPU backend (`cpu/norm_kernel.h`)."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.dispatch import Request
from openxlstm.ops.native import backend as native
from openxlstm.ops.native.backend import contiguous, empty_grads, grads_or_none, register


def refuses(request: Request) -> str | None:
    """Why it cannot run a request, or None."""
    return native.refuses(request) or native.low_precision(request)


def layer_norm(x: Tensor, weight: Tensor, num_groups: int = 1, *, eps: float = 1e-5) -> Tensor:
    """`openxlstm.ops.layer_norm` for inputs that it has checked."""
    return _norm(x, weight, None, num_groups, False, eps)


def rms_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    """`openxlstm.ops.rms_norm` for inputs that it has checked."""
    return _norm(x, weight, bias, 1, True, eps)


def _norm(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    by_row = x.reshape(-1, x.shape[-1]).contiguous()
    weights = weight.contiguous(), contiguous(bias)
    return torch.ops.openxlstm.norm(by_row, *weights, *options).view(x.shape)


def _fake(given: Any) -> Tensor:
    return torch.empty_like(given.x)


def _backward(saved: Any, upstream: Any, needs_grad: Any) -> dict[str, Tensor | None]:
    inputs = {"x": saved.x, "weight": saved.weight, "bias": saved.bias}
    grads = torch.ops.openxlstm.norm_grad(*saved, upstream.result.contiguous())
    return grads_or_none(inputs, grads)


def _grad_fake(given: Any) -> list[Tensor]:
    return empty_grads(given.x, given.weight, given.bias)


register(
    "norm",
    ("x", "weight", "bias", "groups", "rms", "eps"),
    fake=_fake,
    backward=_backward,
    grad_fake=_grad_fake,
)
