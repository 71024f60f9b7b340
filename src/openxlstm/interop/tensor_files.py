"""The files that hold a checkpoint: safetensors, or what `torch.save` wrote, of which nothing but
tensors is read."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openxlstm.errors import UserError
from openxlstm.interop.translate import LazyTensors
from openxlstm.lm.weights import open_weights

TORCH_FILES = (".pt", ".pth", ".bin", ".ckpt")
NESTED = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training scripts put a model's tensors, beside their optimizer's."""


def open_checkpoint(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint, mapped from the file where that is possible.

    Args:
        path: a safetensors file or index, a file of `torch.save`, or a folder with one of them.

    Raises:
        UserError: if there is none, or it is damaged, or would have code run to be read.
    """
    if path.is_dir():
        found = [file for file in sorted(path.iterdir()) if file.suffix in TORCH_FILES]
        if any(path.glob("*.safetensors")) or not found:
            return open_weights(path)
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise UserError(f"{path} has several checkpoints: name one of {names}")
        path = found[0]
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.suffix in TORCH_FILES:
        return _state_dict(_load(path), path)
    if path.suffix in (".safetensors", ".json"):
        return open_weights(path)
    raise UserError(f"{path} is no .safetensors file and none of {', '.join(TORCH_FILES)}")


def below_prefix(tensors: Mapping[str, Tensor], anchor: str, place: Path) -> Mapping[str, Tensor]:
    """The tensors with the prefix taken off that wrappers put before a model's names.

    Args:
        anchor: the name, without a prefix, of a tensor that every model has.

    Raises:
        UserError: if there are several models in it.
    """
    prefixes = [name[: -len(anchor)] for name in tensors if name.endswith(anchor)]
    prefixes = [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]
    if len(prefixes) > 1:
        found = " and ".join(repr(prefix) for prefix in sorted(prefixes))
        raise UserError(f"{place} holds several models, below {found}: save the one that is meant")
    prefix = prefixes[0] if prefixes else ""
    if not prefix:
        return tensors
    names = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    names |= {name: name for name in tensors if not name.startswith(prefix)}
    return LazyTensors.renamed(tensors, names)


def _load(path: Path) -> Any:
    try:
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise anything
        if type(error).__name__ == "UnpicklingError":
            raise UserError(
                f"{path} cannot be read without running code that it brings along, or is damaged; "
                "have its tensors alone saved, best as safetensors"
            ) from None
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path} is damaged or no file of torch.save ({first})") from None


def _state_dict(values: Any, path: Path) -> dict[str, Tensor]:
    """The tensors in what was saved: a state_dict, or a table with one in it."""
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise UserError(f"{path} holds a {kind}; a state_dict is needed")
    nested = [key for key in NESTED if _has_tensors(values.get(key))]
    if len(nested) > 1:
        raise UserError(f"{path} has several tables of tensors, {', '.join(nested)}: save one")
    if nested:
        return _state_dict(values[nested[0]], path)
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path} holds {name!r}, a {type(value).__name__}; tensors are needed")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise UserError(f"{path} holds {name}, which is no ordinary tensor")
    if not values:
        raise UserError(f"{path} holds no tensors")
    return values


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and (
        any(isinstance(part, Tensor) for part in value.values())
        or any(_has_tensors(value.get(key)) for key in NESTED)
    )
