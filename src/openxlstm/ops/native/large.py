"""Around the cell of a large block on the native CPU backend (`cpu/large_kernel.h`)."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.native.backend import dense, empties, present, register

TENSORS = 13
"""How many of the input's arguments are tensors; options follow."""


def large_input(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    weights: tuple[Tensor, ...],
    biases: tuple[Tensor | None, ...],
    gate_weight: Tensor,
    gate_bias: Tensor,
    *,
    eps: float,
    gate_soft_cap: float,
) -> tuple[Tensor, ...]:
    """`openxlstm.ops.large_input` for inputs that it has checked."""
    tensors = (
        x, norm_weight, norm_bias, *weights, gate_weight.flatten(0, 1), *biases,
        gate_bias.flatten(),
    )  # fmt: skip
    *results, _ = torch.ops.openxlstm.large_input(*map(dense, tensors), eps, gate_soft_cap)
    return tuple(results)


def _input_fake(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    (B, T, _), gates = x.shape, rest[6]
    wide = (x.new_empty(B, T, weight.shape[0]) for weight in rest[2:6])
    return *wide, *(x.new_empty(B, gates.shape[0] // 2, T) for _ in range(3))


def _input_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *wide, log_i, _, f = output
    ctx.options = inputs[TENSORS:]
    ctx.shapes = [x.shape for x in wide]
    ctx.save_for_backward(*inputs[:TENSORS], log_i, f)
    ctx.set_materialize_grads(False)


def _input_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, log_i, f = ctx.saved_tensors
    shapes = [*ctx.shapes, log_i.shape, log_i.shape]
    from_above = (
        log_i.new_zeros(shape) if grad is None else grad.contiguous()
        for grad, shape in zip(grads[:6], shapes, strict=True)
    )
    results = torch.ops.openxlstm.large_input_grad(*tensors, *ctx.options, log_i, f, *from_above)
    return *present(results, tensors), None, None


def _input_grad_fake(*arguments: Any) -> list[Tensor]:
    return empties(*arguments[:TENSORS])


def large_output(
    h: Tensor,
    o: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    residual: Tensor | None,
    *,
    eps: float,
) -> Tensor:
    """`openxlstm.ops.large_output` for inputs that it has checked."""
    tensors = h, o, norm_weight, norm_bias, out_weight, out_bias, residual
    return torch.ops.openxlstm.large_output(*map(dense, tensors), eps)


def _output_fake(h: Tensor, o: Tensor, norm: Any, norm_bias: Any, out: Tensor, *_: Any) -> Tensor:
    return h.new_empty(o.shape[0], o.shape[1], out.shape[0])


def _output_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, residual, ctx.eps = inputs
    ctx.has_residual = residual is not None
    ctx.save_for_backward(*tensors)


def _output_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    tensors, dy = ctx.saved_tensors, dy.contiguous()
    grads = torch.ops.openxlstm.large_output_grad(*tensors, ctx.eps, dy)
    return *present(grads, tensors), dy if ctx.has_residual else None, None


def _output_grad_fake(*arguments: Any) -> list[Tensor]:
    return empties(*arguments[:6])


register("large_input", _input_fake, _input_setup, _input_backward, _input_grad_fake)
register("large_output", _output_fake, _output_setup, _output_backward, _output_grad_fake)
