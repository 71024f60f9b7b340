"""Loading a model from a run's folder, or from any model's; large ones only where they fit."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from openxlstm.errors import UserError

if TYPE_CHECKING:
    import torch

    from openxlstm.config import StackConfig
    from openxlstm.lm.model import LanguageModel

Dtype = Literal["float32", "bfloat16"]
Checkpoint = Literal["best", "last"]
"""best: the weights with the lowest validation loss. last: those of the newest checkpoint."""

LARGE = 1e9
"""Bytes of weights from which on memory is checked and its use is announced."""


def load_model(
    folder: Path,
    checkpoint: Checkpoint = "best",
    *,
    dtype: Dtype | None = None,
    say: Callable[[str], object] | None = None,
) -> "LanguageModel":
    """Loads the model of a run, or of a folder in the format of Hugging Face or NX-AI.

    Args:
        dtype: of the weights; None leaves them as they are stored.
        say: called with a line about what a large model takes, and about damaged checkpoints.

    Raises:
        UserError: if something is missing, damaged or does not fit together, or memory is short.
    """
    import torch

    from openxlstm.config import ModelConfig
    from openxlstm.lm.config_file import read_config
    from openxlstm.lm.model import LanguageModel
    from openxlstm.lm.weight_files import open_weights

    kind = None if dtype is None else getattr(torch, dtype)
    if is_foreign(folder):
        from openxlstm.interop.opening import format_of, open_foreign

        opened = open_foreign(folder, format_of(folder))
        stored = {tensor.dtype for tensor in opened.tensors.values()}
        _check_memory(folder, opened.config, stored, kind, say)
        return opened.model(dtype=kind)
    if checkpoint == "best":
        config, weights = read_config(folder, ModelConfig), open_weights(folder)
        stored = {weights.dtype(name) for name in weights}
        _check_memory(folder, config, stored, kind, say)
        return LanguageModel.from_pretrained(folder, dtype=kind)

    from openxlstm.runs.run_folder import newest_checkpoint
    from openxlstm.train.checkpoint import load_weights  # half a second

    model = LanguageModel(read_config(folder, ModelConfig)).eval()
    load_weights(newest_checkpoint(folder, say), model)
    return model.to(kind)


def is_foreign(folder: Path) -> bool:
    """Whether a folder is one of Hugging Face's xLSTM or of NX-AI's."""
    from openxlstm.files import read_json
    from openxlstm.lm.config_file import CONFIG, FORMAT

    if (folder / CONFIG).is_file():
        values = read_json(folder / CONFIG)
        return values.get("format") != FORMAT and values.get("model_type") == "xlstm"
    return (folder / "config.yaml").is_file()


def _check_memory(
    folder: Path,
    config: "StackConfig",
    stored: "set[torch.dtype]",
    dtype: "torch.dtype | None",
    say: Callable[[str], object] | None,
) -> None:
    """Announces what a large model takes before it is loaded, beside the memory that is free.

    Raises:
        UserError: if it would take memory of its own, and there is not enough.
    """
    from openxlstm.config import ModelConfig
    from openxlstm.device import free_memory_bytes
    from openxlstm.lm.memory import loaded_memory

    if not isinstance(config, ModelConfig):
        return  # a stack alone, which Opened.model refuses
    memory = loaded_memory(config, stored, dtype)
    if memory.weights < LARGE:
        return
    free = free_memory_bytes()
    if not memory.is_mapped and free is not None and memory.total > free:
        raise UserError(
            f"{folder} takes {memory} and {size_in_words(free)} of memory are free: omit "
            "--dtype to map the weights as they are stored, or free some memory"
        )
    if say is not None:
        words = "" if free is None else f"; {size_in_words(free)} of memory are free"
        if free is not None and memory.total > free:
            words += ", so parts of it will be read again and again, which is slow"
        say(f"{folder} takes {memory}{words}")


def size_in_words(count: float) -> str:
    """A size in decimal units, as memory of models is written."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.95:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:,.4g} TB"
