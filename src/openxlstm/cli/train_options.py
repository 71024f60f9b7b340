"""The options of `openxlstm train`, and how they change a preset or the record of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from openxlstm.cli.config_options import changed, fields_of, flag, in_words, parse_with_configs
from openxlstm.cli.options import Quiet, Verbose
from openxlstm.config import (
    ComputeConfig,
    DataConfig,
    LargeBlockConfig,
    ModelConfig,
    PaperBlockConfig,
    TrainConfig,
)
from openxlstm.errors import UserError
from openxlstm.lm.presets import PRESETS, Preset, get_preset

LENGTHS = ("steps", "tokens", "minutes")
"""Options that give the length of a run."""

MAY_CHANGE = (*LENGTHS, "nonfinite", "save_every", "keep_checkpoints", *ComputeConfig.names())
"""Options that may change when a run is resumed."""

MODEL_CONFIGS = ModelConfig, PaperBlockConfig, LargeBlockConfig
CONFIGS = *MODEL_CONFIGS, DataConfig, TrainConfig, ComputeConfig

MODEL_GROUPS = {
    "model": (
        "embedding_dim", "num_heads", "block", "bias", "final_norm", "dropout", "dropout_kind",
        "embedding_dropout", "tie_weights", "num_positions", "logit_soft_cap",
    ),
    "paper block": PaperBlockConfig.names()[1:],  # without the kind, which is --block
    "large block": LargeBlockConfig.names()[1:],
}  # fmt: skip

GROUPS = {
    "": (
        "data", "preset", "layers", "steps", "minutes", "seed", "val_split", "out", "resume",
        "list_presets", "quiet", "verbose",
    ),
    **MODEL_GROUPS,
    "data": (
        "tokenizer", "bpe_vocab_size", "weights", "field", "val_fraction", "sampling",
        "batch_size", "window", "first_window", "eval_window", "reset_at_documents", "verify",
    ),
    "optimization": (
        "tokens", "learning_rate", "min_learning_rate", "schedule", "warmup", "decay_steps",
        "weight_decay", "beta1", "beta2", "clip_norm", "ema_decay", "nonfinite", "init_from",
    ),
    "evaluation and saving": (
        "eval_every", "eval_batches", "save_every", "keep_checkpoints", "auto_resume", "gates",
        "sample_every", "sample_prompt", "tensorboard",
    ),
    "computing": ("device", "threads", *ComputeConfig.names()),
}  # fmt: skip
"""Titles of groups in the help, and their options. There is no --vocab-size: the tokenizer says."""

NOTES = {"dropout": "Sets --embedding-dropout as well, unless that is given."}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Trains a language model on text. Options that are not given have the values of the preset,
    which are shown in parentheses; with --preset NAME --help, those of that preset.

    Ctrl-C ends a run and saves it; `openxlstm train --resume --out RUN` resumes it. Prefix the
    command with torchrun to train on several processes."""

    preset: str = "demo"
    """Preset to start from; see --list-presets."""
    out: Path | None = None
    """Folder of the run. By default the first free one of runs/PRESET, runs/PRESET-2, …"""
    init_from: Path | None = None
    """Start from the weights of this run or model folder instead of random ones. Its model and its
    tokenizer are used; the preset gives the training options."""
    resume: bool = False
    """Resume the run in --out. A length, counted from its start, may extend it."""
    auto_resume: bool = False
    """Resume the run in --out if there is one, else start it: for schedulers that repeat a command.
    """
    list_presets: bool = False
    """Show the presets and their results, and exit."""
    gates: bool = False
    """Record statistics of each block's gates, which openxlstm runs --gates shows."""
    sample_every: int | None = None
    """Evaluations between text samples, which are appended to samples.txt in the run's folder."""
    sample_prompt: str = ""
    """Prompt of these samples."""
    verify: Literal["hashes", "sizes"] = "hashes"
    """Check of folders of tokens. hashes: every byte. sizes: only that all files are complete."""
    tensorboard: bool = False
    """Write metrics, gates and samples for TensorBoard as well, into the run's folder."""
    device: str = "cpu"
    """Device to train on. With several processes, cuda means one GPU for each."""
    threads: int | None = None
    """Threads per operation; by default torch's choice."""
    quiet: Quiet = False
    """Show no progress and no sample."""
    verbose: Verbose = False
    """Show the traceback of an error."""


def parse_options(arguments: Sequence[str]) -> tuple[Options, dict[str, Any]]:
    """The options of `openxlstm train`, and those of configurations that were given.

    Raises:
        UserError: on an argument that is unknown, missing or of the wrong form.
    """
    name, preset = shown_preset(arguments)
    configs = preset.model, preset.data, preset.train, ComputeConfig()
    values = {name: value for config in configs for name, value in fields_of(config).items()}
    values["layers"] = short(preset.model.layers)
    return parse_with_configs(
        Options, "train", arguments, CONFIGS, GROUPS, values=values, source=name, notes=NOTES
    )


