"""Measures training on several processes against one, with `openxlstm train`.

    python benchmarks/scaling.py [--preset fast] [--world-sizes 1 2] [--rounds 5] [--json FILE]

Every process has one thread, and the batch of all processes together is the preset's, so that they
share the same work. The numbers of processes alternate; each measurement is a separate run. The
throughput is that of the steps after the first quarter, without evaluations.
"""

import json as json_module
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table


def train(folder: Path, preset: str, steps: int, world_size: int, *options: str) -> list[Any]:
    """The records of a run."""
    start = [sys.executable]
    if world_size > 1:
        start += ["-m", "torch.distributed.run", "--nproc-per-node", str(world_size)]
    command = [
        *start, "-m", "openxlstm", "train", "--preset", preset, "--steps", str(steps), "--threads",
        "1", "--eval-every", str(10**6), "--eval-batches", "1", "--out", str(folder), "--quiet",
        *options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json_module.loads(line) for line in lines]


def speed(records: Sequence[Any]) -> float:
    """Tokens per second between two steps of a run."""
    steps = [record for record in records if record["kind"] == "step"]
    first, last = steps[len(steps) // 4], steps[-1]
    return (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])


def losses(records: Sequence[Any]) -> list[float]:
    return [record["loss"] for record in records if record["kind"] == "step"]


@dataclass(frozen=True)
class Options:
    preset: str = "fast"
    """What is trained."""
    world_sizes: tuple[int, ...] = (1, 2)
    """Numbers of processes; the first is what the others are set beside."""
    strategies: tuple[str, ...] = ("ddp", "fsdp")
    """How the work is dealt out."""
    steps: int = 400
    """Steps of a run."""
    rounds: int = 5
    """Turns of each contender."""
    options: tuple[str, ...] = ()
    """More options for every run, e.g. --options=--layers=s."""
    json: Path | None = None
    """Where to write all figures."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    base, *others = options.world_sizes
    contenders = [(base, "ddp")] + [(n, s) for n in others for s in options.strategies]
    speeds: dict[tuple[int, str], list[float]] = {contender: [] for contender in contenders}
    curves: dict[tuple[int, str], list[float]] = {}
    for _ in range(options.rounds):
        for world_size, strategy in contenders:
            with tempfile.TemporaryDirectory() as folder:
                records = train(
                    Path(folder) / "run", options.preset, options.steps, world_size, "--strategy",
                    strategy, *options.options,
                )  # fmt: skip
            speeds[world_size, strategy].append(speed(records))
            curves[world_size, strategy] = losses(records)

    table = Table(
        "processes", "tokens/s", "range", "beside the first", "losses differ by", box=None
    )
    figures = []
    for contender in contenders:
        mine, firsts = speeds[contender], speeds[contenders[0]]
        ratio = statistics.median(a / b for a, b in zip(mine, firsts, strict=True))
        pairs = zip(curves[contender], curves[contenders[0]], strict=True)
        differ = max(abs(a - b) for a, b in pairs)
        name = f"{contender[0]}" + (f" {contender[1]}" if contender[0] > 1 else "")
        table.add_row(
            name, f"{statistics.median(mine):,.0f}", f"{min(mine):,.0f}-{max(mine):,.0f}",
            f"{ratio:.2f}×", f"{differ:.1e}",
        )  # fmt: skip
        figures.append({"processes": name, "tokens_per_second": mine, "ratio": ratio,
                        "losses_differ_by": differ})  # fmt: skip
    Console().print(table)
    if options.json:
        options.json.write_text(json_module.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
