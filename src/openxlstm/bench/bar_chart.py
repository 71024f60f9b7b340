"""Draws results as a bar chart: one bar per contender, on a logarithmic time axis."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from openxlstm.bench.comparison import ComparisonResult, Entry, Speed
from openxlstm.bench.limits import Limits
from openxlstm.bench.tables import TITLES, environment_line, in_digits
from openxlstm.figures import FAINT, INK, new_figure, save_figure

OURS, OURS_TOO, PEER = "#d1495b", "#e9a6ae", "#b8bfc6"
ROW = 0.235
"""Height of a row in inches: a bar and the space around it."""
LABEL_SHARE = 0.36
"""Share of an axis that is kept free for the label after the longest bar."""


@dataclass(frozen=True)
class Bar:
    """One contender, or a heading above several; times are in milliseconds."""

    name: str
    place: float
    """Position from the top, in rows."""
    entry: Entry | None = None
    ms: float = 0.0
    lowest: float = 0.0
    highest: float = 0.0
    limit: float | None = None
    label: str = ""


def draw_bar_chart(
    path: Path, outcomes: Sequence[ComparisonResult], limits: Limits, where: dict[str, Any]
) -> bool:
    """Writes the chart as a PNG. Returns False, and writes nothing, if nothing was timed."""
    figure = bar_figure(outcomes, limits, where)
    if figure is None:
        return False
    save_figure(figure, path)
    return True


def bar_figure(outcomes: Sequence[ComparisonResult], limits: Limits, where: dict[str, Any]) -> Any:
    """A matplotlib figure with one panel per op, and one each for training and generation; None if
    nothing was timed."""
    panels = [
        (panel_title(name, group), bars)
        for name, group in ((n, list(g)) for n, g in groupby(outcomes, lambda o: o.name))
        if (bars := place_bars(group, limits))
    ]
    if not panels:
        return None
    columns = min(len(panels), 2)
    lines = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [tallest(line) * ROW + 0.9 for line in lines]
    figure = new_figure((7.6 * columns, sum(heights) + 0.7), dpi=110)
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.1)
    grid = figure.add_gridspec(len(lines), columns, height_ratios=heights)
    for row, line in enumerate(lines):
        for column, (title, bars) in enumerate(line):
            place = grid[row, :] if len(line) < columns else grid[row, column]
            draw_panel(figure.add_subplot(place), title, bars, max_rows=tallest(line))
    note = (
        "bar: median · line: lowest to highest · ×: relative to the time of the first openxlstm "
        f"above · black mark: this machine's limit for the work, {limits.gflops:.0f} GFLOP/s and "
        f"{limits.gbytes:.0f} GB/s"
    )
    columns_of_text = 100 * columns
    figure.suptitle(
        textwrap.fill(environment_line(where), columns_of_text),
        fontsize=9,
        color=FAINT,
        parse_math=False,
    )
    figure.supxlabel(textwrap.fill(note, columns_of_text), fontsize=8, color=FAINT)
    return figure


def tallest(panels: Sequence[tuple[str, list[Bar]]]) -> float:
    """Rows of the tallest of several panels side by side."""
    return max(bars[-1].place + 1 for _, bars in panels)


def panel_title(name: str, outcomes: Sequence[ComparisonResult]) -> str:
    """The title of a panel."""
    title, part = TITLES.get(name, name), outcomes[0].part
    if part == "ops":
        return title
    return f"{title}, per token" if part == "generation" else f"{title}: {outcomes[0].shape}"


def place_bars(outcomes: Sequence[ComparisonResult], limits: Limits) -> list[Bar]:
    """The bars of one panel from the top; openxlstm is above the contenders compared with it."""
    bars: list[Bar] = []
    place = 0.0
    for outcome in outcomes:
        timed = [entry for entry in outcome.entries if entry.timing is not None]
        if not timed:
            continue
        if outcome.part == "ops":
            bars.append(Bar(outcome.shape, place))
            place += 1
        for first in (entry for entry in timed if entry.beside is None):
            for entry in (e for e in timed if first.name in (e.name, e.beside)):
                bars.append(comparison_bar(outcome, entry, limits, place))
                place += 1
            place += 0.4
    return bars


def comparison_bar(outcome: ComparisonResult, entry: Entry, limits: Limits, place: float) -> Bar:
    assert entry.timing is not None
    scale = 1e3 / (outcome.tokens or 1) if outcome.part == "generation" else 1e3
    ratio, speed = outcome.ratio(entry), Speed.of(entry, limits)
    label = f"{in_digits(entry.timing.median * scale)} ms"
    if entry.beside is not None and ratio is not None:
        label += f" · {in_digits(ratio)}×"
    if speed is not None:
        label += f" · {speed.share:.0%} of limit"
    if entry.goal is not None:
        label += f" (goal {entry.goal:g}× {'✓' if outcome.goal_is_met(entry) else '✗'})"
    return Bar(
        name=entry.name,
        place=place,
        entry=entry,
        ms=entry.timing.median * scale,
        lowest=entry.timing.lowest * scale,
        highest=entry.timing.highest * scale,
        limit=limits.seconds(entry.work) * scale if entry.work is not None else None,
        label=label,
    )


def draw_panel(axes: Any, title: str, bars: Sequence[Bar], max_rows: float) -> None:
    """Draws the bars of one panel, which is `max_rows` high."""
    timed = [bar for bar in bars if bar.entry is not None]
    least = min(min(bar.lowest, bar.limit or math.inf) for bar in timed)
    most = max(bar.highest for bar in timed)
    start = least / 1.5
    end = start * (most / start) ** (1 / (1 - LABEL_SHARE))
    axes.set_xscale("log")
    axes.set_xlim(start, end)
    axes.set_ylim(max_rows - 0.4, -0.7)
    for bar in bars:
        if bar.entry is None:
            axes.text(
                0.008, bar.place + 0.05, bar.name, transform=axes.get_yaxis_transform(),
                va="center", fontsize=8.5, weight="bold", color=INK,
            )  # fmt: skip
            continue
        ours = bar.entry.ours
        color = (OURS if bar.entry.beside is None else OURS_TOO) if ours else PEER
        axes.barh(bar.place, bar.ms - start, left=start, height=0.74, color=color, zorder=2)
        axes.plot([bar.lowest, bar.highest], [bar.place] * 2, color=INK, lw=0.8, zorder=3)
        if bar.limit is not None:
            axes.plot([bar.limit] * 2, [bar.place - 0.45, bar.place + 0.45], color="black", lw=2.2,
                      solid_capstyle="butt", zorder=4)  # fmt: skip
        axes.annotate(
            bar.label, (max(bar.highest, bar.limit or 0), bar.place), xytext=(5, 0),
            textcoords="offset points", va="center", fontsize=8,
            color=INK if ours else FAINT, weight="bold" if ours else "normal",
        )  # fmt: skip
    axes.set_yticks([bar.place for bar in timed], [bar.name for bar in timed], fontsize=8.5)
    for tick, bar in zip(axes.get_yticklabels(), timed, strict=True):
        if bar.entry is not None and bar.entry.ours:
            tick.set(color=OURS, weight="bold")
    axes.tick_params(axis="y", length=0)
    ticks = round_times(start, 2 * most)
    axes.set_xticks(ticks, [time_label(ms) for ms in ticks])
    axes.minorticks_off()
    axes.tick_params(axis="x", labelsize=8, colors=FAINT)
    axes.grid(axis="x", which="major", color="0.9", zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("0.8")
    axes.set_title(title, loc="left", fontsize=11, weight="bold", color=INK, pad=8)


def round_times(start: float, end: float) -> list[float]:
    """Ticks of an axis: powers of ten, and 2 and 5 times these if there are few."""
    powers = [10.0**n for n in range(math.floor(math.log10(start)), math.ceil(math.log10(end)) + 1)]
    for steps in ((1,), (1, 2, 5)):
        times = [step * power for power in powers for step in steps if start <= step * power <= end]
        if len(times) >= 3:
            break
    return times


def time_label(ms: float) -> str:
    return f"{ms:g} ms" if ms < 999 else f"{ms / 1e3:g} s"
