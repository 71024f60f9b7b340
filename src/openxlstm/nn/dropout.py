"""Dropout for sequences, and a model without any."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Drops a share p of its input (B, T, …) in training and scales the rest by 1/(1 - p).

    kind "elements" drops each number by itself. "channels" drops the same channels of a sequence at
    every step (Gal and Ghahramani, arXiv:1512.05287), which draws 1/T as many random numbers; each
    call draws anew.
    """

    def __init__(self, p: float, kind: Literal["elements", "channels"] = "elements") -> None:
        super().__init__(p)
        self.kind = kind

    def forward(self, input: Tensor) -> Tensor:
        if self.kind == "elements" or not self.training or self.p == 0:
            return super().forward(input)
        return input * F.dropout(input.new_ones(input.shape[0], 1, *input.shape[2:]), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}, kind={self.kind}"


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Turns dropout off inside; the training flag of every module is restored at the end."""
    training = [module for module in model.modules() if module.training] if model.training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
