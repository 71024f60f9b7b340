"""The loss curves of several runs in one picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from typing import Any, Literal

from openxlstm.figures import save_figure
from openxlstm.train.curve import limits, new_axes

X = Literal["step", "tokens", "minutes"]

AXES: dict[str, tuple[str, Callable[[dict[str, Any]], float]]] = {
    "step": ("step", lambda record: record["step"]),
    "tokens": ("million tokens", lambda record: record["tokens"] / 1e6),
    "minutes": ("minutes", lambda record: record["seconds"] / 60),
}
"""Horizontal axes: the label, and the value of a record."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#4d4d4d")
"""Masataka Okabe and Kei Ito's colours, which colour-blind people can distinguish."""
STYLES = ("-", "--", ":")
"""Line styles; the next one is used when all colours are."""
ROWS, LETTERS = 14, 40
"""Most rows per column of the legend, and most characters per name."""


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """The losses of one run."""

    name: str
    evaluations: Sequence[dict[str, Any]]
    """At least one evaluation, as `records.evaluations` returns them."""


def draw_comparison(path: Path, curves: Sequence[LossCurve], x: X = "step") -> None:
    """Draws validation losses as thick lines, and training losses as thin ones.

    Args:
        path: the picture, a .png or .svg file.
        curves: at least one run, in the order of the legend.
        x: the horizontal axis.
    """
    label, value = AXES[x]
    figure, axes = new_axes((9, 5.5))
    looks = cycle(product(STYLES, COLOURS))
    for curve, (style, colour) in zip(curves, looks, strict=False):
        at = [value(record) for record in curve.evaluations]
        val = [record["val_loss"] for record in curve.evaluations]
        train = [record["train_loss"] for record in curve.evaluations]
        line = {"color": colour, "ls": style}
        axes.plot(at, train, **line, lw=0.8, alpha=0.5)
        axes.plot(
            at, val, **line, lw=1.8, marker="o", ms=3, label=f"{min(val):.3f}  {_short(curve.name)}"
        )
    axes.set_ylim(_limits(curves))
    axes.set_xlim(left=0)
    axes.set_xlabel(label)
    columns = 1 + (len(curves) - 1) // ROWS
    legend = axes.legend(
        title="best val loss (thin: train)", alignment="left", fontsize="small", ncols=columns
    )
    legend.set_in_layout(False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    save_figure(figure, path)


def _short(name: str) -> str:
    """A name of limited length; it keeps the end, where paths differ most."""
    return name if len(name) <= LETTERS else f"…{name[1 - LETTERS :]}"


def _limits(curves: Sequence[LossCurve]) -> tuple[float, float]:
    """Limits of the loss axis: they ignore step 0, and losses above the first ones."""
    losses = [
        (record["step"], record[name])
        for curve in curves
        for record in curve.evaluations
        for name in ("train_loss", "val_loss")
    ]
    first = [loss for step, loss in losses if step == 0]
    later = [loss for step, loss in losses if step > 0] or first
    return limits([min(loss, max(first, default=loss)) for loss in later])
