"""Draws the loss curve of a run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openxlstm.figures import new_figure, save_figure
from openxlstm.train.records import evaluations, read_metrics

CURVE = "loss.png"


def draw_loss(folder: Path, title: str) -> Path | None:
    """Draws `loss.png` from a run's metrics; None if there are fewer than two evaluations."""
    records = list(read_metrics(folder))
    measured = evaluations(records)
    steps = [record for record in records if record["kind"] == "step"]
    if len(measured) < 2:
        return None
    figure, axes = new_axes()
    x = [record["step"] for record in measured]
    train = [record["train_loss"] for record in measured]
    val = [record["val_loss"] for record in measured]
    batches = [(r["step"], r["loss"]) for r in steps if r["loss"] is not None]
    axes.plot(*zip(*batches or [(0, math.nan)], strict=True), color="0.8", lw=1, label="batches")
    axes.plot(x, train, color="tab:blue", marker="o", ms=3, label=f"train ({train[-1]:.3f})")
    axes.plot(x, val, color="tab:orange", marker="o", ms=3, label=f"val ({val[-1]:.3f})")
    best = min(range(len(val)), key=val.__getitem__)
    axes.annotate(
        f"best val {val[best]:.3f}", (x[best], val[best]), xytext=(0, 28),
        textcoords="offset points", ha="right", arrowprops={"arrowstyle": "->", "color": "0.4"},
    )  # fmt: skip
    axes.set_ylim(limits([loss for step, loss in zip(x * 2, train + val, strict=True) if step > 0]))
    axes.set_xlim(0, x[-1])
    axes.set_xlabel("step")
    axes.set_title(title, parse_math=False)
    axes.legend()
    minutes_per_step = measured[-1]["seconds"] / 60 / x[-1]

    def minutes(step: Any) -> Any:
        return step * minutes_per_step

    def step_at(minutes: Any) -> Any:
        return minutes / minutes_per_step

    clock = axes.secondary_xaxis("top", functions=(minutes, step_at))
    clock.set_xlabel("minutes")
    path = folder / CURVE
    save_figure(figure, path)
    return path


def new_axes(size: tuple[float, float] = (8, 5)) -> tuple[Any, Any]:
    """A matplotlib figure, `size` in inches, and its axes for losses."""
    figure = new_figure(size, dpi=120)
    axes = figure.add_subplot()
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    return figure, axes


def limits(losses: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis that shows all of the given losses, with a margin."""
    low, high = min(losses), max(losses)
    return low - 0.1 * (high - low) - 0.05, high + 0.15 * (high - low) + 0.05
