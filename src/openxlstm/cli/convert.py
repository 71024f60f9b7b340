"""`openxlstm convert`: converts a model from one format to another, in a new folder."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from openxlstm.cli.options import Quiet, Verbose, check_writable, parse
from openxlstm.errors import UserError
from openxlstm.files import new_folder
from openxlstm.runs.loading import Checkpoint, load_model
from openxlstm.runs.run_folder import is_in_use

if TYPE_CHECKING:
    from torch import Tensor

    from openxlstm.config import StackConfig
    from openxlstm.interop.opening import Format

NAMES = {
    "openxlstm": "openxlstm",
    "nxai": "NX-AI xlstm",
    "hf": "Hugging Face transformers",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Writes a model to a new folder: weights in safetensors, configuration, tokenizer.

    The source is a run, trained by any number of processes, or a model of NX-AI's xlstm or
    xlstm_large, or of Hugging Face's xLSTM. It is only read, and no code in it is executed.
    """

    source: tyro.conf.Positional[Path]
    """Folder of a run or a model, or a file of weights: .safetensors, .pt, .pth, .bin or .ckpt."""
    out: Path
    """Folder to write; it must be new or empty."""
    from_: Annotated[Literal["auto", "openxlstm", "nxai", "hf"], tyro.conf.arg(name="from")] = (
        "auto"
    )
    """Format of the source; auto detects it."""
    to: Literal["openxlstm", "nxai", "hf"] = "openxlstm"
    """Format to write. hf: transformers can open it; a model with the paper's blocks needs `import
    openxlstm.hf` first."""
    config: Path | None = None
    """Configuration of NX-AI's or Hugging Face's model, JSON or YAML; by default the one beside
    the weights."""
    checkpoint: Checkpoint = "best"
    """Weights of a run: best has the lowest validation loss, last is the newest checkpoint."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the written weights; by default as they are stored."""
    shard_size: str | None = None
    """Largest file of weights, such as 5GB or 500MB; larger models are written as several files."""
    tokenizer: Path | None = None
    """Tokenizer to write beside the model, a tokenizer.json or its folder; by default the
    source's."""
    allow_unknown: bool = False
    """Skip tensors and options that openxlstm does not know, instead of an error."""
    quiet: Quiet = False
    """Print nothing."""
    verbose: Verbose = False
    """Show the traceback of an error."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "convert", arguments)
    _check_out(options.out, options.source)
    shard_bytes = None if options.shard_size is None else _bytes(options.shard_size)

    from openxlstm.interop.opening import format_of
    from openxlstm.interop.writing import write_checkpoint

    kind = format_of(options.source) if options.from_ == "auto" else options.from_
    config, tensors, notes = _open(options, kind)
    weights = _Checked(tensors, options.dtype)
    beside = _Beside(options.source, options.tokenizer)
    notes += beside.check(config)
    with new_folder(options.out) as folder:
        notes += write_checkpoint(
            folder,
            config,
            weights.tensors,
            options.to,
            shard_bytes=shard_bytes,
            token_ids=beside.token_ids,
        )
        has_tokenizer = beside.write(folder, options.to)
    if not has_tokenizer and hasattr(config, "vocab_size"):
        notes.append("there is no tokenizer, which generating text needs: see --tokenizer")
    notes += weights.notes
    if not options.quiet:
        for note in notes:
            print(f"openxlstm: {note}", file=sys.stderr)
        size = f"{weights.num_parameters:,} parameters"
        print(f"{options.out}: {size}, {NAMES[options.to]}, {weights.dtype}", file=sys.stderr)
    return 0


def _open(
    options: Options, kind: "Format"
) -> "tuple[StackConfig, Mapping[str, Tensor], list[str]]":
    """The model's configuration, its tensors by openxlstm's names, and notes.

    Raises:
        UserError: if something is missing, damaged, unknown or does not fit.
    """
    if kind != "openxlstm":
        from openxlstm.interop.opening import open_foreign

        if options.checkpoint != "best":
            raise UserError("--checkpoint is about the runs of openxlstm; name the file instead")
        opened = open_foreign(
            options.source, kind, config=options.config, allow_unknown=options.allow_unknown
        )
        return opened.config, opened.tensors, opened.notes

    from openxlstm.config import ModelConfig
    from openxlstm.files import read_json
    from openxlstm.lm.config_file import CONFIG, read_config
    from openxlstm.lm.stack_folder import load_stack

    if options.config is not None:
        raise UserError("--config is about other formats; a folder of openxlstm has its own")
    folder = options.source
    if (folder / CONFIG).is_file() and "stack" in read_json(folder / CONFIG):
        module = load_stack(folder)
    else:
        read_config(folder, ModelConfig)  # refuses other formats, which load_model opens
        module = load_model(folder, options.checkpoint)
    tensors = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return module.config, tensors, []


class _Checked:
    """Tensors converted to one dtype, and checked for finite values when they are written."""

    def __init__(self, tensors: "Mapping[str, Tensor]", dtype: str | None) -> None:
        from functools import reduce

        import torch

        from openxlstm.interop.translate import LazyTensors

        found = {name: tensor.dtype for name, tensor in tensors.items()}
        widest = reduce(torch.promote_types, found.values())
        wanted = widest if dtype is None else getattr(torch, dtype)
        self.dtype = str(wanted).removeprefix("torch.")
        self.num_parameters = sum(tensor.numel() for tensor in tensors.values())
        self.notes: list[str] = []
        if dtype is None and len(set(found.values())) > 1:
            self.notes.append(f"the weights have several types; all are converted to {self.dtype}")
        self._nonfinite: set[str] = set()

        def look(name: str) -> "Tensor":
            tensor = tensors[name].to(wanted)
            if name not in self._nonfinite and not torch.isfinite(tensor).all():
                self._nonfinite.add(name)
                self.notes.append(f"{name} has values that are not finite")
            return tensor

        self.tensors = LazyTensors({name: lambda name=name: look(name) for name in tensors})


class _Beside:
    """The files beside a model's weights: tokenizer, and the ids of special tokens.

    Args:
        source: the model's folder, or its file of weights.
        tokenizer: the folder or file of another tokenizer.
    """

    KEPT = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
    GENERATION = "generation_config.json"

    def __init__(self, source: Path, tokenizer: Path | None) -> None:
        from openxlstm.data.tokenizer_json import FILE_NAME

        place = source if tokenizer is None else tokenizer
        self.folder = place if place.is_dir() else place.parent
        is_file = tokenizer is not None and not tokenizer.is_dir()
        self.file = place if is_file else self.folder / FILE_NAME
        self.is_needed = tokenizer is not None
        self.token_ids = self._token_ids()

    def check(self, config: "StackConfig") -> list[str]:
        """Notes about the tokenizer.

        Raises:
            UserError: if the tokenizer was named and is missing, is damaged, or does not fit.
        """
        import importlib.util

        from openxlstm.config import ModelConfig
        from openxlstm.data.tokenizer import load_tokenizer
        from openxlstm.generation.text import check_vocabulary

        if not self.file.is_file() and not self.is_needed:
            return []
        try:
            tokenizer = load_tokenizer(self.file)
        except UserError:
            if importlib.util.find_spec("tokenizers") is not None or not self.file.is_file():
                raise
            return [f"{self.file} is copied unread: reading it needs the package tokenizers"]
        if isinstance(config, ModelConfig):
            check_vocabulary(tokenizer, config, self.file)
        return []

    def write(self, folder: Path, kind: str) -> bool:
        """Writes the files to a folder; returns whether there was a tokenizer."""
        import shutil

        from openxlstm.data.tokenizer import FORMAT, load_tokenizer
        from openxlstm.data.tokenizer_json import FILE_NAME
        from openxlstm.files import read_json, write_json

        for name in self.KEPT:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)
        generation = dict(self.token_ids)
        if (self.folder / self.GENERATION).is_file():
            generation = read_json(self.folder / self.GENERATION)
        if kind == "hf":  # not every model can have a cache
            use_cache = read_json(folder / "config.json").get("use_cache", True)
            generation |= {} if use_cache else {"use_cache": False}
        if generation and kind != "nxai":
            write_json(folder / self.GENERATION, generation)
        if not self.file.is_file():
            return False
        if read_json(self.file).get("format") == FORMAT:  # ours: written in the current format
            load_tokenizer(self.file).save(folder)
        else:
            shutil.copyfile(self.file, folder / FILE_NAME)
        return True

    def _token_ids(self) -> dict[str, Any]:
        """Ids of the begin, end and padding tokens that the configuration files name."""
        from openxlstm.files import read_json
        from openxlstm.interop.xlstm_large import TOKEN_IDS

        ids: dict[str, Any] = {}
        for name in ("config.json", self.GENERATION):
            if (self.folder / name).is_file():
                values = read_json(self.folder / name)
                ids |= {key: values[key] for key in TOKEN_IDS if values.get(key) is not None}
        return ids


def _check_out(out: Path, source: Path) -> None:
    if is_in_use(out):
        raise UserError(f"the folder {out} is in use: choose another --out")
    if source.is_dir() and source.resolve() in out.resolve().parents:
        raise UserError(f"the folder {out} is inside {source}, which is only read: choose another")
    check_writable("--out", out)


def _bytes(size: str) -> int:
    """The number of bytes in a size such as 500MB or 5GB.

    Raises:
        UserError: if the size is malformed.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *(KB|MB|GB|TB)", size.strip(), re.IGNORECASE)
    number = float(found[1]) * 1000 ** (1 + "KMGT".index(found[2][0].upper())) if found else 0
    if number < 1:
        raise UserError(f"--shard-size must be a size such as 5GB or 500MB, not {size!r}")
    return int(number)
