"""The native CPU backend: whether it was built, and what its operators share.

Importing `_native` registers `torch.ops.openxlstm.…`; each module of this folder gives its
operators their gradients and, for tracing, the shapes of their results.
"""

import importlib
import sys
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.dispatch import Request, Sizes, by_sizes, outside_plain

FEW = 8
"""Most rows for which packing the weights costs more time than it saves."""


def refuses(request: Request) -> str | None:
    """Why the native backend cannot run a request, or None."""
    if request.device != "cpu":
        return f"it runs on the CPU, not on {request.device}"
    if request.dtype == torch.float64:
        return "it computes in float32, and float64 was given"
    return missing() or outside_plain(request)


def _load() -> str | None:
    try:
        importlib.import_module("openxlstm.ops._native")
    except ImportError as error:
        note = files("openxlstm.ops") / "_native_missing.txt"
        if note.is_file():
            return note.read_text(encoding="utf-8").strip()
        return f"its extension could not be loaded: {error}"
    return None


_MISSING = _load()

if _MISSING is None:
    # A training step allocates and frees large tensors. glibc returns freed memory to the system,
    # which zeroes it before the next use, unless a block as large (up to 32 MB) was freed before.
    torch.empty(31 << 18, dtype=torch.float32)


_EXTENSION = sys.modules.get("openxlstm.ops._native")


def extension() -> Any:
    """The extension module `_native`, which must not be missing."""
    return _EXTENSION  # not imported here, which torch.compile would not trace


def missing() -> str | None:
    """Why the extension is missing, or None if it is loaded."""
    return _MISSING


# Read once, since torch.compile does not trace an import.
MAX_KERNEL: int = 0 if _MISSING else extension().MAX_KERNEL
"""Most steps of a convolution that the fused kernels take."""
MAX_CHUNK: int = 0 if _MISSING else extension().MAX_CHUNK
"""Most steps per chunk of the mLSTM's kernel."""


def arguments_of(operator: str) -> type[Any]:
    """A named tuple of an operator's arguments, named as its schema in C++ names them."""
    return namedtuple(operator, (x.name for x in _schema(operator).arguments))  # pyright: ignore


def returns_of(operator: str) -> type[Any]:
    """A named tuple of what an operator returns; a single result is called `result`."""
    return namedtuple(operator, (x.name or "result" for x in _schema(operator).returns))  # pyright: ignore


def _schema(operator: str) -> Any:
    return getattr(torch.ops.openxlstm, operator).default._schema


def register(
    operator: str,
    arguments: Sequence[str],
    *,
    fake: Callable[[Any], Any],
    backward: Callable[[Any, Any, Any], Mapping[str, Tensor | None]],
    grad_fake: Callable[[Any], Sequence[Tensor]],
    also_saved: Sequence[str] = (),
) -> None:
    """Gives torch the shapes and gradients of `operator`; its C++ schema names everything.

    The forward saves what `<operator>_grad` takes by the same names, which are its first arguments.
    Where the extension was not built, this does nothing.

    Args:
        arguments: names of the operator's arguments, in the order in which Python passes them.
        fake: from the arguments, a named tuple, to empty results of the right shapes.
        backward: from what was saved, the gradients of the results, and whether each argument needs
            a gradient (named tuples) to gradients of arguments by name; the others have none.
        grad_fake: as `fake`, for `<operator>_grad`.
        also_saved: names of further arguments and results to save, after those.

    Raises:
        AssertionError: if the C++ schema names other arguments or another order.
    """
    if missing() is not None:
        return
    grad = f"{operator}_grad"
    Arguments, Returns = arguments_of(operator), returns_of(operator)
    GradArguments = arguments_of(grad)
    assert tuple(arguments) == Arguments._fields, (
        f"Python passes {operator} {tuple(arguments)}, its extension takes {Arguments._fields}; "
        "build the extension anew: python setup.py build_ext --inplace"
    )
    known_names = (*Arguments._fields, *Returns._fields)
    shared = [name for name in GradArguments._fields if name in known_names]
    assert shared == list(GradArguments._fields[: len(shared)]), f"{grad} takes gradients last"
    Saved = namedtuple("Saved", (*shared, *also_saved))  # pyright: ignore

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        results = output if isinstance(output, tuple) else (output,)
        known = dict(zip(Returns._fields, results, strict=True))
        known |= zip(Arguments._fields, inputs, strict=True)
        saved = [known[name] for name in Saved._fields]
        ctx.save_for_backward(*(x for x in saved if isinstance(x, Tensor)))
        ctx.others = [None if isinstance(x, Tensor) else (x,) for x in saved]
        ctx.set_materialize_grads(False)

    def run_backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = iter(ctx.saved_tensors)  # read once: activation checkpointing recomputes them
        saved = Saved(*(next(tensors) if x is None else x[0] for x in ctx.others))
        grads = backward(saved, Returns(*upstream), Arguments(*ctx.needs_input_grad))
        return tuple(grads.get(name) for name in Arguments._fields)

    library = torch.library

    def run_fake(*given: Any) -> Any:
        _check_devices(operator, given)
        return fake(Arguments(*given))

    def run_grad_fake(*given: Any) -> Any:
        _check_devices(grad, given)
        return tuple(grad_fake(GradArguments(*given)))

    library.register_fake(f"openxlstm::{operator}", run_fake)
    library.register_fake(f"openxlstm::{grad}", run_grad_fake)
    library.register_autograd(f"openxlstm::{operator}", run_backward, setup_context=setup_context)
    library.register_autograd(f"openxlstm::{grad}", _refuse_second_derivative)


