"""Checks of the arguments of `XLSTM` and the cells, with errors that name the argument."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.dispatch import is_transformed


def check_input(
    name: str, x: Tensor, size: int, dims: str, ranks: tuple[int, ...], parameter: Tensor
) -> Tensor:
    """Checks x, which must have `size` features; casts it to `parameter`'s dtype under autocast.

    Raises:
        ValueError: if it has a wrong shape, dtype or device.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a tensor, not {type(x).__name__}")
    if x.dim() not in ranks or x.shape[-1] != size:
        raise ValueError(f"{name} must be {dims} with I = {size}, not {tuple(x.shape)}")
    if 0 in x.shape:
        raise ValueError(f"{name}, {dims}, has a dimension of size 0: {tuple(x.shape)}")
    if x.device != parameter.device:
        raise ValueError(f"{name} must be on {parameter.device}, like the weights, not {x.device}")
    if x.dtype == parameter.dtype:
        return x
    can_autocast = x.dtype.is_floating_point and x.device.type != "meta"
    if can_autocast and torch.is_autocast_enabled(x.device.type):
        return x.to(parameter.dtype)
    raise ValueError(f"{name} must be {parameter.dtype}, like the weights, not {x.dtype}")


def check_reset(reset: Tensor | None, x: Tensor) -> None:
    """Raises a ValueError unless `reset` is bool with the shape of x without its features."""
    if reset is None:
        return
    if reset.dtype != torch.bool or reset.shape != x.shape[:-1]:
        raise ValueError(
            f"reset must be torch.bool with the shape of x without its features, "
            f"{tuple(x.shape[:-1])}, not {reset.dtype} {tuple(reset.shape)}"
        )
    if reset.device != x.device:
        raise ValueError(f"reset must be on {x.device}, like x, not {reset.device}")


def check_lengths(lengths: Tensor | Sequence[int], B: int, T: int, device: torch.device) -> Tensor:
    """`lengths` as a tensor (B,) int64 on `device`.

    Raises:
        ValueError: if they are not B integers from 1 to T.
    """
    kinds = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
    given = torch.as_tensor(lengths)
    if given.dtype not in kinds or given.shape != (B,):
        raise ValueError(
            f"lengths must be {B} integers, one per sample, not {given.dtype} {tuple(given.shape)}"
        )
    if can_look(given) and not (int(given.min()) >= 1 and int(given.max()) <= T):
        raise ValueError(
            f"lengths must be from 1 to T = {T}, not from {int(given.min())} to {int(given.max())}"
        )
    return given.to(device, torch.int64)


def check_state(state: Any, none: Any, batch_size: int) -> None:
    """Raises a ValueError unless `state` is a state of `batch_size` samples.

    `none`, a state of 0 samples, gives the expected parts, shapes, dtypes and devices."""
    for name, part, like in _pairs("state", state, none):
        if isinstance(like, Tensor):
            _check_part(name, part, like, (batch_size, *like.shape[1:]))
        elif type(part) is not type(like):
            raise ValueError(
                f"{name} must be {_kind(like)}, as a previous call or initial_state returns it, "
                f"not {_kind(part)}; omit state to start from an empty one"
            )
        elif isinstance(like, tuple) and len(part) != len(like):
            raise ValueError(f"{name} must have {len(like)} parts, not {len(part)}")


def _check_part(name: str, part: Any, like: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(part, Tensor):
        raise ValueError(f"{name} must be a tensor, not {type(part).__name__}")
    if part.shape != shape or part.dtype != like.dtype:
        raise ValueError(
            f"{name} must be {shape} {like.dtype}, not {tuple(part.shape)} {part.dtype}"
        )
    if part.device != like.device and not like.is_meta:  # weights may be offloaded
        raise ValueError(f"{name} must be on {like.device}, not {part.device}")


def _pairs(name: str, state: Any, expected: Any) -> Iterator[tuple[str, Any, Any]]:
    """The names of the parts of a state, each with the part and the expected one."""
    yield name, state, expected
    if isinstance(expected, tuple) and type(state) is type(expected):
        fields = getattr(expected, "_fields", None)
        for place, (part, like) in enumerate(zip(state, expected, strict=False)):
            key = f".{fields[place]}" if fields else f"[{place}]"
            yield from _pairs(name + key, part, like)


def _kind(part: Any) -> str:
    return "None" if part is None else f"of type {type(part).__name__}"


def check_finite(name: str, x: Tensor) -> None:
    """Raises a ValueError if x is not finite. Checks on a CPU only, because elsewhere the check
    would have to wait for the device."""
    if not can_look(x) or bool(x.detach().sum().isfinite()):
        return
    finite = x.detach().isfinite()
    if not bool(finite.all()):  # a sum may overflow
        place = tuple((~finite).nonzero()[0].tolist())
        raise ValueError(
            f"{name} must be finite, but {int((~finite).sum())} of its {x.numel()} numbers are "
            f"not; the first is {x[place].item()} at {list(place)}"
        )


def can_look(x: Tensor) -> bool:
    """Whether code may read the values of x: not while tracing, and not on another device."""
    return (
        x.device.type == "cpu"
        and type(x) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and not is_transformed()
    )
