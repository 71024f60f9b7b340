"""The gated feed-forward on the native CPU backend (`cpu/feedforward_kernel.h`)."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.native.backend import dense, empties, present, register, saves

TENSORS = 9
"""How many of the operator's arguments are tensors; options follow."""


def gated_feedforward(
    x: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    *,
    value_weight: Tensor | None = None,
    value_bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm: str = "layer",
    eps: float = 1e-5,
    residual: bool = False,
    activation: str = "gelu",
) -> Tensor:
    """`openxlstm.ops.gated_feedforward` for inputs that it has checked."""
    tensors = (
        x.reshape(-1, x.shape[-1]), norm_weight, norm_bias, up_weight, value_weight, down_weight,
        up_bias, value_bias, down_bias,
    )  # fmt: skip
    tensors = tuple(map(dense, tensors))
    options = activation == "silu", residual, norm == "rms", eps
    y, _ = torch.ops.openxlstm.feedforward(*tensors, *options, saves(*tensors))
    return y.view(x.shape)


def _fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    down, save = rest[4], rest[-1]
    return torch.empty_like(x), x.new_empty((x.shape[0], 2 * down.shape[1]) if save else (0, 0))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.options = inputs[TENSORS:-1]
    ctx.save_for_backward(*inputs[:TENSORS], output[1])
    ctx.set_materialize_grads(False)  # zeros for what was only saved are the widest there are


def _backward(ctx: Any, dy: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    *tensors, preact = ctx.saved_tensors
    grads = torch.ops.openxlstm.feedforward_grad(*tensors, *ctx.options, preact, dy.contiguous())
    return *present(grads, tensors), *(None,) * (len(ctx.options) + 1)


def _grad_fake(*arguments: Any) -> list[Tensor]:
    return empties(*arguments[:TENSORS])


register("feedforward", _fake, _setup, _backward, _grad_fake)
