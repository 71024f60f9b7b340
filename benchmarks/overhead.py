"""Measures the overhead of a training run: reading batches, and saving.

    python benchmarks/overhead.py [--preset fast] [--tokens 100000000] [--steps 500] [--json FILE]

Random tokens, in documents of a thousand, are in memory or in memory-mapped shards of ten million.
The shards were just written, so that most are in the cache. Batches are random windows or streams.
Each combination is a run at the preset's settings, with evaluations and checkpoints, and is timed
inside the run: reading the same batch again and again, without training steps in between, would
take a tenth of the time.
"""

import json as json_module
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from openxlstm.data.batches import RandomWindows, Streams
from openxlstm.data.tokens import Tokens
from openxlstm.lm.model import LanguageModel
from openxlstm.lm.presets import Preset, get_preset
from openxlstm.train import loop
from openxlstm.train.callback import Callback, Step

SHARD, DOCUMENT = 10**7, 1000
"""Tokens in each."""


class Watch:
    """Keeps the seconds that some functions take."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def on(self, owner: Any, name: str) -> Callable[[], None]:
        """Times a function from now on, until what is returned is called."""
        function, kept = getattr(owner, name), self.seconds.setdefault(name, [])

        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                kept.append(time.perf_counter() - start)

        setattr(owner, name, timed)
        return lambda: setattr(owner, name, function)


class LastStep(Callback):
    """The run's seconds at its last step."""

    def on_step(self, step: Step) -> None:
        self.seconds = step.seconds


def shares(preset: Preset, row: Tokens, kind: type[RandomWindows | Streams], steps: int) -> Any:
    """Milliseconds per step, batch and checkpoint, and the shares of reading and saving."""
    data = preset.data
    batches = kind(row, data.batch_size, data.window)
    sample = list(islice(RandomWindows(row, data.batch_size, data.window), 20))
    config = preset.train.replace(steps=steps, minutes=None)
    watch, last = Watch(), LastStep()
    with tempfile.TemporaryDirectory() as folder:
        undo = [
            watch.on(kind, "__next__"), watch.on(loop._Run, "step"),
            watch.on(loop, "save_checkpoint"), watch.on(LanguageModel, "save_pretrained"),
        ]  # fmt: skip
        torch.manual_seed(0)
        loop.fit(
            LanguageModel(preset.model), batches, config, [last], train_sample=sample,
            val_sample=sample, carry_state=kind is Streams, folder=Path(folder),
        )  # fmt: skip
        for restore in undo:
            restore()
    seconds = watch.seconds
    saving = sum(seconds["save_checkpoint"]) + sum(seconds["save_pretrained"])
    return {
        "step": 1e3 * statistics.median(seconds["step"]),
        "batch": 1e3 * statistics.median(seconds["__next__"]),
        "checkpoint": 1e3 * statistics.median(seconds["save_checkpoint"]),
        "reading": sum(seconds["__next__"]) / sum(seconds["step"]),
        "saving": saving / last.seconds,
    }


def on_disk(ids: np.ndarray, starts: np.ndarray, folder: Path) -> Tokens:
    """The same tokens in shards that are mapped into memory."""
    pieces: list[list[np.ndarray]] = [[], []]
    for number, place in enumerate(range(0, len(ids), SHARD)):
        inside = starts[(place <= starts) & (starts < place + SHARD)] - place
        for kind, content in enumerate((ids[place : place + SHARD], inside)):
            path = folder / f"{number}.{kind}.npy"
            np.save(path, content)
            pieces[kind].append(np.load(path, mmap_mode="r"))
    return Tokens(*pieces[0], starts=pieces[1])


def main(
    preset: str = "fast", tokens: int = 10**8, steps: int = 500, threads: int = 2,
    json: Path | None = None,
) -> None:  # fmt: skip
    """Prints what reading and saving take of a run.

    Args:
        preset: which recipe.
        tokens: how many to read from.
        steps: length of each run.
        threads: threads of torch.
        json: a file for the results.
    """
    torch.set_num_threads(threads)
    recipe = get_preset(preset)
    ids = np.random.default_rng(0).integers(recipe.model.vocab_size, size=tokens, dtype=np.uint8)
    starts = np.arange(0, tokens, DOCUMENT)
    table = Table(
        "tokens", "batches", "step", "batch", "checkpoint", "reading", "saving",
        title=f"{preset}, {threads} threads, ms, and shares of steps and of the run",
    )  # fmt: skip
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for place, row in places(ids, starts, Path(folder)):
            for kind in (RandomWindows, Streams):
                result = shares(recipe, row, kind, steps)
                results.append({"tokens": place, "batches": kind.__name__, **result})
                times = [f"{result[name]:.2f}" for name in ("step", "batch", "checkpoint")]
                parts = [f"{result[name]:.2%}" for name in ("reading", "saving")]
                table.add_row(place, kind.__name__, *times, *parts)
    Console().print(table)
    if json is not None:
        json.write_text(json_module.dumps({"preset": preset, "results": results}, indent=2) + "\n")


def places(ids: np.ndarray, starts: np.ndarray, folder: Path) -> Iterator[tuple[str, Tokens]]:
    yield "in memory", Tokens(ids, starts=[starts])
    yield "sharded", on_disk(ids, starts, folder)


if __name__ == "__main__":
    tyro.cli(main)
