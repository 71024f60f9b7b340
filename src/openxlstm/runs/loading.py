"""A model and its tokenizer from a folder, with a word about memory before they are loaded."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from openxlstm.errors import UserError

if TYPE_CHECKING:
    import torch

    from openxlstm.config import ModelConfig, StackConfig
    from openxlstm.data.tokenizer import Tokenizer
    from openxlstm.lm.model import LanguageModel

Dtype = Literal["float32", "bfloat16"]
Checkpoint = Literal["best", "last"]
"""best: the weights with the lowest validation loss. last: those of the newest checkpoint."""

LARGE = 1e9
"""Bytes of weights from which on it is said what they take."""


def load_run(
    folder: Path, checkpoint: Checkpoint, *, dtype: Dtype | None = None, quiet: bool = False
) -> "tuple[LanguageModel, Tokenizer]":
    """The model and the tokenizer of a run, or of a model's folder.

    Args:
        dtype: of the weights; None leaves them as they are stored.
        quiet: not to say on standard error what a large model takes.

    Raises:
        UserError: if something is missing, damaged or does not fit.
    """
    from openxlstm.data.tokenizer import load_tokenizer

    model = load_model(folder, checkpoint, dtype=dtype, quiet=quiet)
    tokenizer = load_tokenizer(folder)
    check_vocabulary(folder, tokenizer, model.config)
    return model, tokenizer


def load_model(
    folder: Path, checkpoint: Checkpoint, *, dtype: Dtype | None = None, quiet: bool = False
) -> "LanguageModel":
    """The model of a run, or in a model's folder. Raises UserError like `load_run`."""
    import torch

    from openxlstm.lm.folder import load_config
    from openxlstm.lm.model import LanguageModel
    from openxlstm.lm.weights import open_weights

    kind = None if dtype is None else getattr(torch, dtype)
    if _is_foreign(folder):
        from openxlstm.interop.opening import format_of, open_foreign

        opened = open_foreign(folder, format_of(folder))
        stored = {tensor.dtype for tensor in opened.tensors.values()}
        _check_memory(folder, opened.config, stored, kind, quiet=quiet)
        return opened.model(dtype=kind)
    if checkpoint == "best":
        config, weights = load_config(folder), open_weights(folder)
        stored = {weights.dtype(name) for name in weights}
        _check_memory(folder, config, stored, kind, quiet=quiet)
        return LanguageModel.from_pretrained(folder, dtype=kind)

    from openxlstm.runs.run_folder import newest_checkpoint
    from openxlstm.train.checkpoint import load_weights  # half a second

    model = LanguageModel(load_config(folder)).eval()
    load_weights(newest_checkpoint(folder), model)
    return model.to(kind)


def check_vocabulary(folder: Path, tokenizer: "Tokenizer", config: "ModelConfig") -> None:
    """Raises UserError if a tokenizer has tokens that a model does not know."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, "
            f"its model {config.vocab_size}: they do not belong together"
        )


def _is_foreign(folder: Path) -> bool:
    """Whether a folder is one of Hugging Face's xLSTM or of NX-AI's."""
    from openxlstm.files import read_json
    from openxlstm.lm.folder import CONFIG, FORMAT

    if (folder / CONFIG).is_file():
        values = read_json(folder / CONFIG)
        return values.get("format") != FORMAT and values.get("model_type") == "xlstm"
    return (folder / "config.yaml").is_file()


def _check_memory(
    folder: Path,
    config: "StackConfig",
    stored: "set[torch.dtype]",
    dtype: "torch.dtype | None",
    *,
    quiet: bool,
) -> None:
    """Says what a large model takes before it is loaded, beside what is free.

    Raises:
        UserError: if it would take memory of its own, and there is not enough.
    """
    from openxlstm.config import ModelConfig
    from openxlstm.device import free_memory_bytes
    from openxlstm.lm.memory import loaded_memory

    if not isinstance(config, ModelConfig):
        return  # a stack alone, which the caller refuses
    memory = loaded_memory(config, stored, dtype)
    if memory.weights < LARGE:
        return
    free = free_memory_bytes()
    if not memory.is_mapped and free is not None and memory.total > free:
        raise UserError(
            f"{folder} takes {memory} and {size_in_words(free)} of memory are free: leave out "
            "--dtype to map the weights as they are stored, or free some memory"
        )
    if not quiet:
        words = "" if free is None else f"; {size_in_words(free)} of memory are free"
        if free is not None and memory.total > free:
            words += ", so parts of it will be read again and again, which is slow"
        print(f"openxlstm: {folder} takes {memory}{words}", file=sys.stderr, flush=True)


def size_in_words(count: float) -> str:
    """A size in decimal units, as memory of models is written."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.95:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:,.4g} TB"
