"""Trains presets from scratch, as a user would, and prints their losses and times.

    python benchmarks/learning.py fast best --seeds 3 --plot docs/learning.png --json learning.json
    python benchmarks/learning.py fast --data shakespeare --rates 1e-3 2e-3 4e-3

Each run is `openxlstm train` in a separate process, then `openxlstm eval`, one after the other. Use
an otherwise idle machine. The second form compares each preset with plain AdamW: the same model,
batches and minutes with torch's defaults, without warm-up, clipping, dropout and weight averaging,
at a constant rate, the best of the given ones.
"""

import json as json_module
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from openxlstm.figures import save_figure
from openxlstm.lm.presets import PRESETS
from openxlstm.train.curve import new_axes
from openxlstm.train.records import evaluations, read_metrics

PLAIN_ADAMW = (
    "--schedule", "constant", "--warmup", "0", "--weight-decay", "0.01", "--beta1", "0.9",
    "--beta2", "0.999", "--clip-norm", "0", "--dropout", "0", "--ema-decay", "0",
)  # fmt: skip

NANOGPT = (4.165, 2.445, 2.314, 2.191, 2.053, 2.009, 1.923, 1.892, 1.886)
"""Validation loss of nanoGPT's recipe for a CPU after every 250 of its 2,000 steps, on windows of
64: 4 layers, 128 wide, 0.80 M parameters. Measured on two cores of a Zen 3, where it took 98 s."""
NANOGPT_SECONDS = 98.0
NANOGPT_ON_A_GPU = 1.4697
"""What its recipe for a GPU reaches, on windows of 256, with 10.65 M parameters."""

TICKS = (3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
"""Seconds that the picture marks."""

WAYS = {
    "windows of 64": ("--window", "64"),
    "windows of 256": ("--window", "256"),
    "stream": ("--stream",),
    "train, 256": ("--window", "256", "--part", "train"),
}
"""How a model is measured at the end, over the whole held-out or training part."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Trains presets from scratch and measures them."""

    presets: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which of them."""
    data: str = "tinyshakespeare"
    """The text."""
    val_split: str = "last"
    """Which end of it is held out."""
    seeds: int = 1
    """Runs of each, with the seeds 0, 1 and so on; tables show the median."""
    minutes: float | None = None
    """Length of a run; without it, the preset's."""
    rates: tuple[float, ...] = ()
    """Also plain AdamW, at each of these constant rates."""
    threads: int = 2
    """Threads of a run."""
    also: tuple[Path, ...] = ()
    """Figures of earlier runs, written by --json, to draw with these."""
    plot: Path | None = None
    """Draw validation loss against time, beside nanoGPT's."""
    json: Annotated[Path | None, tyro.conf.arg(help="Write all figures and curves.")] = None


def train(options: Options, preset: str, seed: int, *extra: str) -> dict[str, Any]:
    """One run: its curve, and how it measures up at the end."""
    with TemporaryDirectory() as scratch:
        run = str(Path(scratch) / "run")
        length = () if options.minutes is None else ("--minutes", str(options.minutes))
        openxlstm(
            "train", "--preset", preset, "--data", options.data, "--val-split", options.val_split,
            "--seed", str(seed), "--out", run, "--threads", str(options.threads), *length, *extra,
        )  # fmt: skip
        curve = [
            (record["seconds"], record["val_loss"])
            for record in evaluations(read_metrics(Path(run)))
        ]
        losses = {
            name: json_module.loads(openxlstm("eval", run, "--json", *way))["loss"]
            for name, way in WAYS.items()
        }
    return {"preset": preset, "seed": seed, "curve": curve, "losses": losses}


def openxlstm(*arguments: str) -> str:
    """Runs a command and returns what it prints."""
    command = [sys.executable, "-m", "openxlstm", *arguments, "--quiet"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def row(name: str, runs: list[dict[str, Any]]) -> list[str]:
    """A line of the table: medians, and the range where there are several seeds."""
    cells = [name, str(len(runs)), f"{statistics.median(r['curve'][-1][0] for r in runs):.0f}"]
    for way in WAYS:
        losses = [r["losses"][way] for r in runs]
        spread = f" ({min(losses):.3f}-{max(losses):.3f})" if len(runs) > 1 else ""
        cells.append(f"{statistics.median(losses):.4f}{spread}")
    return cells


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Validation loss against time on the clock: every seed of every preset, and nanoGPT."""
    figure, axes = new_axes()
    spacing = NANOGPT_SECONDS / (len(NANOGPT) - 1)
    axes.plot(
        [spacing * n for n in range(1, len(NANOGPT))], NANOGPT[1:], color="0.35", marker="o", ms=4,
        label="nanoGPT's CPU recipe (windows of 64, on a Zen 3)",
    )  # fmt: skip
    axes.axhline(
        NANOGPT_ON_A_GPU, color="0.35", ls="--", lw=1, label="nanoGPT on a GPU (windows of 256)"
    )
    for number, preset in enumerate(dict.fromkeys(run["preset"] for run in runs)):
        data = PRESETS[preset].data
        label = f"openxlstm, {preset} (windows of {data.eval_window or data.window})"
        for run in (run for run in runs if run["preset"] == preset):
            points = [point for point in run["curve"] if point[0] > 1]
            axes.plot(*zip(*points, strict=True), color=f"C{number}", lw=1.5, label=label)
            label = None  # one line in the legend for all seeds
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [str(seconds) for seconds in TICKS])
    axes.set_ylim(1.38, 2.6)
    axes.set_xlim(4, 1.1 * max(run["curve"][-1][0] for run in runs))
    axes.set_xlabel("seconds of training, two CPU cores")
    axes.set_ylabel("validation loss (nats per character)")
    axes.set_title("Tiny Shakespeare, last tenth held out")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    save_figure(figure, path)


def main() -> None:
    options = tyro.cli(Options)
    runs, table = [], Table("run", "seeds", "seconds", *WAYS, box=None)
    console = Console()
    for preset in options.presets:
        tries = []
        for seed in range(options.seeds):
            tries.append(train(options, preset, seed))
            console.print(*row(f"{preset}, seed {seed}", tries[-1:]), sep="   ")
        table.add_row(*row(preset, tries))
        runs += tries
        for rate in options.rates:
            plain = train(options, preset, 0, *PLAIN_ADAMW, "--learning-rate", str(rate))
            name = f"{preset}, AdamW at {rate:g}"
            console.print(*row(name, [plain]), sep="   ")
            table.add_row(*row(name, [plain]))
            runs.append({**plain, "rate": rate})
    console.print(table)
    if options.json is not None:
        options.json.write_text(json_module.dumps(runs))
    if options.plot is not None:
        runs += [run for file in options.also for run in json_module.loads(file.read_text())]
        draw([run for run in runs if "rate" not in run], options.plot)


if __name__ == "__main__":
    main()
