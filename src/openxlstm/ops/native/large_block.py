"""Around the cell of a large block on the native CPU backend (`cpu/large_kernel.h`)."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.native.backend import contiguous, empty_grads, grads_or_none, register
from openxlstm.ops.weights import LargeInputWeights, LargeOutputWeights


def large_input(
    x: Tensor, weights: LargeInputWeights, *, eps: float, gate_soft_cap: float
) -> tuple[Tensor, ...]:
    """`openxlstm.ops.large_input` for checked inputs."""
    flat = weights._replace(
        gates=weights.gates.flatten(0, 1), gate_bias=weights.gate_bias.flatten()
    )
    *results, _ = torch.ops.openxlstm.large_input(*map(contiguous, (x, *flat)), eps, gate_soft_cap)
    return tuple(results)


def _input_fake(given: Any) -> tuple[Tensor, ...]:
    x, (B, T, _) = given.x, given.x.shape
    wide = (x.new_empty(B, T, len(weight)) for weight in (given.q, given.k, given.v, given.o))
    return *wide, *(x.new_empty(B, len(given.gates) // 2, T) for _ in range(3))


def _input_backward(saved: Any, upstream: Any, needs_grad: Any) -> dict[str, Tensor | None]:
    inputs = {name: getattr(saved, name) for name in ("x", *LargeInputWeights._fields)}
    x, (B, T, _) = saved.x, saved.x.shape
    wide = upstream.out_q, upstream.out_k, upstream.out_v, upstream.out_o
    weights = saved.q, saved.k, saved.v, saved.o
    from_above = (
        *(
            x.new_zeros(B, T, len(weight)) if grad is None else grad.contiguous()
            for grad, weight in zip(wide, weights, strict=True)
        ),
        *(
            torch.zeros_like(saved.log_i) if grad is None else grad.contiguous()
            for grad in (upstream.log_i, upstream.log_f)
        ),
    )
    return grads_or_none(inputs, torch.ops.openxlstm.large_input_grad(*saved, *from_above))


def _input_grad_fake(given: Any) -> list[Tensor]:
    return empty_grads(given.x, *(getattr(given, name) for name in LargeInputWeights._fields))


def large_output(
    h: Tensor, o: Tensor, weights: LargeOutputWeights, residual: Tensor | None, *, eps: float
) -> Tensor:
    """`openxlstm.ops.large_output` for checked inputs."""
    return torch.ops.openxlstm.large_output(*map(contiguous, (h, o, *weights, residual)), eps)


def _output_fake(given: Any) -> Tensor:
    B, T, _ = given.o.shape
    return given.h.new_empty(B, T, len(given.down))


def _output_backward(saved: Any, upstream: Any, needs_grad: Any) -> dict[str, Tensor | None]:
    inputs = {name: getattr(saved, name) for name in ("h", "o", *LargeOutputWeights._fields)}
    dy = upstream.result.contiguous()
    grads = grads_or_none(inputs, torch.ops.openxlstm.large_output_grad(*saved, dy))
    return grads | {"residual": dy if needs_grad.residual else None}


def _output_grad_fake(given: Any) -> list[Tensor]:
    weights = (getattr(given, name) for name in LargeOutputWeights._fields)
    return empty_grads(given.h, given.o, *weights)


register(
    "large_input",
    ("x", *LargeInputWeights._fields, "eps", "cap"),
    fake=_input_fake,
    backward=_input_backward,
    grad_fake=_input_grad_fake,
)
register(
    "large_output",
    ("h", "o", *LargeOutputWeights._fields, "residual", "eps"),
    fake=_output_fake,
    backward=_output_backward,
    grad_fake=_output_grad_fake,
)
