"""The seam between an operation and the code that runs it. Knows no mathematics.

An op owns a tuple of backends in order of preference. Each says, from metadata alone, why it cannot
take a request; the first that does not refuse runs it. A backend that is asked for by name runs or
raises with its reason: nothing falls back in silence.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any

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


@dataclass(frozen=True)
class Request:
    """What a backend may look at before it says yes: no values, only metadata."""

    device: str
    """Type of the device, "cpu" or "cuda"."""
    dtype: torch.dtype
    """Dtype of the inputs."""
    sizes: tuple[tuple[str, int], ...] = ()
    """Sizes by name, e.g. (("T", 256), ("DHV", 64))."""
    wants_grad: bool = False
    """Whether gradients may be asked for."""
    place: Surroundings = field(default_factory=surroundings)
    """What goes on around the call."""


@dataclass(frozen=True)
class Backend:
    """One way to run an op."""

    name: str
    refuses: Callable[[Request], str | None]
    """Why it cannot run a request, or None."""
    run: Callable[..., Any]
    """Its function, with the signature of the reference's."""
    slow: bool = False
    """Whether choosing it where nobody asked for it deserves a word of warning."""


class BackendError(RuntimeError):
    """No backend runs this request, or the one asked for by name does not."""


def choose(
    op: str, backends: Sequence[Backend], request: Request, name: str | None
) -> Callable[..., Any]:
    """The function of the first backend that does not refuse, or of the one called `name`.

    It computes in the dtypes that it is given, whether autocast is on around it or not: what casts
    the products of a backend, but not its sums, would leave it with tensors that do not fit.

    Raises:
        ValueError: if no backend has that name.
        BackendError: if the named backend, or every one, refuses.
    """
    if name is None:
        for backend in backends:
            if backend.refuses(request) is None:
                if backend.slow and not torch.compiler.is_compiling():
                    _announce(op, backend.name, _reasons(backends, request))
                return _without_autocast(backend.run, request.device)
        raise BackendError(f"no backend runs {op} here: {_reasons(backends, request)}")
    for backend in backends:
        if backend.name == name:
            reason = backend.refuses(request)
            if reason is not None:
                raise BackendError(f"the backend {name!r} cannot run {op} here: {reason}")
            return _without_autocast(backend.run, request.device)
    raise ValueError(
        f"{op} has no backend {name!r}; it has: {', '.join(backend.name for backend in backends)}"
    )


def _without_autocast(run: Callable[..., Any], device: str) -> Callable[..., Any]:
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return run

    def run_as_given(*arguments: Any, **options: Any) -> Any:
        with torch.autocast(device, enabled=False):
            return run(*arguments, **options)

    return run_as_given


def _reasons(backends: Sequence[Backend], request: Request) -> str:
    reasons = ((backend.name, backend.refuses(request)) for backend in backends)
    return "; ".join(f"{name}: {reason}" for name, reason in reasons if reason is not None)


@cache
def _announce(op: str, name: str, reasons: str) -> None:
    warnings.warn(
        f"openxlstm runs {op} with its slow backend {name!r} ({reasons}); see `openxlstm info`",
        stacklevel=4,
    )


def never(request: Request) -> None:
    """For a backend that takes everything."""


def plain_only(request: Request) -> str | None:
    """For one that brings its own backward, and else takes everything."""
    match request.place:
        case Surroundings.PLAIN:
            return None
        case Surroundings.EXPORT:
            return "an exported program is for any machine and any number of steps"
        case Surroundings.TRANSFORM:
            return "torch.func and forward-mode differentiation do not see through it"


def export_only(request: Request) -> str | None:
    """For one that is written for exported programs."""
    return None if request.place is Surroundings.EXPORT else "it is for exported programs"
