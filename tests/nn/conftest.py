"""What the tests of layers share."""

from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture
def randomize() -> Callable[[nn.Module], None]:
    """Makes every parameter of a module random: nothing is 0 or 1, which would hide a mistake."""

    def apply(module: nn.Module) -> None:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(0.5 * torch.randn_like(parameter))

    return apply
