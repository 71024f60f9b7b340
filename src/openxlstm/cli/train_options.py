"""The options of `openxlstm train`, and what they make of a preset or of a run's record."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from openxlstm.cli.options import Quiet, Verbose
from openxlstm.config import ComputeConfig, DataConfig, ModelConfig, TrainConfig
from openxlstm.errors import UserError
from openxlstm.lm.presets import PRESETS, Preset
from openxlstm.strict import Config

C = TypeVar("C", bound=Config)

LENGTHS = ("steps", "tokens", "minutes")
"""What a run's length may be given in."""

MAY_CHANGE = (*LENGTHS, "nonfinite", "save_every", "keep_checkpoints")
"""What of a run's record may change when it is resumed."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Trains a language model on text. What is not said, the preset says.

    Ctrl-C ends a run with everything saved; `openxlstm train --resume --out RUN` goes on. For
    several processes, on one machine or on many, start it with torchrun."""

    data: tuple[str, ...] | None = None
    """Corpora (shakespeare, tinyshakespeare), files, folders or globs of UTF-8 text, or folders
    that openxlstm tokenize made. Several are mixed."""
    weights: tuple[float, ...] | None = None
    """The share of each of --data in the mixture, on any scale; by default by size."""
    preset: str = "demo"
    """The recipe to start from; see --list-presets."""
    out: Path | None = None
    """The run's folder. Without it, the first free one of runs/PRESET, runs/PRESET-2, …"""
    init_from: Path | None = None
    """Start from the weights of this run, or of this model's folder, instead of random ones. Its
    model and its tokenizer are taken; the preset says how it is trained."""
    resume: bool = False
    """Go on with the run in --out. A length, counted from its start, may extend it."""
    auto_resume: bool = False
    """Go on with the run in --out if there is one, and start it if not: for schedulers that start
    the same command again."""
    list_presets: bool = False
    """Show the presets, with what they reached, and stop."""

    steps: int | None = None
    """Length of the run in optimizer steps."""
    tokens: int | None = None
    """Length of the run in tokens trained on."""
    minutes: float | None = None
    """Length of the run in minutes, evaluations included."""
    seed: int | None = None
    """Seed of the weights, the batches and dropout."""

    layers: str | None = None
    """One letter a block, from the input up: s for sLSTM, m for mLSTM, e.g. msm."""
    block: Literal["paper", "large"] | None = None
    """paper: the blocks of arXiv:2405.04517. large: those of xLSTM-7B, for m alone."""
    embedding_dim: int | None = None
    """Width of the model."""
    num_heads: int | None = None
    """Heads of every cell."""
    dropout: float | None = None
    """Share of each sub-layer's output, and of the embedding, that is dropped in training."""
    dropout_kind: Literal["elements", "channels"] | None = None
    """elements: each number by itself. channels: the same of a sequence at every step."""
    tie_weights: bool | None = None
    """One matrix for the token embedding and the head."""
    slstm_conv_kernel_size: int | None = None
    """Steps that the convolution before an sLSTM's gates sees; 0 leaves it out."""
    slstm_ff_factor: float | None = None
    """Width of the feed-forward after an sLSTM over the model's; 0 leaves it out."""
    mlstm_conv_kernel_size: int | None = None
    """Steps that the convolution before an mLSTM's query and key sees; 0 leaves it out."""
    mlstm_proj_factor: float | None = None
    """Inner width of an mLSTM block over the model's."""

    tokenizer: str | None = None
    """The unit of text: char, byte, bpe, or the path of a tokenizer to use."""
    bpe_vocab_size: int | None = None
    """Number of different tokens that bpe learns."""
    field: str | None = None
    """The field of .jsonl and .parquet files that holds the text."""
    val_split: Literal["first", "last"] | None = None
    """Which end of each text is held out."""
    val_fraction: float | None = None
    """Share of each text that is held out."""
    sampling: Literal["windows", "streams"] | None = None
    """windows: random places, empty state. streams: read on, and carry the state."""
    batch_size: int | None = None
    """Sequences in a batch."""
    window: int | None = None
    """Tokens of each sequence in a batch."""
    first_window: int | None = None
    """Tokens of each sequence when the run starts; doubled at equal shares of it, up to --window.
    """
    eval_window: int | None = None
    """Tokens of each sequence in evaluations; by default --window."""
    reset_at_documents: bool | None = None
    """Whether the state is emptied where a file or a play begins."""

    learning_rate: float | None = None
    """Highest rate of the schedule."""
    schedule: Literal["linear", "cosine", "constant"] | None = None
    """How the rate falls; constant with the preset article is what the article really ran."""
    min_learning_rate: float | None = None
    """Rate at which the schedule ends."""
    warmup: float | None = None
    """Share of the run over which the rate rises."""
    weight_decay: float | None = None
    """AdamW's, on projection matrices."""
    beta1: float | None = None
    """AdamW's decay of the mean gradient."""
    beta2: float | None = None
    """AdamW's decay of the mean squared gradient."""
    clip_norm: float | None = None
    """Largest norm of the whole gradient; 0 for no limit."""
    ema_decay: float | None = None
    """Share that a moving average of the weights keeps at each step; it is what is saved. 0: none.
    """
    nonfinite: Literal["stop", "skip"] | None = None
    """What a loss or gradient that is no number does: end the run, or leave that step out."""
    eval_every: int | None = None
    """Steps between evaluations."""
    eval_batches: int | None = None
    """Batches of each of train and val in an evaluation."""
    save_every: int | None = None
    """Steps between checkpoints; by default --eval-every."""
    keep_checkpoints: int | None = None
    """Newest checkpoints that are kept. The best model is kept besides."""

    gates: bool = False
    """Also keep what the gates of each block do, which openxlstm runs --gates shows."""
    sample_every: int | None = None
    """Let the model write after every so many evaluations, into samples.txt in the run's folder."""
    sample_prompt: str = ""
    """What it then goes on with."""
    verify: Literal["hashes", "sizes"] = "hashes"
    """What is checked of folders of tokens: every byte, or only that all files are there."""
    tensorboard: bool = False
    """Also write all of this, gates included, for TensorBoard, into the run's folder."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Among several processes. ddp: each holds the whole model. fsdp: it is dealt out."""
    accumulate: int = 1
    """Parts that a process computes its share of a batch in, one after another, to save memory."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products; bfloat16 is for devices where it is fast."""
    recompute_blocks: bool = False
    """Compute each block again in the backward pass: less memory for about a third more time."""
    compile: bool = False
    """Let torch.compile fuse what is between the native operators."""
    device: str = "cpu"
    """Where to train; among several processes, cuda is a GPU for each."""
    threads: int | None = None
    """Threads of an operation; by default torch's choice."""
    quiet: Quiet = False
    """No progress and no sample."""
    verbose: Verbose = False
    """Show the traceback of an error."""


