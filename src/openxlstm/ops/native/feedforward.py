"""The gated feed-forward on the native CPU backend (`cpu/feedforward_kernel.h`)."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.native.backend import (
    contiguous,
    empty_grads,
    grads_or_none,
    needs_saving,
    register,
)
from openxlstm.ops.weights import FeedForwardWeights


def gated_feedforward(
    x: Tensor,
    weights: FeedForwardWeights,
    *,
    norm: str,
    eps: float,
    residual: bool,
    activation: str,
) -> Tensor:
    """`openxlstm.ops.gated_feedforward` for checked inputs."""
    tensors = tuple(map(contiguous, (x.reshape(-1, x.shape[-1]), *weights)))
    y, _ = torch.ops.openxlstm.feedforward(
        *tensors, activation == "silu", residual, norm == "rms", eps, needs_saving(*tensors)
    )
    return y.view(x.shape)


def _fake(given: Any) -> tuple[Tensor, Tensor]:
    x, F = given.x, given.down.shape[1]
    return torch.empty_like(x), x.new_empty((x.shape[0], 2 * F) if given.save else (0, 0))


def _backward(saved: Any, upstream: Any, needs_grad: Any) -> dict[str, Tensor | None]:
    inputs = {name: getattr(saved, name) for name in ("x", *FeedForwardWeights._fields)}
    grads = torch.ops.openxlstm.feedforward_grad(*saved, upstream.y.contiguous())
    return grads_or_none(inputs, grads)


def _grad_fake(given: Any) -> list[Tensor]:
    return empty_grads(given.x, *(getattr(given, name) for name in FeedForwardWeights._fields))


register(
    "feedforward",
    ("x", *FeedForwardWeights._fields, "silu", "residual", "rms", "eps", "save"),
    fake=_fake,
    backward=_backward,
    grad_fake=_grad_fake,
)
