"""`openxlstm train`: from a text to a model's folder."""

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from openxlstm._version import __version__
from openxlstm.cli.corpus import Corpus, open_corpus
from openxlstm.cli.options import Quiet, Verbose, parse
from openxlstm.cli.presets import list_presets
from openxlstm.cli.run_folder import (
    RECORD,
    RunRecord,
    free_folder,
    is_in_use,
    load_run,
)
from openxlstm.config import Config, DataConfig, ModelConfig, TrainConfig
from openxlstm.errors import UserError
from openxlstm.lm.presets import get_preset

if TYPE_CHECKING:
    from openxlstm.data.batches import RandomWindows, Streams
    from openxlstm.lm.model import LanguageModel
    from openxlstm.train.loop import Progress

C = TypeVar("C", bound=Config)

LENGTHS = ("steps", "tokens", "minutes")
"""What a run's length may be given in."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Trains a language model on text. What is not said, the preset says.

    Ctrl-C ends a run with everything saved; `openxlstm train --resume --out RUN` goes on."""

    data: tuple[str, ...] | None = None
    """Corpora (shakespeare, tinyshakespeare), files, folders or globs of UTF-8 text, or folders
    that openxlstm tokenize made. Several are mixed."""
    weights: tuple[float, ...] | None = None
    """The share of each of --data in the mixture, on any scale; by default by size."""
    preset: str = "demo"
    """The recipe to start from; see --list-presets."""
    out: Path | None = None
    """The run's folder. Without it, the first free one of runs/PRESET, runs/PRESET-2, …"""
    resume: bool = False
    """Go on with the run in --out. A length, counted from its start, may extend it."""
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
    eval_every: int | None = None
    """Steps between evaluations and checkpoints."""
    eval_batches: int | None = None
    """Batches of each of train and val in an evaluation."""

    tensorboard: bool = False
    """Also write the losses for TensorBoard, into the run's folder."""
    device: str = "cpu"
    """Where to train."""
    threads: int | None = None
    """Threads of an operation; by default torch's choice."""
    quiet: Quiet = False
    """No progress and no sample."""
    verbose: Verbose = False
    """Show the traceback of an error."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "train", arguments)
    if options.list_presets:
        list_presets()
        return 0
    plan = _resumed_plan(options) if options.resume else _new_plan(options)
    return _train(plan, options)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is decided before anything is written."""

    folder: Path
    record: RunRecord
    corpus: Corpus
    model: ModelConfig


def _new_plan(options: Options) -> Plan:
    preset = get_preset(options.preset)
    data = _changed(preset.data, options, sources=options.data)
    train = _changed(_with_length(preset.train, options), options)
    model = _changed(preset.model, options, embedding_dropout=options.dropout)
    folder = options.out or free_folder(options.preset)
    if is_in_use(folder):
        resume = "go on with it by adding --resume, or " if (folder / RECORD).exists() else ""
        raise UserError(f"the folder {folder} is in use: {resume}choose another --out")
    corpus = open_corpus(data, quiet=options.quiet)
    record = RunRecord(
        openxlstm=__version__, preset=options.preset, data=data.to_dict(),
        train=train.to_dict(), text_sha256=corpus.sha256,
    )  # fmt: skip
    model = model.replace(vocab_size=corpus.tokenizer.vocab_size)
    return Plan(folder=folder, record=record, corpus=corpus, model=model)


def _resumed_plan(options: Options) -> Plan:
    from openxlstm.data.tokenizer import load_tokenizer
    from openxlstm.lm.folder import load_config
    from openxlstm.train.loop import LAST

    folder = options.out
    if folder is None:
        raise UserError("which run to resume is not said: add --out RUN")
    record = RunRecord.load(folder)
    if not (folder / LAST).exists():
        raise UserError(
            f"the run in {folder} has no checkpoint to resume; delete it and start anew"
        )
    changed = [
        name
        for name in ("data", *ModelConfig.names(), *DataConfig.names(), *TrainConfig.names())
        if getattr(options, name, None) is not None and name not in LENGTHS
    ]
    if options.preset not in (Options.preset, record.preset):
        changed.append("preset")
    if changed:
        raise UserError(
            f"--{changed[0].replace('_', '-')} cannot change in a run that is resumed; "
            f"only {', '.join(f'--{name}' for name in LENGTHS)} can, to make it longer"
        )
    data = record.data_config
    corpus = open_corpus(data, tokenizer=load_tokenizer(folder), quiet=options.quiet)
    if corpus.sha256 != record.text_sha256:
        raise UserError(
            f"the text of {', '.join(data.sources)} has changed since the run in {folder} began; "
            "put the old text back, or start a new run"
        )
    record = record.replace(train=_with_length(record.train_config, options).to_dict())
    return Plan(folder=folder, record=record, corpus=corpus, model=load_config(folder))


def _changed(config: C, options: Options, **others: object) -> C:
    """The preset's configuration with what the options, and `others`, say about its fields."""
    said = {name: getattr(options, name, None) for name in config.names()} | others
    said = {name: value for name, value in said.items() if value is not None}
    return config.replace(**said)


