"""`openxlstm eval`: how well a model predicts a text."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from openxlstm.cli.corpus import read_text
from openxlstm.cli.options import Quiet, Verbose, parse
from openxlstm.cli.runs import Checkpoint, RunRecord, load_run
from openxlstm.errors import UserError

if TYPE_CHECKING:
    from openxlstm.train.evaluate import Evaluation


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measures a model on the held-out part of a text: in windows that each start from an empty
    state, and as one stream whose state is carried from start to end."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    data: str | None = None
    """A corpus, or a file, a folder or a glob of text; without it, what the run was trained on."""
    part: Literal["val", "train", "all"] = "val"
    """Which part of the text."""
    val_split: Literal["first", "last"] | None = None
    """Which end of the text is held out; without it, as in the run."""
    val_fraction: float | None = None
    """Share of the text that is held out; without it, as in the run."""
    window: int | None = None
    """Measure in windows of so many tokens alone; without it, in the run's and as a stream."""
    stream: bool = False
    """Measure as a stream alone."""
    batch_size: int = 16
    """Windows at a time; changes the speed only."""
    checkpoint: Checkpoint = "best"
    """Which of the run's weights."""
    json: bool = False
    """Print one JSON object with loss, perplexity, bits_per_character and tokens."""
    device: str = "cpu"
    """Where to compute."""
    threads: int | None = None
    """Threads of an operation; by default torch's choice."""
    quiet: Quiet = False
    """No progress."""
    verbose: Verbose = False
    """Show the traceback of an error."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "eval", arguments)
    if options.stream and options.window is not None:
        raise UserError("--stream has no windows: give --window or --stream, not both")

    import torch

    from openxlstm.data.batches import windows_in_order
    from openxlstm.data.corpora import split
    from openxlstm.device import get_device, set_threads
    from openxlstm.train.evaluate import evaluate

    set_threads(options.threads)
    device = get_device(options.device)
    model, tokenizer = load_run(options.run, options.checkpoint)
    model.to(device)
    record = RunRecord.load(options.run)
    changes = {"val_split": options.val_split, "val_fraction": options.val_fraction}
    data = record.data_config.replace(**{k: v for k, v in changes.items() if v is not None})
    source = data.source if options.data is None else options.data
    text = read_text(source, quiet=options.quiet)
    if options.part != "all":
        train, val = split(text, data.val_fraction, data.val_split)
        text = val if options.part == "val" else train
    ids = torch.from_numpy(tokenizer.encode(text))
    characters_per_token = len(text) / max(len(ids), 1)

    def windowed(window: int) -> "Evaluation":
        batches = windows_in_order(ids, window, options.batch_size)
        return evaluate(model, batches, characters_per_token=characters_per_token)

    def streamed() -> "Evaluation":
        batches = windows_in_order(ids, STREAM_WINDOW, batch_size=1)
        return evaluate(model, batches, carry_state=True, characters_per_token=characters_per_token)

    ways = []
    if not options.stream:
        window = data.window if options.window is None else options.window
        ways.append((f"windows of {window}", lambda: windowed(window)))
    if options.stream or (options.window is None and not options.json):
        ways.append(("one stream", streamed))
    results = {name: measure() for name, measure in ways}
    if options.json:
        print(json.dumps(next(iter(results.values())).to_dict()))
    else:
        _print_table(results)
    return 0


STREAM_WINDOW = 1024
"""Tokens that a stream reads at a time, so that memory stays small."""


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
