"""Ways to lay the same values out in memory."""

from collections.abc import Callable

import pytest
from torch import Tensor


def transposed(x: Tensor) -> Tensor:
    """Heads and time exchanged in memory, as a layer hands them over."""
    return x.transpose(1, 2).contiguous().transpose(1, 2) if x.dim() > 2 else x


def every_other(x: Tensor) -> Tensor:
    """Gaps between the values."""
    return x.repeat_interleave(2, dim=-1)[..., ::2]


def reversed_layout(x: Tensor) -> Tensor:
    """The dimensions in the opposite order in memory."""
    dims = tuple(reversed(range(x.dim())))
    return x.permute(dims).contiguous().permute(dims)


@pytest.fixture(
    scope="session",
    params=[transposed, every_other, reversed_layout],
    ids=lambda layout: layout.__name__,
)
def layout(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    return request.param
