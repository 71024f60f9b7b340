"""The loss curve of a run, as a picture."""

import warnings
from pathlib import Path
from typing import Any

from openxlstm.files import write_atomically
from openxlstm.train.metrics import read_metrics

CURVE = "loss.png"


def draw_loss(folder: Path, title: str) -> Path | None:
    """Draws `loss.png` from a run's metrics; None if there is nothing to draw yet."""
    records = list(read_metrics(folder))
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    steps = [record for record in records if record["kind"] == "step"]
    if len(evaluations) < 2:
        return None

    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyplot would start a window
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    x = [record["step"] for record in evaluations]
    train = [record["train_loss"] for record in evaluations]
    val = [record["val_loss"] for record in evaluations]
    axes.plot(
        [r["step"] for r in steps], [r["loss"] for r in steps], color="0.8", lw=1, label="batches"
    )
    axes.plot(x, train, color="tab:blue", marker="o", ms=3, label=f"train ({train[-1]:.3f})")
    axes.plot(x, val, color="tab:orange", marker="o", ms=3, label=f"val ({val[-1]:.3f})")
    best = min(range(len(val)), key=val.__getitem__)
    axes.annotate(
        f"best val {val[best]:.3f}", (x[best], val[best]), xytext=(0, 28),
        textcoords="offset points", ha="right", arrowprops={"arrowstyle": "->", "color": "0.4"},
    )  # fmt: skip

    # The first losses are far above the rest: the axis shows what came after the start.
    later = [loss for step, loss in zip(x * 2, train + val, strict=True) if step > 0]
    low, high = min(later), max(later)
    axes.set_ylim(low - 0.1 * (high - low) - 0.05, high + 0.15 * (high - low) + 0.05)
    axes.set_xlim(0, x[-1])
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    minutes_per_step = evaluations[-1]["seconds"] / 60 / x[-1]

    def minutes(step: Any) -> Any:
        return step * minutes_per_step

    def step_at(minutes: Any) -> Any:
        return minutes / minutes_per_step

    clock = axes.secondary_xaxis("top", functions=(minutes, step_at))
    clock.set_xlabel("minutes")
    path = folder / CURVE
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a title may be in any script
        write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
    return path
