"""A model as a folder: `config.json` and `model.safetensors`, beside what a tokenizer writes."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openxlstm.config import ModelConfig
from openxlstm.errors import UserError
from openxlstm.files import read_json, write_atomically, write_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = "openxlstm"


def save_config(config: ModelConfig, folder: str | Path) -> None:
    """Writes `config.json`."""
    write_json(Path(folder) / CONFIG, {"format": FORMAT, "model": config.to_dict()})


def load_config(folder: str | Path) -> ModelConfig:
    """The configuration of the model in `folder`.

    Raises:
        UserError: if there is none, or not one that this version understands.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        hint = f"it has no {CONFIG}" if Path(folder).exists() else "it does not exist"
        raise UserError(f"{folder} is not a model's folder: {hint}")
    values = read_json(path)
    if values.get("format") != FORMAT or "model" not in values:
        raise UserError(f"{path} is not an openxlstm model's configuration")
    try:
        return ModelConfig.from_dict(values["model"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def save_weights(path: Path, tensors: dict[str, Tensor], *, tied: bool = False) -> None:
    """Writes tensors to a safetensors file, atomically. A tied head is stored once.

    Raises:
        OSError: if it cannot be written: no space, no permission.
    """
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in tensors.items()
        if not (tied and name == "head.weight")
    }
    try:
        write_atomically(path, lambda temporary: save_file(tensors, temporary))
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written ({error})") from None


def load_weights(model: nn.Module, path: Path, *, tied: bool = False) -> None:
    """Puts a file's tensors into a model; names and shapes must be the model's.

    Raises:
        UserError: if the file is missing, truncated or no safetensors file; or that names the first
            tensor that is missing, unknown or of another shape.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error})") from None
    expected = model.state_dict()
    if tied:
        expected.pop("head.weight")
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise UserError(f"{path} lacks the tensor {name}: it holds another model")
        if name not in expected:
            raise UserError(f"{path} holds {name}, which the model does not have")
        found, wanted = tuple(tensors[name].shape), tuple(expected[name].shape)
        if found != wanted:
            raise UserError(f"{path} has {name} of shape {found}; the model needs {wanted}")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])