def _with_length(train: TrainConfig, options: Options) -> TrainConfig:
    """A length that is given takes the place of the preset's, whatever its unit."""
    lengths = {name: getattr(options, name) for name in LENGTHS}
    given = any(length is not None for length in lengths.values())
    return train.replace(**lengths) if given else train


def _train(plan: Plan, options: Options) -> int:
    from openxlstm.cli.progress import TrainingProgress
    from openxlstm.data.batches import RandomWindows
    from openxlstm.device import get_device, seed_everything, set_threads
    from openxlstm.lm.model import LanguageModel
    from openxlstm.train.curve import draw_loss
    from openxlstm.train.loop import fit
    from openxlstm.train.metrics import MetricsFile, TensorBoard

    folder, data, config = plan.folder, plan.record.data_config, plan.record.train_config
    set_threads(options.threads)
    device = get_device(options.device)
    seed_everything(config.seed)
    train, val = plan.corpus.train, plan.corpus.val
    batches = _batches(plan)
    size = data.batch_size, data.eval_window or data.window
    in_train = RandomWindows(train.tokens, *size, weights=data.weights)
    in_val = RandomWindows(val.tokens, *size, weights=data.weights, part="the held-out part")
    model = LanguageModel(plan.model).to(device)

    with contextlib.ExitStack() as stack:
        description = _description(plan, model)
        progress = stack.enter_context(TrainingProgress(description, quiet=options.quiet))
        callbacks: list[Any] = [_RunFiles(plan), progress, stack.enter_context(MetricsFile(folder))]
        if options.tensorboard:
            callbacks.append(stack.enter_context(TensorBoard(folder)))
        stopped = stack.enter_context(_stop_on_signals())
        result = fit(
            model, batches, config, callbacks,
            train_sample=list(islice(in_train, config.eval_batches)),
            val_sample=list(islice(in_val, config.eval_batches)),
            carry_state=data.sampling == "streams", folder=folder, resume=options.resume,
            stop=stopped.is_set,
        )  # fmt: skip
    plan.record.replace(result=asdict(result)).save(folder)
    curve = draw_loss(folder, f"{folder.name} · {plan.model.layers} · {', '.join(data.sources)}")
    if stopped.is_set():
        _say(
            f"stopped at step {result.step:,} with everything saved; to go on:\n"
            f"  openxlstm train --resume --out {folder}"
        )
        return INTERRUPTED
    if not options.quiet:
        _say(f"best val loss {result.best_loss:.4f} at step {result.best_step:,}; curve: {curve}\n")
        _write_sample(folder, config.seed)
        prompt = shlex.quote(plan.corpus.hint)
        _say(f"\nto read on:\n  openxlstm generate {shlex.quote(str(folder))} --prompt {prompt}")
    return 0


def _batches(plan: Plan) -> "RandomWindows | Streams":
    """What the run is trained on, without end."""
    from openxlstm.data.batches import RandomWindows, Streams

    data, tokens = plan.record.data_config, plan.corpus.train.tokens
    size = data.batch_size, data.window
    mixture = {"first_window": data.first_window, "weights": data.weights}
    if data.sampling == "streams":
        return Streams(tokens, *size, **mixture)
    return RandomWindows(tokens, *size, plan.record.train_config.seed, **mixture)


def _description(plan: Plan, model: "LanguageModel") -> str:
    """The run in four lines, before it starts."""
    from openxlstm.lm.summary import summarize

    data, summary = plan.record.data_config, summarize(model)
    num_train, num_val = len(plan.corpus.train), len(plan.corpus.val)
    return "\n".join(
        [
            f"model  {plan.model.layers}, {plan.model.embedding_dim} wide, "
            f"{summary.num_parameters:,} parameters, {summary.flops_per_token:,} FLOPs a token, "
            f"{summary.state_bytes:,} bytes of state",
            f"text   {', '.join(data.sources)}: {num_train:,} tokens to train on, "
            f"{num_val:,} held out ({data.val_split}), {plan.model.vocab_size} different",
            f"batch  {data.batch_size} × {data.window} tokens, {data.sampling}",
            f"run    {plan.folder}",
        ]
    )


class _RunFiles:
    """Writes what a run's folder says of the run, as soon as it can start and not before."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def on_start(self, progress: "Progress") -> None:
        from openxlstm.lm.folder import save_config

        plan = self._plan
        if progress.seconds == 0:
            plan.corpus.tokenizer.save(plan.folder)
            save_config(plan.model, plan.folder)
        plan.record.save(plan.folder)

    def on_step(self, step: object) -> None: ...
    def on_evaluated(self, evaluated: object) -> None: ...


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C, or SIGTERM, sets; the second Ctrl-C stops at once."""
    stopped = threading.Event()

    def stop(number: int, _: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()
        # os.write, since print may be under way in the very step that the signal interrupts.
        os.write(2, b"\nstopping after this step; once more stops without saving\n")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_sample(folder: Path, seed: int) -> None:
    """Writes some text by the best model to standard output."""
    from openxlstm.generation.text import generate

    for piece in generate(*load_run(folder, "best"), max_tokens=500, seed=seed):
        print(piece, end="", flush=True)
    print(flush=True)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
