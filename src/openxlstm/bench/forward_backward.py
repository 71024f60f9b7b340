"""Forward and backward passes to be timed, and the difference between two results."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ForwardBackward = Callable[[], list[Tensor]]
"""Computes and returns the output, followed by the gradients."""


def differentiated(
    function: Callable[[], Tensor], inputs: list[Tensor], dh: Tensor
) -> ForwardBackward:
    """A call of `function`, and the gradients of `inputs` given the gradient `dh` of its output."""

    def forward_backward() -> list[Tensor]:
        h = function()
        return [h.detach(), *torch.autograd.grad(h, inputs, dh)]

    return forward_backward


def module_pass(module: nn.Module, B: int, T: int, width: int) -> ForwardBackward:
    """The pass of a module from (B, T, width) to the same shape, possibly with a state."""
    x, dh = torch.randn(B, T, width, requires_grad=True), torch.randn(B, T, width)

    def call() -> Tensor:
        y: Any = module(x)
        return y[0] if isinstance(y, tuple) else y

    return differentiated(call, [x, *module.parameters()], dh)


def disagreement(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest relative error ‖ours - theirs‖ / ‖theirs‖ among outputs and gradients.

    nan if a value is not finite, inf if shapes differ.
    """
    if [a.shape for a in ours] != [b.shape for b in theirs]:
        return math.inf
    errors = [
        torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return float(torch.stack(errors).max())