def new_configs(options: Options, preset: Preset) -> tuple[ModelConfig, DataConfig, TrainConfig]:
    """The preset's configurations with what the options say."""
    return (
        _changed(preset.model, options, embedding_dropout=options.dropout),
        _changed(preset.data, options, sources=options.data),
        _changed(_with_length(preset.train, options), options),
    )


def initial_config(options: Options, model: ModelConfig) -> ModelConfig:
    """The model that a run starts from, with what the options say of its dropout.

    Raises:
        UserError: if they would change anything else.
    """
    for name, value in (*model.to_dict().items(), ("tokenizer", "its own")):
        said = getattr(options, name, None)
        if not name.startswith("dropout") and said not in (None, value):
            raise UserError(
                f"--{name.replace('_', '-')} cannot change with --init-from, whose model and "
                f"tokenizer are taken (it is {_shown(value)})"
            )
    return _changed(model, options, embedding_dropout=options.dropout)


def resumed_config(
    options: Options,
    preset: str,
    init_from: Path | None,
    model: ModelConfig,
    data: DataConfig,
    train: TrainConfig,
) -> TrainConfig:
    """How a run goes on: as it was recorded, but for what the options may change.

    Raises:
        UserError: if they would change anything else.
    """
    recorded = {
        **model.to_dict(), **data.to_dict(), **train.to_dict(), "data": data.sources,
        "preset": preset, "init_from": init_from,
    }  # fmt: skip
    for name, value in recorded.items():
        said = getattr(options, name, None)
        is_default = name == "preset" and said == Options.preset
        if name not in MAY_CHANGE and not is_default and said not in (None, value):
            raise UserError(
                f"--{name.replace('_', '-')} cannot change in a run that is resumed (it is "
                f"{_shown(value)}); {', '.join(f'--{name}' for name in LENGTHS)} can, to make it "
                "longer, and so can how it is computed and saved"
            )
    changes = {name: getattr(options, name) for name in MAY_CHANGE if name not in LENGTHS}
    changes = {name: value for name, value in changes.items() if value is not None}
    return _with_length(train, options).replace(**changes)


def compute_config(options: Options) -> ComputeConfig:
    """How the run is computed."""
    return _changed(ComputeConfig(), options)


def _changed(config: C, options: Options, **others: object) -> C:
    """A configuration with what the options, and `others`, say about its fields."""
    said = {name: getattr(options, name, None) for name in config.names()} | others
    said = {name: value for name, value in said.items() if value is not None}
    return config.replace(**said)


def _with_length(train: TrainConfig, options: Options) -> TrainConfig:
    """A length that is given takes the place of the preset's, whatever its unit."""
    lengths = {name: getattr(options, name) for name in LENGTHS}
    given = any(length is not None for length in lengths.values())
    return train.replace(**lengths) if given else train


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def list_presets() -> None:
    """Prints a table of the presets to standard output."""
    from rich.console import Console
    from rich.table import Table

    console, table = Console(), Table(box=None)
    for name in ("preset", "layers", "width", "text", "minutes", "64", "256", "stream", "seeds"):
        table.add_column(name, justify="left" if name in ("preset", "text") else "right")
    for name, preset in PRESETS.items():
        model, measured = preset.model, preset.measured
        figures = ["–"] * 5  # not run here
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
        "\n Minutes and losses are as measured on two cores of a Zen 5: nats a token on the "
        "held-out tenth,\n in windows of 64 and 256 tokens and as one stream, the median over some "
        "seeds.",
        soft_wrap=True, highlight=False,
    )  # fmt: skip


def short(layers: str) -> str:
    """The letters of a stack's layers; those of a deep one of a single kind as 32 × m."""
    is_deep = len(layers) > 8 and len(set(layers)) == 1
    return f"{len(layers)} × {layers[0]}" if is_deep else layers