def _check_devices(operator: str, given: Sequence[Any]) -> None:
    """Torch calls a fake also for real tensors beside meta tensors, whose result would be empty."""
    devices = {str(x.device) for x in given if isinstance(x, Tensor)}
    if len(devices) > 1:
        raise RuntimeError(f"openxlstm.{operator}: tensors are on {' and '.join(sorted(devices))}")


def _refuse_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "openxlstm's native operators cannot be differentiated twice; the mathematics in "
        "openxlstm.reference can"
    )


def needs_saving(*inputs: Tensor | None) -> bool:
    """Whether a forward has to keep what a backward would read."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def grads_or_none(
    inputs: Mapping[str, Tensor | None], grads: Iterable[Tensor]
) -> dict[str, Tensor | None]:
    """Gradients by name, in the shapes of their inputs; None for an input that was not given.

    An operator returns a tensor for each input, an empty one where the input was not given.
    """
    pairs = zip(inputs.items(), grads, strict=True)
    return {name: None if x is None else grad.view(x.shape) for (name, x), grad in pairs}


def empty_grads(first: Tensor, *others: Tensor | None) -> list[Tensor]:
    """Gradients of these inputs as an operator returns them, for tracing."""
    return [first.new_empty(0 if x is None else x.shape) for x in (first, *others)]


def dense_rows(x: Tensor) -> Tensor:
    """x itself where its last dimension is contiguous, else a contiguous copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def contiguous(x: Tensor | None) -> Tensor | None:
    """x contiguous; None stays None."""
    return None if x is None else x.contiguous()


def low_precision(request: Request) -> str | None:
    """Why an op whose result keeps the dtype of its input is left to torch, or None."""
    if request.dtype != torch.float32:
        return f"it computes in float32, and {request.dtype} was given"
    return None


@by_sizes
def long_kernel(sizes: Sizes) -> str | None:
    """Why a convolution is too long for the fused kernels, or None."""
    K = sizes["K"]
    return f"a convolution over {K} steps is too long for it" if K > MAX_KERNEL else None


def compiled() -> str | None:
    """Why `torch.compile` takes the unfused ops instead of a fused block, or None."""
    if torch.compiler.is_compiling():
        return "how it splits a batch depends on sizes, which a compiled program leaves open"
    return None


@by_sizes
def odd_inner_width(sizes: Sizes) -> str | None:
    """Why the inner width of an mLSTM block does not fit, or None."""
    E = sizes["E"]
    return f"the inner width {E} is not a multiple of 16" if E % 16 else None


@by_sizes
def few_rows(sizes: Sizes) -> str | None:
    """Why PyTorch is faster for so few rows, or None: packing the weights would cost more."""
    rows = sizes["rows"]
    return f"{rows} rows are too few to pack weights for" if rows <= FEW else None


def refuses_layer(request: Request) -> str | None:
    """Why an op that packs its weights and keeps its input's dtype cannot run, or None."""
    return refuses(request) or low_precision(request) or few_rows(request)
