"""A stack of blocks as a folder: `config.json` and weights, as a language model's."""

from pathlib import Path

import torch

from openxlstm.config import StackConfig
from openxlstm.errors import UserError
from openxlstm.files import read_json, write_json
from openxlstm.lm.folder import CONFIG, FORMAT, fill
from openxlstm.lm.weights import open_weights, save_weights
from openxlstm.nn.init import without_memory
from openxlstm.nn.stack import Stack


def save_stack(stack: Stack, folder: str | Path, *, shard_bytes: int | None = None) -> None:
    """Writes `config.json` and `model.safetensors`, each atomically.

    Weights that take more than `shard_bytes` are written to several files and an index.

    Raises:
        OSError: if something cannot be written.
    """
    save_weights(Path(folder), dict(stack.named_parameters()), shard_bytes=shard_bytes)
    save_stack_config(stack.config, folder)


def load_stack(
    folder: str | Path, *, dtype: torch.dtype | None = None, mapped: bool = True
) -> Stack:
    """The stack in a folder that `save_stack` or `openxlstm convert` wrote, for evaluation.

    Args:
        dtype: of the weights; None leaves them as they are stored.
        mapped: whether they are mapped from the file, or read now.

    Raises:
        UserError: if a file is missing or damaged, or the weights do not fit the configuration.
    """
    with without_memory():
        stack = Stack(load_stack_config(folder))
    weights = open_weights(folder)
    fill(stack, weights, weights.source, dtype=dtype, mapped=mapped)
    return stack.eval()


def save_stack_config(config: StackConfig, folder: str | Path) -> None:
    """Writes `config.json`."""
    write_json(Path(folder) / CONFIG, {"format": FORMAT, "stack": config.to_dict()})


def load_stack_config(folder: str | Path) -> StackConfig:
    """The configuration of the stack in `folder`.

    Raises:
        UserError: if there is none, or not one that this version understands.
    """
    path = Path(folder) / CONFIG
    values = read_json(path)
    if values.get("format") != FORMAT or "stack" not in values:
        raise UserError(f"{path} is not the configuration of a stack of openxlstm")
    try:
        return StackConfig.from_dict(values["stack"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
