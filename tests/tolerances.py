"""How close is close: one table for the whole suite."""

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""Largest error of a tensor, as the root mean square of the difference over that of the truth."""


def assert_close(
    actual: Tensor, expected: Tensor, name: str = "", *, tolerance: float | None = None
) -> None:
    """Compares with a truth computed in float64; the tolerance is that of `actual`'s dtype."""
    assert actual.shape == expected.shape, f"{name}: {actual.shape} is not {expected.shape}"
    difference, truth = actual.detach().double() - expected.detach().double(), expected.double()
    assert difference.isfinite().all(), f"{name}: not finite"
    allowed = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    scale = max(truth.square().mean().sqrt().item(), 1e-3) if truth.numel() else 1.0
    error = difference.square().mean().sqrt().item() / scale if truth.numel() else 0.0
    worst = difference.abs().max().item() / scale if truth.numel() else 0.0
    assert error <= allowed, f"{name}: error {error:.2e} (worst {worst:.2e}) > {allowed:.0e}"
