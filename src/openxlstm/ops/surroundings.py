"""What goes on around a call, which decides what code may run in it."""

from enum import Enum

import torch
from torch.autograd import forward_ad


class Surroundings(Enum):
    """Who calls."""

    PLAIN = "plain"
    """Python, or `torch.compile`, which sees through every backend."""
    EXPORT = "export"
    """`torch.export`, whose program may go to another machine and run for any number of steps."""
    TRANSFORM = "transform"
    """A transform of `torch.func`, or forward-mode differentiation: both take an operation apart
    and do not see through one that brings its own backward."""


def surroundings() -> Surroundings:
    """Those of the running call."""
    if is_exported():
        return Surroundings.EXPORT
    if is_transformed() or forward_ad._current_level >= 0:
        return Surroundings.TRANSFORM
    return Surroundings.PLAIN


def is_exported() -> bool:
    """Whether the call is recorded for a program that outlives it, where no size may be fixed."""
    return torch.compiler.is_exporting()


def is_transformed() -> bool:
    """Whether a tensor may stand for many, as in `torch.func.vmap`, or for more than its values."""
    return torch._C._are_functorch_transforms_active()  # pyright: ignore[reportAttributeAccessIssue]
