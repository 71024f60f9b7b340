"""States as safetensors files, to continue later or on another machine."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from openxlstm.errors import UserError
from openxlstm.files import write_atomically
from openxlstm.states import KINDS, names, tensors

FORMAT = "openxlstm state"


def save_state(state: Any, path: str | Path) -> None:
    """Writes a state of any kind to a safetensors file, atomically.

    Raises:
        ValueError: if `state` is not a state.
        OSError: if the file cannot be written.
    """
    metadata = {"format": FORMAT, "state": json.dumps(_described(state))}
    parts = zip(names(state), tensors(state), strict=True)
    # Copies, because safetensors rejects tensors that share memory.
    found = {name: part.detach().contiguous().clone() for name, part in parts}
    try:
        write_atomically(Path(path), lambda unfinished: save_file(found, unfinished, metadata))
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written ({error})") from None


def load_state(path: str | Path) -> Any:
    """Loads a state that `save_state` wrote, on the CPU; `state.to` moves it.

    Raises:
        UserError: if the file is missing or damaged, or does not hold a state.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path} was not written by save_state: give another file")
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _made(json.loads(metadata["state"]), "", found)
    except UserError:
        raise
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is damaged: its state is nested too deeply") from None


def _described(part: Any) -> Any:
    """The structure of `part`, as JSON."""
    if part is None:
        return None
    if isinstance(part, Tensor):
        return "tensor"
    if isinstance(part, KINDS):
        return {type(part).__name__: {key: _described(v) for key, v in part._asdict().items()}}
    if isinstance(part, tuple):
        return [_described(item) for item in part]
    raise ValueError(f"a state is made of named tuples of tensors, not of {type(part).__name__}")


def _made(described: Any, name: str, found: dict[str, Tensor]) -> Any:
    """Rebuilds the state that `_described` describes, from its tensors by name."""
    if described is None:
        return None
    if described == "tensor":
        return found[name]
    if isinstance(described, list):
        return tuple(
            _made(item, f"{name}.{i}".strip("."), found) for i, item in enumerate(described)
        )
    ((kind, fields),) = described.items()
    (made,) = (known for known in KINDS if known.__name__ == kind)
    return made(**{key: _made(v, f"{name}.{key}".strip("."), found) for key, v in fields.items()})
