"""Opens checkpoints of other libraries: finds the format, reads configuration and tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from openxlstm.config import ModelConfig, StackConfig
from openxlstm.errors import UserError
from openxlstm.files import read_json
from openxlstm.interop import nxai, xlstm_large
from openxlstm.interop.foreign_options import below_model, read_table
from openxlstm.interop.reading import Reading
from openxlstm.interop.tensor_files import TORCH_FILES, below_prefix, open_checkpoint
from openxlstm.interop.translate import LazyTensors, to_ours
from openxlstm.lm.config_file import CONFIG, FORMAT
from openxlstm.lm.folder import fill
from openxlstm.lm.model import LanguageModel
from openxlstm.nn.init import without_memory
from openxlstm.nn.stack import Stack

Format = Literal["openxlstm", "nxai", "hf"]
"""The format of a checkpoint: openxlstm's own, NX-AI's, or Hugging Face's."""

CONFIGS = ("config.yaml", "config.yml", CONFIG)
"""Names of NX-AI's configuration, in the folder of the weights."""

EMBEDDING = "token_embedding.weight"
PAPER_ANCHOR = "blocks.0.xlstm_norm.weight"
LARGE_ANCHOR = "backbone.blocks.0.norm_mlstm.weight"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An opened checkpoint: its configuration and tensors under openxlstm's names."""

    config: StackConfig
    """A ModelConfig, or a StackConfig for a stack without embedding and head."""
    tensors: Mapping[str, Tensor]
    """By openxlstm's names, without a tied head. Each is computed or mapped on access."""
    source: Path
    notes: list[str] = field(default_factory=list)
    """Notes for the user about differences between the two models."""

    def model(self, *, dtype: torch.dtype | None = None, mapped: bool = True) -> LanguageModel:
        """Builds the language model, in evaluation mode.

        Raises:
            UserError: if the checkpoint is a stack without embedding and head.
        """
        if not isinstance(self.config, ModelConfig):
            raise UserError(f"{self.source} is a stack of blocks, not a language model")
        model = empty_model(self.config)
        fill(model, self.tensors, self.source, dtype=dtype, mapped=mapped)
        return model.eval()


def load(
    path: str | Path, *, dtype: torch.dtype | None = None, mapped: bool = True
) -> LanguageModel:
    """Loads the language model in a folder of openxlstm, Hugging Face or NX-AI, in evaluation mode.

    Its weights are mapped from the file, except for small ones in another layout.

    Args:
        dtype: dtype of the weights; None keeps that of the file. Another dtype copies them.
        mapped: False copies the weights into memory at once. Windows always copies, because a
            mapped file could not be replaced there.

    Raises:
        UserError: if a part is missing, damaged, unknown or does not fit.
    """
    path = Path(path)
    kind = format_of(path)
    if kind == "openxlstm":
        return LanguageModel.from_pretrained(path, dtype=dtype, mapped=mapped)
    return open_foreign(path, kind).model(dtype=dtype, mapped=mapped)


def load_nxai_stack(path: str | Path, config: str | Path | None = None) -> Stack:
    """Loads the stack in a checkpoint of NX-AI's `xLSTMBlockStack`, in evaluation mode.

    Args:
        path: its folder or file.
        config: its configuration, JSON or YAML; None for the one in the folder of the weights.

    Raises:
        UserError: as `load`, and if the checkpoint is a language model.
    """
    opened = open_foreign(Path(path), "nxai", config=None if config is None else Path(config))
    if isinstance(opened.config, ModelConfig):
        raise UserError(f"{path} is a language model: its configuration has a vocab_size")
    stack = empty_stack(opened.config)
    fill(stack, opened.tensors, path)
    return stack.eval()


def empty_model(config: ModelConfig) -> LanguageModel:
    """A language model whose weights have no memory yet."""
    with without_memory():
        return LanguageModel(config)


def empty_stack(config: StackConfig) -> Stack:
    """A stack whose weights have no memory yet."""
    with without_memory():
        return Stack(config)


