"""A state as a file: what was read so far, to go on with tomorrow or elsewhere."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from openxlstm.errors import UserError
from openxlstm.files import write_atomically
from openxlstm.states import KINDS

FORMAT = "openxlstm state"


def save_state(state: Any, path: str | Path) -> None:
    """Writes a state of any kind to a safetensors file, atomically.

    Raises:
        ValueError: if it is none.
        OSError: if the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_described(state, "", tensors))
    metadata = {"format": FORMAT, "state": tree}
    try:
        write_atomically(Path(path), lambda unfinished: save_file(tensors, unfinished, metadata))
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written ({error})") from None


def load_state(path: str | Path) -> Any:
    """The state that `save_state` wrote, on the CPU; its `to` moves it.

    Raises:
        UserError: if the file is missing or damaged, or holds no state.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path} holds no state that save_state wrote")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _made(json.loads(metadata["state"]), "", tensors)
    except UserError:
        raise
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is damaged: its state is nested too deeply") from None


def _described(part: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """How `part` is put together, as JSON; its tensors go into `tensors`, each under its name."""
    if part is None:
        return None
    if isinstance(part, Tensor):
        tensors[name] = part.detach().contiguous().clone()  # safetensors refuses shared memory
        return "tensor"
    if isinstance(part, KINDS):
        fields = zip(part._fields, part, strict=True)
        return {
            type(part).__name__: {
                key: _described(value, f"{name}.{key}".strip("."), tensors) for key, value in fields
            }
        }
    if isinstance(part, tuple):
        return [_described(item, f"{name}.{place}", tensors) for place, item in enumerate(part)]
    raise ValueError(f"a state is made of named tuples of tensors, not of {type(part).__name__}")


def _made(described: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """What `_described` described."""
    if described is None:
        return None
    if described == "tensor":
        return tensors[name]
    if isinstance(described, list):
        return tuple(_made(item, f"{name}.{i}", tensors) for i, item in enumerate(described))
    ((kind, fields),) = described.items()
    (made,) = (known for known in KINDS if known.__name__ == kind)
    return made(**{key: _made(v, f"{name}.{key}".strip("."), tensors) for key, v in fields.items()})
