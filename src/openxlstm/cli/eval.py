"""`openxlstm eval`: measures how well a model predicts a text."""

import json
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from openxlstm.cli.options import Quiet, Verbose, parse
from openxlstm.cli.progress import byte_bars, say
from openxlstm.config import DataConfig
from openxlstm.errors import UserError
from openxlstm.runs.loading import Checkpoint, Dtype
from openxlstm.runs.run import Run, open_run

if TYPE_CHECKING:
    from openxlstm.runs.corpus import Part
    from openxlstm.train.evaluate import BatchLike, Evaluation


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measures a model on the validation part of a text: in windows that each start from an empty
    state, adjacent or at random places, and as one stream that carries the state from start to
    end."""

    run: tyro.conf.Positional[Path]
    """Folder of a run or a model."""
    data: tuple[str, ...] | None = None
    """Corpora, files, folders or globs of text, or folders of tokens; by default the run's training
    data."""
    part: Literal["val", "train", "all"] = "val"
    """Part of the text to measure."""
    val_split: Literal["first", "last"] | None = None
    """End of the text that is the validation part; by default as in the run."""
    val_fraction: float | None = None
    """Share of the text that is the validation part; by default as in the run."""
    window: int | None = None
    """Measure only in windows of this many tokens; by default in several ways."""
    random: bool = False
    """Measure only in 2,400 windows at random places, as nanoGPT does."""
    stream: bool = False
    """Measure only as one stream."""
    verify: Literal["hashes", "sizes"] = "hashes"
    """Check of folders of tokens: every byte, or only that all files exist with their sizes."""
    seed: int = 0
    """Seed of the random places."""
    batch_size: int = 16
    """Windows that are computed at once; it only affects speed."""
    checkpoint: Checkpoint = "best"
    """Weights of a run: best has the lowest validation loss, last is the newest checkpoint."""
    json: bool = False
    """Print one JSON object with loss, perplexity, bits_per_character and tokens."""
    dtype: Dtype | None = None
    """Type of the weights, by default as stored. bfloat16 takes half the memory of float32."""
    device: str = "cpu"
    """Device to compute on."""
    threads: int | None = None
    """Number of threads; by default torch's choice."""
    quiet: Quiet = False
    """No progress."""
    verbose: Verbose = False
    """Show the traceback of an error."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "eval", arguments)
    if options.stream and (options.window is not None or options.random):
        raise UserError("--stream has no windows: give either --stream, or --window or --random")

    from openxlstm.data.batches import RandomWindows, windows_in_order
    from openxlstm.device import get_device, set_threads
    from openxlstm.train.evaluate import evaluate

    set_threads(options.threads)
    device = get_device(options.device)
    opened = open_run(
        options.run, checkpoint=options.checkpoint, dtype=options.dtype,
        say=None if options.quiet else say,
    )  # fmt: skip
    model = opened.model.to(device)
    changes: dict[str, Any] = {
        "val_split": options.val_split, "val_fraction": options.val_fraction,
    }  # fmt: skip
    if options.data is not None:
        changes |= {"sources": options.data, "weights": ()}
    data = _data_config(opened, options)
    data = data.replace(**{k: v for k, v in changes.items() if v is not None})
    with byte_bars(quiet=options.quiet) as progress:
        corpus = opened.open_corpus(data, verify=options.verify, progress=progress)
    part = {"train": "train", "val": "val", "all": "whole"}[options.part]
    text: Part = getattr(corpus, part)
    batch_size = options.batch_size

    def measure(batches: Iterable["BatchLike"], *, carry_state: bool = False) -> "Evaluation":
        return evaluate(
            model, batches, carry_state=carry_state, characters_per_token=text.characters_per_token
        )

    def windowed(window: int) -> "Evaluation":
        return measure(windows_in_order(text.tokens, window, batch_size))

    def at_random(window: int) -> "Evaluation":
        batches = RandomWindows(
            text.tokens, batch_size, window, options.seed,
            weights=data.weights, part="the text to evaluate",
        )  # fmt: skip
        return measure(islice(batches, math.ceil(RANDOM_WINDOWS / batch_size)))

    def streamed() -> "Evaluation":
        return measure(windows_in_order(text.tokens, STREAM_WINDOW, 1), carry_state=True)

    window = data.window if options.window is None else options.window
    ways: dict[str, Callable[[], Evaluation]]
    if options.stream:
        ways = {"one stream": streamed}
    elif options.random:
        ways = {f"random windows of {window}": partial(at_random, window)}
    elif options.window is not None or options.json:
        ways = {f"windows of {window}": partial(windowed, window)}
    else:
        sizes = {window, *(size for size in WINDOWS if size < len(text))}
        ways = {f"windows of {size}": partial(windowed, size) for size in sorted(sizes)}
        ways["one stream"] = streamed
    results = {name: result() for name, result in ways.items()}
    if options.json:
        print(json.dumps(next(iter(results.values())).to_dict()))
    else:
        _print_table(results)
    return 0


def _data_config(opened: Run, options: Options) -> DataConfig:
    """The run's; the default for a model without a run's record.

    Raises:
        UserError: if there is no record and no --data.
    """
    if opened.was_trained_here:
        return opened.record.data_config
    if options.data is None:
        raise UserError(f"{options.run} has no record of its training data: give --data")
    return DataConfig()


WINDOWS = (64, 256)
"""Window sizes of nanoGPT's configurations for a CPU and for a GPU."""

RANDOM_WINDOWS = 2400
"""As in nanoGPT: 200 batches of 12."""

STREAM_WINDOW = 1024
"""Tokens that a stream reads at once, which bounds its memory."""


def _print_table(results: dict[str, "Evaluation"]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", box=None)
    for column in ("loss", "perplexity", "bits per character", "tokens"):
        table.add_column(column, justify="right")
    for name, result in results.items():
        table.add_row(
            name,
            f"{result.loss:.4f}",
            f"{result.perplexity:.3f}",
            f"{result.bits_per_character:.4f}",
            f"{result.tokens:,}",
        )
    Console(file=sys.stdout).print(table)