def format_of(path: Path) -> Format:
    """The format of a folder or file.

    Raises:
        UserError: if the format is unknown.
    """
    if path.is_file() and path.suffix in (*TORCH_FILES, ".safetensors"):
        return "nxai"  # only a state_dict
    if not path.is_dir():
        raise UserError(
            f"{path} does not exist" if not path.exists() else f"{path} is not a checkpoint"
        )
    if (path / CONFIG).is_file():
        values = read_json(path / CONFIG)
        if values.get("format") == FORMAT:
            return "openxlstm"
        if "model_type" not in values:
            return "nxai"
        if values["model_type"] != "xlstm":
            raise UserError(f"{path} holds a model of the type {values['model_type']!r}, not xlstm")
        return "hf"
    if any((path / name).is_file() for name in CONFIGS):
        return "nxai"
    if any(file.suffix in (*TORCH_FILES, ".safetensors") for file in path.iterdir()):
        return "nxai"
    raise UserError(f"{path} has no {CONFIG}, config.yaml or weights: give the folder of a model")


def open_foreign(
    path: Path,
    kind: Format,
    *,
    config: Path | None = None,
    allow_unknown: bool = False,
) -> Opened:
    """Opens a checkpoint of Hugging Face or NX-AI. Reads only the tensors that tell its kind.

    Args:
        path: its folder or file.
        config: its configuration; None for the one in the folder of the weights.
        allow_unknown: skip tensors and options that openxlstm does not know, instead of raising.

    Raises:
        UserError: if a part is missing, damaged, unknown or does not fit; the message names it.
    """
    if kind not in get_args(Format) or kind == "openxlstm":
        raise ValueError(f"kind must be nxai or hf, not {kind!r}")
    tensors = open_checkpoint(path)
    place = _config_place(path, kind) if config is None else config
    values = below_model(read_table(place))
    reading, tensors = _read_config(kind, values, tensors, path, place, allow_unknown)
    return _opened(reading, tensors, path, allow_unknown)


def _read_config(
    kind: Format,
    values: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    path: Path,
    place: Path,
    allow_unknown: bool,
) -> tuple[Reading, Mapping[str, Tensor]]:
    """The plan to read a checkpoint, and its tensors without the prefix of a wrapper."""
    options: dict[str, Any] = {"allow_unknown": allow_unknown}
    is_paper = kind == "nxai" and any(name.endswith(PAPER_ANCHOR) for name in tensors)
    if is_paper:
        of_model = "xlstm_block_stack." if values.get("vocab_size", -1) != -1 else ""
        tensors = below_prefix(tensors, of_model + PAPER_ANCHOR, path)
        return nxai.read_paper_config(values, tensors, str(place), **options), tensors
    if not any(name.endswith(LARGE_ANCHOR) for name in tensors):
        wanted = LARGE_ANCHOR if kind == "hf" else f"{PAPER_ANCHOR} or {LARGE_ANCHOR}"
        raise UserError(
            f"{path} holds no xLSTM of {'Hugging Face' if kind == 'hf' else 'NX-AI'}: "
            f"it has no {wanted}, but e.g. {min(tensors, default='nothing')}"
        )
    tensors = below_prefix(tensors, LARGE_ANCHOR, path)
    hf = kind == "hf"
    reading = xlstm_large.read_large_config(values, tensors, str(place), hugging_face=hf, **options)
    return reading, tensors


def _opened(
    reading: Reading, tensors: Mapping[str, Tensor], path: Path, allow_unknown: bool
) -> Opened:
    config = reading.config
    is_model = isinstance(config, ModelConfig)
    module = empty_model(config) if is_model else empty_stack(config)
    shapes = {name: tuple(weight.shape) for name, weight in module.named_parameters()}
    ignore = set(reading.ignore)
    if is_model and config.tie_weights:
        (embedding,) = (row.theirs[0] for row in reading.rows if row.ours == (EMBEDDING,))
        if not xlstm_large.is_tied(tensors, embedding, "lm_head.weight"):
            raise UserError(
                f"{path} has a lm_head.weight that differs from {embedding}, but its configuration "
                "says that they are tied (tie_weights)"
            )
        ignore.add("lm_head.weight")
    ours: LazyTensors = to_ours(
        reading.rows,
        tensors,
        shapes,
        str(path),
        may_lack=reading.may_lack,
        ignore=ignore,
        allow_unknown=allow_unknown,
        notes=reading.notes,
    )
    return Opened(config=config, tensors=ours, source=path, notes=reading.notes)


def _config_place(path: Path, kind: Format) -> Path:
    """The path of the configuration in the folder of the weights.

    Raises:
        UserError: if there is none.
    """
    folder = path if path.is_dir() else path.parent
    names = (CONFIG,) if kind == "hf" else CONFIGS
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has no {' or '.join(names)}: give the configuration with --config")
