"""Fills a model with tensors, which may be mapped from files."""

import os
from collections.abc import Mapping
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor, nn

from openxlstm.errors import UserError
from openxlstm.lm.weight_files import Weights


def fill(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    mapped: bool = True,
) -> None:
    """Replaces a model's parameters, which may be on the meta device, by tensors of the same names
    and shapes.

    Args:
        tensors: by the names of `model.state_dict()`; a parameter with several names is needed
            under its first name only.
        source: the origin of the tensors, for error messages.
        dtype: the dtype of all parameters; None keeps the tensors', or the widest if they differ.
        mapped: whether the model shares the memory of the tensors, which may be mapped from a file,
            or copies them. On Windows it always copies: a mapped file could not be replaced there.

    Raises:
        UserError: with the name of the first tensor that is missing, unknown, of another shape or
            not floating-point. The model is unchanged then.
    """
    places = _places(model)
    for name in sorted(places.keys() | set(tensors)):
        if name not in tensors:
            raise UserError(f"{source} lacks the tensor {name}: it holds another model")
        if name not in places:
            raise UserError(f"{source} holds {name}, which the model does not have")
        found, wanted = _shape(tensors, name), tuple(places[name][0].shape)
        if found != wanted:
            raise UserError(f"{source} has {name} of shape {found}; the model needs {wanted}")
        if not _dtype(tensors, name).is_floating_point:
            kind = str(_dtype(tensors, name)).removeprefix("torch.")
            raise UserError(f"{source} has {name} in {kind}; weights are floating-point numbers")
    mapped = mapped and os.name != "nt"
    if dtype is None:
        dtype = reduce(torch.promote_types, (_dtype(tensors, name) for name in places))
    # The largest first: during a copy, a tensor exists twice.
    for name in sorted(places, key=lambda name: places[name][0].numel(), reverse=True):
        parameter, owners = places[name]
        if isinstance(tensors, Weights) and not (mapped and tensors.dtype(name) == dtype):
            value = tensors.copy_of(name, dtype)
        else:
            value = tensors[name].detach().to(dtype, copy=not mapped)
        filled = nn.Parameter(value, requires_grad=parameter.requires_grad)
        for owner, attribute in owners:
            setattr(owner, attribute, filled)


def _places(model: nn.Module) -> dict[str, tuple[nn.Parameter, list[tuple[nn.Module, str]]]]:
    """Per parameter, by its first name, all modules and attributes that hold it."""
    places: dict[str, tuple[nn.Parameter, list[tuple[nn.Module, str]]]] = {}
    first: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, _, attribute = name.rpartition(".")
        at = places.setdefault(first.setdefault(parameter, name), (parameter, []))
        at[1].append((model.get_submodule(owner), attribute))
    return places


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return tensors.shape(name) if isinstance(tensors, Weights) else tuple(tensors[name].shape)


def _dtype(tensors: Mapping[str, Tensor], name: str) -> torch.dtype:
    return tensors.dtype(name) if isinstance(tensors, Weights) else tensors[name].dtype
