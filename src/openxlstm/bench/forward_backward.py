"""Turns of forward and backward, and how far the answers of two are apart."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ForwardBackward = Callable[[], list[Tensor]]
"""One turn: the output, then the gradients."""


def differentiated(
    function: Callable[[], Tensor], inputs: list[Tensor], dh: Tensor
) -> ForwardBackward:
    """The turn that calls `function` and takes the gradients of `inputs` for the gradient `dh`."""

    def turn() -> list[Tensor]:
        h = function()
        return [h.detach(), *torch.autograd.grad(h, inputs, dh)]

    return turn


def module_turn(module: nn.Module, B: int, T: int, width: int) -> ForwardBackward:
    """The turn of a module from (B, T, width) to the same, possibly with a state."""
    x, dh = torch.randn(B, T, width, requires_grad=True), torch.randn(B, T, width)

    def call() -> Tensor:
        y: Any = module(x)
        return y[0] if isinstance(y, tuple) else y

    return differentiated(call, [x, *module.parameters()], dh)


def disagreement(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest relative error ‖ours - theirs‖ / ‖theirs‖ among outputs and gradients.

    nan where something is not finite, inf where shapes differ.
    """
    if [a.shape for a in ours] != [b.shape for b in theirs]:
        return math.inf
    errors = [
        torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return float(torch.stack(errors).max())
