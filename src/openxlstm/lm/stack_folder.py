"""A stack of blocks in a folder, with `config.json` and weights like a language model's."""

from pathlib import Path

import torch

from openxlstm.config import StackConfig
from openxlstm.lm.config_file import read_config, write_config
from openxlstm.lm.folder import fill
from openxlstm.lm.weight_files import open_weights, save_weights
from openxlstm.nn.init import without_memory
from openxlstm.nn.stack import Stack


def save_stack(stack: Stack, folder: str | Path, *, shard_bytes: int | None = None) -> None:
    """Writes `config.json` and `model.safetensors`, each atomically.

    Weights that take more than `shard_bytes` are written to several files and an index.

    Raises:
        OSError: if something cannot be written.
    """
    save_weights(Path(folder), dict(stack.named_parameters()), shard_bytes=shard_bytes)
    write_config(stack.config, folder)


def load_stack(
    folder: str | Path, *, dtype: torch.dtype | None = None, mapped: bool = True
) -> Stack:
    """Loads a stack that `save_stack` or `openxlstm convert` wrote, in evaluation mode.

    Args:
        dtype: of the weights; None leaves them as they are stored.
        mapped: whether the weights are mapped from the file, or read now.

    Raises:
        UserError: if a file is missing or damaged, or the weights do not fit the configuration.
    """
    with without_memory():
        stack = Stack(read_config(folder, StackConfig))
    weights = open_weights(folder)
    fill(stack, weights, weights.source, dtype=dtype, mapped=mapped)
    return stack.eval()
