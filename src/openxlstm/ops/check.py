"""Whether tensors fit together, said in words that name the argument."""

import torch
from torch import Tensor


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states and sums for inputs of `dtype`: float32 or wider."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_tensors(
    like: Tensor,
    expected: list[tuple[str, Tensor | None, tuple[int, ...], tuple[torch.dtype, ...]]],
) -> None:
    """Raises a ValueError about the first tensor whose shape, dtype or device is not as said.

    Each entry is a name, a tensor, its shape and the dtypes it may have; all must be where `like`
    is. A tensor that is None passes: it was left out.
    """
    for name, x, shape, dtypes in expected:
        if x is None:
            continue
        if x.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, not {tuple(x.shape)}")
        if x.dtype not in dtypes:
            allowed = " or ".join(str(dtype) for dtype in dict.fromkeys(dtypes))
            raise ValueError(f"{name} must be {allowed}, not {x.dtype}")
        if x.device != like.device:
            raise ValueError(f"{name} must be on {like.device}, not {x.device}")


def check_floating(name: str, x: Tensor, dims: str) -> None:
    """Raises a ValueError unless x is floating point with the dimensions `dims`, none of size 0."""
    least = len(dims.split(","))
    if x.dim() < least - 1 if dims.startswith("…") else x.dim() != least:
        raise ValueError(f"{name} must be ({dims}), not {tuple(x.shape)}")
    if 0 in x.shape:
        raise ValueError(f"{name} ({dims}) has a dimension of size 0: {tuple(x.shape)}")
    if not x.dtype.is_floating_point:
        raise ValueError(f"{name} must be floating point, not {x.dtype}")
