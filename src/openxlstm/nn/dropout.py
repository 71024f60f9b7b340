"""Dropout for sequences."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Drops a share p of its input (B, T, …) in training and scales the rest by 1/(1 - p).

    kind "elements" drops each number by itself, "channels" the same ones of a sequence at every
    step (Gal and Ghahramani, arXiv:1512.05287), which draws 1/T as many random numbers. A batch
    that goes on where the one before it stopped draws anew.
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
