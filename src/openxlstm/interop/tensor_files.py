"""Reads the tensors of a checkpoint from safetensors files, or from files of `torch.save` without
running any code in them."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openxlstm.errors import UserError
from openxlstm.interop.translate import LazyTensors
from openxlstm.lm.weight_files import open_weights

TORCH_FILES = (".pt", ".pth", ".bin", ".ckpt")
NESTED = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training scripts store the tensors of a model."""


def open_checkpoint(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint, mapped from the file where that is possible.

    Args:
        path: a safetensors file or index, a file of `torch.save`, or a folder with one of them.

    Raises:
        UserError: if it is missing or damaged, or reading it would run code.
    """
    if path.is_dir():
        found = [file for file in sorted(path.iterdir()) if file.suffix in TORCH_FILES]
        if any(path.glob("*.safetensors")) or not found:
            return open_weights(path)
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise UserError(f"{path} has several checkpoints: give one of {names}")
        path = found[0]
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.suffix in TORCH_FILES:
        return _state_dict(_load(path), path)
    if path.suffix in (".safetensors", ".json"):
        return open_weights(path)
    raise UserError(f"{path} is not a .safetensors file or one of {', '.join(TORCH_FILES)}")


def below_prefix(tensors: Mapping[str, Tensor], anchor: str, place: Path) -> Mapping[str, Tensor]:
    """The tensors without the prefix that a wrapper adds to the names of a model.

    Args:
        anchor: the name, without prefix, of a tensor that every model has.

    Raises:
        UserError: if the checkpoint contains several models.
    """
    prefixes = [name[: -len(anchor)] for name in tensors if name.endswith(anchor)]
    prefixes = [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]
    if len(prefixes) > 1:
        found = " and ".join(repr(prefix) for prefix in sorted(prefixes))
        raise UserError(f"{place} holds several models, below {found}: save one of them")
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
                f"{path} is damaged, or cannot be read without running code in it; "
                "save its tensors only, best as safetensors"
            ) from None
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path} is damaged or not a file of torch.save ({first})") from None


def _state_dict(values: Any, path: Path) -> dict[str, Tensor]:
    """The tensors in a saved object: a state_dict, or a dictionary that contains one."""
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise UserError(f"{path} holds a {kind}, not a state_dict: save the state_dict")
    nested = [key for key in NESTED if _has_tensors(values.get(key))]
    if len(nested) > 1:
        raise UserError(f"{path} has several state_dicts, {', '.join(nested)}: save one of them")
    if nested:
        return _state_dict(values[nested[0]], path)
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path} holds {name!r}, a {type(value).__name__}: save tensors only")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise UserError(f"{path} holds {name}, which is not a dense tensor: convert it")
    if not values:
        raise UserError(f"{path} holds no tensors")
    return values


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and (
        any(isinstance(part, Tensor) for part in value.values())
        or any(_has_tensors(value.get(key)) for key in NESTED)
    )
