"""Checks of shapes, dtypes and devices, whose errors name the argument."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states and sums for inputs of `dtype`: float32 or wider."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_tensor(
    name: str, x: Tensor | None, shape: tuple[int, ...], like: Tensor, *dtypes: torch.dtype
) -> None:
    """Raises a ValueError unless x is None, or has this shape, the device of `like`, and one of the
    dtypes, by default that of `like`."""
    if x is None:
        return
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, not {tuple(x.shape)}")
    if x.dtype not in (dtypes or (like.dtype,)):
        allowed = " or ".join(str(dtype) for dtype in dict.fromkeys(dtypes or (like.dtype,)))
        raise ValueError(f"{name} must be {allowed}, not {x.dtype}")
    if x.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, not {x.device}")


def check_parts(
    name: str,
    parts: Any,
    like: Tensor,
    dtypes: Sequence[torch.dtype] = (),
    **shapes: tuple[int, ...],
) -> None:
    """Checks each field of a named tuple as `check_tensor` does; None in its place passes.

    Args:
        shapes: the shape of every field.
    """
    if parts is not None:
        for field in parts._fields:
            check_tensor(f"{name}.{field}", getattr(parts, field), shapes[field], like, *dtypes)


def check_floating(name: str, x: Tensor, dims: str) -> None:
    """Raises a ValueError unless x is floating point with the dimensions `dims`, none of size 0."""
    least = len(dims.split(","))
    if x.dim() < least - 1 if dims.startswith("…") else x.dim() != least:
        raise ValueError(f"{name} must be ({dims}), not {tuple(x.shape)}")
    if 0 in x.shape:
        raise ValueError(f"{name} ({dims}) has a dimension of size 0: {tuple(x.shape)}")
    if not x.dtype.is_floating_point:
        raise ValueError(f"{name} must be floating point, not {x.dtype}")


def check_choice(name: str, value: str | None, *allowed: str | None) -> None:
    """Raises a ValueError unless `value` is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, not {value!r}")
