"""The gated feed-forward on the native CPU backend (`cpu/feedforward_kernel.h`)."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.native import dense, present, register, saves


def gated_feedforward(
    x: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 1e-5,
    residual: bool = False,
    activation: str = "gelu",
) -> Tensor:
    """`openxlstm.ops.gated_feedforward` for inputs that it has checked."""
    weights = up_weight.contiguous(), down_weight.contiguous(), dense(up_bias), dense(down_bias)
    by_row, norm_weight = x.reshape(-1, x.shape[-1]).contiguous(), dense(norm_weight)
    save = saves(by_row, norm_weight, *weights)
    y, _ = torch.ops.openxlstm.feedforward(
        by_row, norm_weight, *weights, activation == "silu", residual, eps, save
    )
    return y.view(x.shape)


def _fake(x: Tensor, norm: Any, up: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *_, save = rest
    return torch.empty_like(x), x.new_empty((x.shape[0], up.shape[0]) if save else (0, 0))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, silu, residual, eps, _ = inputs
    ctx.options = silu, residual, eps
    ctx.save_for_backward(*tensors, output[1])
    ctx.set_materialize_grads(False)  # zeros for what was only saved are the widest there are


def _backward(ctx: Any, dy: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    *tensors, preact = ctx.saved_tensors
    grads = torch.ops.openxlstm.feedforward_grad(*tensors, *ctx.options, preact, dy.contiguous())
    return *present(grads, tensors), None, None, None, None


def _grad_fake(*arguments: Any) -> tuple[Tensor, ...]:
    x, *tensors = arguments[:6]
    return tuple(
        x.new_empty(0) if part is None else x.new_empty(part.shape) for part in (x, *tensors)
    )


register("feedforward", _fake, _setup, _backward, _grad_fake)
