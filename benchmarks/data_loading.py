"""Measures what reading a batch costs, as a share of a training step of a preset.

    python benchmarks/data_loading.py [--preset fast] [--tokens 100000000] [--json FILE]

Random tokens, in documents of a thousand, are in memory in one piece, or on disk in shards of ten
million, mapped into memory; those were just written, so that most are in the cache. Batches
are windows at random places, or streams. The step is forward, backward and AdamW, as in training.
"""

import json as json_module
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from openxlstm.data.batches import Batch, RandomWindows, Streams
from openxlstm.data.tokens import Tokens
from openxlstm.lm.model import LanguageModel
from openxlstm.lm.presets import Preset, get_preset

SHARD, DOCUMENT = 10**7, 1000
"""Tokens in each."""


def best_seconds(run: Callable[[], object], count: int, repeats: int = 5) -> float:
    """Seconds of one of `count` runs in a row, in the fastest of some repeats."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(count):
            run()
        best = min(best, (time.perf_counter() - start) / count)
    return best


def step_seconds(preset: Preset, batch: Batch) -> float:
    """Seconds of a training step."""
    torch.manual_seed(0)
    model = LanguageModel(preset.model)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        logits, _ = model(batch.x, reset=batch.reset)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.y.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    return best_seconds(step, 10)


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
    preset: str = "fast", tokens: int = 10**8, threads: int = 2, json: Path | None = None
) -> None:
    """Prints microseconds of a batch, beside those of a training step.

    Args:
        preset: which recipe's model and batch.
        tokens: how many to read from.
        threads: threads of torch, in the step.
        json: a file for the results.
    """
    torch.set_num_threads(threads)
    recipe = get_preset(preset)
    B, T = recipe.data.batch_size, recipe.data.window
    ids = np.random.default_rng(0).integers(recipe.model.vocab_size, size=tokens, dtype=np.uint8)
    starts = np.arange(0, tokens, DOCUMENT)
    step = step_seconds(recipe, next(RandomWindows(Tokens(ids), B, T)))
    table = Table("tokens", "batches", "µs a batch", "of a step", title=(
        f"{preset}: B {B}, T {T}, a step of {1e3 * step:.1f} ms, {tokens:,} tokens"
    ))  # fmt: skip
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        places = {
            "in memory": Tokens(ids, starts=[starts]),
            "sharded": on_disk(ids, starts, Path(folder)),
        }
        for place, row in places.items():
            for kind in (RandomWindows, Streams):
                batches = kind(row, B, T)
                seconds = best_seconds(lambda batches=batches: next(batches), 200)
                share = seconds / step
                results.append(
                    {"tokens": place, "batches": kind.__name__, "seconds": seconds, "share": share}
                )
                table.add_row(place, kind.__name__, f"{1e6 * seconds:.0f}", f"{share:.2%}")
    Console().print(table)
    if json is not None:
        values = {"preset": preset, "step_seconds": step, "results": results}
        json.write_text(json_module.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
