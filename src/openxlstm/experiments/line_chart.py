"""Draws an experiment as a line chart: one panel per curve, one line per contender."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openxlstm.experiments.catalogue import EXPERIMENTS
from openxlstm.experiments.claims import ContenderResult, Curve, Experiment
from openxlstm.experiments.verdicts import judge
from openxlstm.figures import FAINT, INK, new_figure, save_figure, use_log_ticks

STYLES = {
    "sLSTM": ("#d1495b", "o", 3.0),
    "mLSTM": ("#2a6f97", "s", 2.5),
    "nn.LSTM": ("#e09f3e", "^", 1.6),
    "Transformer": ("#7d8597", "D", 1.6),
}
"""Color, marker and width of each contender's line."""


def draw_experiment(
    path: Path, name: str, outcomes: Mapping[str, ContenderResult], *, quick: bool
) -> None:
    """Writes the chart as a PNG, atomically."""
    save_figure(experiment_figure(name, outcomes, quick=quick), path)


def experiment_figure(name: str, outcomes: Mapping[str, ContenderResult], *, quick: bool) -> Any:
    """A matplotlib figure of the results."""
    experiment = EXPERIMENTS[name]
    panels = len(experiment.curves)
    figure = new_figure((7.4 if panels == 1 else 5.4 * panels, 4.4), dpi=110)
    for axes, curve in zip(figure.subplots(1, panels, squeeze=False)[0], experiment.curves,
                           strict=True):  # fmt: skip
        draw_curve(axes, curve, experiment, outcomes)
    title = experiment.title + (" (a quick run, too short to judge)" if quick else "")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, weight="bold", color=INK)
    verdicts = [judge(claim, outcomes, quick=quick)[0] for claim in experiment.claims]
    if not quick:
        held = verdicts.count("holds")
        note = f"{experiment.task} {held} of {len(verdicts)} claims hold."
    else:
        note = experiment.task
    figure.supxlabel(textwrap.fill(note, 118 * panels), fontsize=8, color=FAINT)
    return figure


def draw_curve(
    axes: Any, curve: Curve, experiment: Experiment, outcomes: Mapping[str, ContenderResult]
) -> None:
    """Draws one panel."""
    places: set[int] = set()
    for who in experiment.contenders:
        points = outcomes[who].curves.get(curve.name, {}) if who in outcomes else {}
        if not points:
            continue
        color, marker, weight = STYLES[who]
        axes.plot(
            list(points), list(points.values()), color=color, marker=marker, ms=4.5, lw=weight,
            markeredgecolor="white", markeredgewidth=0.6, label=who, zorder=3, clip_on=False,
        )  # fmt: skip
        places |= set(points)
    axes.set_xscale("log", base=2)
    if places:
        ends = min(places), max(places)
        axes.set_xlim(*ends)
        if curve.trained_up_to is not None and ends[0] < curve.trained_up_to:
            axes.axvspan(ends[0], min(curve.trained_up_to, ends[1]), color="#eef1f4", zorder=0)
            axes.annotate(
                f"trained up to {curve.trained_up_to:,}", (min(curve.trained_up_to, ends[1]), 1),
                xycoords=("data", "axes fraction"), xytext=(-5, 4), textcoords="offset points",
                ha="right", va="bottom", fontsize=8, color=FAINT,
            )  # fmt: skip
    ticks = [n for n in sorted(places) if n & (n - 1) == 0]
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.minorticks_off()
    if curve.is_share:
        axes.set_ylim(-0.02, 1.02)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    elif curve.log_y:
        axes.set_yscale("log")
        use_log_ticks(axes.yaxis)
    if curve.chance is not None:
        axes.axhline(curve.chance, color=FAINT, lw=1, ls=(0, (4, 3)), zorder=1)
        axes.annotate(
            "chance", (1, curve.chance), xycoords=("axes fraction", "data"), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=8, color=FAINT,
        )  # fmt: skip
    axes.set_xlabel(curve.x, color=INK, fontsize=9)
    axes.set_ylabel(curve.y, color=INK, fontsize=9)
    axes.tick_params(labelsize=8, colors=FAINT)
    axes.grid(axis="y", color="0.92", zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("0.8")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5, loc="best")
