"""The seam between an op and the code that runs it. It knows no mathematics.

Each op has a table of backends in order of preference. A backend says, from metadata alone, why it
cannot run a request; the first that does not refuse runs. A backend asked for by name runs or
raises its reason: nothing falls back in silence.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


class CallContext(Enum):
    """The context in which an op is called."""

    PLAIN = "plain"
    """Eager mode, or `torch.compile`, which sees through every backend."""
    EXPORT = "export"
    """`torch.export`, whose program may run on another machine and for any number of steps."""
    TRANSFORM = "transform"
    """A transform of `torch.func`, or forward-mode differentiation: both take operations apart and
    do not see through an operation that brings its own backward."""


def call_context() -> CallContext:
    """The context of the running call."""
    if is_exported():
        return CallContext.EXPORT
    if is_transformed() or forward_ad._current_level >= 0:
        return CallContext.TRANSFORM
    return CallContext.PLAIN


def is_exported() -> bool:
    """Whether `torch.export` records the call, so that no size may be taken for a constant."""
    return torch.compiler.is_exporting()


def is_transformed() -> bool:
    """Whether a transform such as `torch.func.vmap` runs, so that tensors may be wrapped."""
    return torch._C._are_functorch_transforms_active()  # pyright: ignore[reportAttributeAccessIssue]


Sizes = Mapping[str, int]
"""Sizes of a request by name, such as {"T": 256, "DHV": 64}; truth values count as 0 and 1."""


@dataclass(frozen=True)
class Request:
    """The metadata by which a backend decides whether it can run a call."""

    device: str
    """Type of the device, such as "cpu" or "cuda"."""
    dtype: torch.dtype
    """Dtype of the inputs."""
    sizes: Sizes | None
    """Sizes of the inputs. None where no sizes are known, as in `openxlstm info`: then no backend
    refuses because of a size."""
    context: CallContext


@dataclass(frozen=True)
class Backend:
    """One way to run an op."""

    name: str
    refuses: Callable[[Request], str | None]
    """Returns the reason why it cannot run a request, or None."""
    run: Callable[..., Any]
    """The function; all of an op's backends have the same signature."""
    slow: bool = False
    """Whether a warning is due where it runs without having been asked for."""


Table = Mapping[str, Sequence[Backend]]
"""Backends of each op, in order of preference."""


class BackendError(RuntimeError):
    """No backend can run a call, or the one asked for by name cannot."""


def pick(
    op: str, table: Table, x: Tensor, sizes: Sizes, name: str | None = None
) -> Callable[..., Any]:
    """Returns the function of the first backend that can run the call, or of the one named.

    Backends run with autocast off: it would cast matmuls but not accumulations, and mix dtypes.

    Args:
        op: the name of the op, a key of `table`.
        x: an input of the call, whose device and dtype count.
        sizes: every size that one of the backends asks for.
        name: the name of a backend; None takes the first that does not refuse.

    Raises:
        ValueError: if no backend has that name.
        BackendError: if the named backend, or every backend, refuses.
        KeyError: if a backend asks for a size that is not given.
    """
    device, backends = x.device.type, table[op]
    request = Request(device, x.dtype, sizes, call_context())
    chosen = _first(op, backends, request) if name is None else _named(op, backends, request, name)
    return _without_autocast(chosen.run, device)


def _first(op: str, backends: Sequence[Backend], request: Request) -> Backend:
    for backend in backends:
        if backend.refuses(request) is None:
            if backend.slow and not torch.compiler.is_compiling():
                _announce(op, backend.name, _reasons(backends, request))
            return backend
    raise BackendError(f"no backend runs {op} here: {_reasons(backends, request)}")


def _named(op: str, backends: Sequence[Backend], request: Request, name: str) -> Backend:
    for backend in backends:
        if backend.name == name:
            reason = backend.refuses(request)
            if reason is not None:
                raise BackendError(f"the backend {name!r} cannot run {op} here: {reason}")
            return backend
    names = ", ".join(backend.name for backend in backends)
    raise ValueError(f"{op} has no backend {name!r}; it has: {names}")


def _without_autocast(run: Callable[..., Any], device: str) -> Callable[..., Any]:
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return run

    def run_as_given(*arguments: Any, **options: Any) -> Any:
        with torch.autocast(device, enabled=False):
            return run(*arguments, **options)

    return run_as_given


def without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The `backward` of a `torch.autograd.Function`, which somebody may call under autocast."""

    def run(ctx: Any, *grads: Tensor | None) -> Any:
        device = next(grad.device.type for grad in grads if grad is not None)
        return _without_autocast(backward, device)(ctx, *grads)

    return run


def _reasons(backends: Sequence[Backend], request: Request) -> str:
    reasons = ((backend.name, backend.refuses(request)) for backend in backends)
    return "; ".join(f"{name}: {reason}" for name, reason in reasons if reason is not None)


@cache
def _announce(op: str, name: str, reasons: str) -> None:
    warnings.warn(
        f"openxlstm runs {op} with its slow backend {name!r} ({reasons}); see `openxlstm info`",
        stacklevel=5,
    )


def never(request: Request) -> None:
    """Refuses nothing: for a backend that runs everything."""


def outside_plain(request: Request) -> str | None:
    """Why a backend with its own backward cannot run a request, or None."""
    match request.context:
        case CallContext.PLAIN:
            return None
        case CallContext.EXPORT:
            return "an exported program is for any machine and any number of steps"
        case CallContext.TRANSFORM:
            return "torch.func and forward-mode differentiation do not see through it"


def outside_export(request: Request) -> str | None:
    """Why a backend for exported programs cannot run a request, or None."""
    is_export = request.context is CallContext.EXPORT
    return None if is_export else "it is for exported programs"


def by_sizes(refuses: Callable[[Sizes], str | None]) -> Callable[[Request], str | None]:
    """A rule about requests from a rule about sizes; it passes where no sizes are known."""

    def refuses_request(request: Request) -> str | None:
        return None if request.sizes is None else refuses(request.sizes)

    return refuses_request