def shown_preset(arguments: Sequence[str]) -> tuple[str, Preset]:
    """The preset that the help shows: the one that is named, if it is known, else the first."""
    words = [part for word in arguments for part in word.split("=", 1)]
    named = (after for word, after in pairwise(words) if word == "--preset" and after in PRESETS)
    name = next(named, Options.preset)
    return name, get_preset(name)


def new_configs(
    given: Mapping[str, Any], preset: Preset
) -> tuple[ModelConfig, DataConfig, TrainConfig]:
    """The preset's configurations, changed by the options that are given."""
    return (
        changed(preset.model, _with_dropout(given)),
        changed(preset.data, given),
        _changed_training(preset.train, given),
    )


def initial_config(given: Mapping[str, Any], model: ModelConfig) -> ModelConfig:
    """The model that a run starts from, with the given dropout.

    Raises:
        UserError: if an option would change anything else.
    """
    for name, value in {**fields_of(model), "tokenizer": "its own"}.items():
        if "dropout" not in name and given.get(name, value) != value:
            raise UserError(
                f"{flag(name)} cannot change with --init-from, whose model and tokenizer are "
                f"taken (it is {in_words(value)})"
            )
    return changed(model, _with_dropout(given))


def resumed_config(
    options: Options,
    given: Mapping[str, Any],
    *,
    preset: str,
    init_from: Path | None,
    configs: tuple[ModelConfig, DataConfig, TrainConfig],
) -> TrainConfig:
    """The recorded training options of a resumed run, with the changes that are allowed.

    Raises:
        UserError: if an option would change anything else.
    """
    recorded: dict[str, Any] = {"preset": preset, "init_from": init_from}
    said = dict(given)
    if options.preset != Options.preset:
        said["preset"] = options.preset
    if options.init_from is not None:
        said["init_from"] = options.init_from
    for config in configs:
        recorded |= fields_of(config)
    for name, value in said.items():
        if name not in MAY_CHANGE and value != recorded.get(name):
            is_known = f" (it is {in_words(recorded[name])})" if name in recorded else ""
            raise UserError(
                f"{flag(name)} cannot change in a run that is resumed{is_known}; "
                f"{', '.join(map(flag, LENGTHS))} can, to make it longer, and so can how it is "
                "computed and saved"
            )
    return _changed_training(configs[2], given)


def compute_config(given: Mapping[str, Any]) -> ComputeConfig:
    """How the run is computed."""
    return changed(ComputeConfig(), given)


def _with_dropout(given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options, --embedding-dropout as NOTES says."""
    dropout = {"embedding_dropout": given["dropout"]} if "dropout" in given else {}
    return {**dropout, **given}


def _changed_training(train: TrainConfig, given: Mapping[str, Any]) -> TrainConfig:
    """Training options with those that are given. A given length replaces the preset's, even if it
    has another unit."""
    if not set(LENGTHS) & set(given):
        return changed(train, given)
    lengths = {name: given.get(name) for name in LENGTHS}
    others = {name: value for name, value in given.items() if name in TrainConfig.names()}
    return train.replace(**{**others, **lengths})


def list_presets() -> None:
    """Prints a table of the presets to standard output."""
    from rich.console import Console
    from rich.table import Table

    console, table = Console(), Table(box=None)
    for name in ("preset", "layers", "width", "text", "minutes", "64", "256", "stream", "seeds"):
        table.add_column(name, justify="left" if name in ("preset", "text") else "right")
    for name, preset in PRESETS.items():
        model, measured = preset.model, preset.measured
        figures = ["–"] * 5  # not measured
        if measured is not None:
            losses = measured.windows_of_64, measured.windows_of_256, measured.stream
            figures = [f"{measured.minutes:.1f}", *map("{:.3f}".format, losses)]
            figures.append(str(measured.seeds))
        table.add_row(
            name, short(model.layers), str(model.embedding_dim),
            ", ".join(preset.data.sources), *figures,
        )  # fmt: skip
    console.print(table)
    console.print()
    for name, preset in PRESETS.items():
        console.print(f" {name:<10}{preset.about}", soft_wrap=True, highlight=False)
    console.print(
        "\n Measured on two cores of a Zen 5: minutes of training, and validation loss in nats per "
        "token\n in windows of 64 and 256 tokens and as one stream; the median of several seeds.",
        soft_wrap=True, highlight=False,
    )  # fmt: skip


def short(layers: str) -> str:
    """The letters of a stack's layers. A deep stack of one kind is shortened, e.g. to 32 × m."""
    is_deep = len(layers) > 8 and len(set(layers)) == 1
    return f"{len(layers)} × {layers[0]}" if is_deep else layers
