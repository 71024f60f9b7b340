"""The native CPU backend: whether it is here, and what all of its operators share.

Importing `_native` registers `torch.ops.openxlstm.…`; each `native_*.py` gives its operators their
autograd formulas and, for tracing, the shapes of what they return.
"""

import importlib
from collections.abc import Callable, Iterable
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.dispatch import Request, plain_only

FEW = 8
"""Rows up to which packing the weights costs more than it saves."""


def refuses(request: Request) -> str | None:
    """Why the native backend cannot run a request, or None."""
    if request.device != "cpu":
        return f"it runs on the CPU, not on {request.device}"
    if request.dtype == torch.float64:
        return "it computes in float32, and float64 was given"
    return missing() or plain_only(request)


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
    # A training step's tensors come and go. glibc gives what is freed back to the system, which
    # zeroes it before it hands it out anew, unless as large a block was freed before (up to 32 MB).
    torch.empty(31 << 18, dtype=torch.float32)


def extension() -> Any:
    """The extension module `_native`, which must not be missing."""
    return importlib.import_module("openxlstm.ops._native")


def missing() -> str | None:
    """Why the extension is not there, or None where it is."""
    return _MISSING


def register(
    name: str, fake: Callable[..., Any], setup: Callable[..., None], backward: Callable[..., Any],
    grad_fake: Callable[..., Any],
) -> None:  # fmt: skip
    """Tells torch about the operators `name` and `name_grad`, if they are here.

    Args:
        fake, grad_fake: from arguments to empty results of the right shapes.
        setup: what the forward keeps for the backward.
        backward: from gradients of the results to those of the arguments.
    """
    if missing() is None:
        torch.library.register_fake(f"openxlstm::{name}", fake)
        torch.library.register_fake(f"openxlstm::{name}_grad", grad_fake)
        torch.library.register_autograd(f"openxlstm::{name}", backward, setup_context=setup)
        torch.library.register_autograd(f"openxlstm::{name}_grad", _twice)


def _twice(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "openxlstm's native operators cannot be differentiated twice; the mathematics in "
        "openxlstm.reference can"
    )


def saves(*inputs: Tensor | None) -> bool:
    """Whether a forward has to keep what a backward would read."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def present(grads: Iterable[Tensor], inputs: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Gradients in the shapes of the inputs, None for an input that is not there.

    An operator returns tensors only, and an empty one in that place.
    """
    pairs = zip(grads, inputs, strict=False)
    return [None if x is None else grad.view(x.shape) for grad, x in pairs]


def empties(first: Tensor, *others: Tensor | None) -> list[Tensor]:
    """Gradients of these inputs as an operator returns them, for tracing."""
    return [first.new_empty(0 if x is None else x.shape) for x in (first, *others)]


def rows(x: Tensor) -> Tensor:
    """x itself where its last dimension is dense, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def dense(x: Tensor | None) -> Tensor | None:
    """x in one piece; None stays None."""
    return None if x is None else x.contiguous()


def narrow(request: Request) -> str | None:
    """Why an op whose result keeps a low precision is better left to torch, or None."""
    if request.dtype != torch.float32:
        return f"it computes in float32, and {request.dtype} was given"
    return None


MAX_KERNEL = 8
"""The longest convolution that the fused kernels hold in registers."""


def long_kernel(request: Request) -> str | None:
    """Why a convolution is too long, or None."""
    K = dict(request.sizes).get("K", 0)
    return f"a convolution over {K} steps is too long for it" if K > MAX_KERNEL else None


def odd_inner_width(request: Request) -> str | None:
    """Why the inner width of an mLSTM block does not fit, or None."""
    E = dict(request.sizes).get("E", 16)
    return f"the inner width {E} is not a multiple of 16" if E % 16 else None


def few_rows(request: Request) -> str | None:
    """Why so few rows are better left to torch, or None: packing weights would cost more."""
    rows = dict(request.sizes).get("rows", FEW + 1)
    return f"{rows} rows are too few to pack weights for" if rows <= FEW else None


def refuses_layer(request: Request) -> str | None:
    """Why a layer, which packs its weights and keeps the dtype of its input, is left to torch."""
    return refuses(request) or narrow(request) or few_rows(request)
