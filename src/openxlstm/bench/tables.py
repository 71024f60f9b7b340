"""Prints the results as tables."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from openxlstm.bench.comparison import ComparisonResult, Entry, Speed
from openxlstm.bench.limits import Limits

WIDTH = 160
"""Wider than any table. A narrower terminal wraps lines, which is better than cut figures."""

TITLES = {
    "mlstm": "mLSTM, forward + backward, float32",
    "slstm": "sLSTM, forward + backward, float32",
    "training": "training step",
    "generation": "generation, one stream, greedy",
}

LEGEND = """\
time / ours: the median relative to the first line of openxlstm above. goal: the least ratio to
reach. GFLOP/s: useful arithmetic only. limit: the time of this arithmetic, or of the least memory
traffic, at the machine's measured limits, and the share of it that was reached."""


def print_comparisons(
    outcomes: Sequence[ComparisonResult], limits: Limits, where: dict[str, Any], file: TextIO
) -> None:
    """Prints all tables with a legend."""
    console = Console(file=file, highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(escape(environment_line(where)), "")
    for name, group in groupby(outcomes, lambda outcome: outcome.name):
        of_one_name = list(group)
        console.print(comparison_table(name, of_one_name, limits))
        console.print(*(answers(outcome) for outcome in of_one_name), "", sep="\n", soft_wrap=True)
    console.print(LEGEND, f"machine: {limits}", goals_line(outcomes), sep="\n")


def environment_line(where: dict[str, Any]) -> str:
    """The machine and the packages, in one line."""
    peers = [f"{name} {version}" for name, version in where["peers"].items()]
    packages = [f"openxlstm {where['openxlstm']}", f"torch {where['torch']}", *peers]
    threads = "1 thread" if where["threads"] == 1 else f"{where['threads']} threads"
    return f"{where['processor']}, {threads}, {', '.join(packages)}"


def comparison_table(name: str, outcomes: Sequence[ComparisonResult], limits: Limits) -> Table:
    """The table of one op at several shapes, or of whole models."""
    models = outcomes[0].tokens is not None
    made = Table(
        title=f"[bold]{TITLES.get(name, name)}",
        title_justify="left",
        title_style="",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    made.add_column("who", no_wrap=True)
    columns = ["ms\n(lowest–highest)", "runs", "time /\nours", "goal", "GFLOP/s", "limit\nms"]
    if models:
        columns = ["parameters", *columns[:2], "tokens/s", *columns[2:]]
    for column in (*columns, "of\nlimit"):
        made.add_column(column, justify="right", no_wrap=True, vertical="bottom")
    for outcome in outcomes:
        made.add_section()
        made.add_row(f"[bold]{escape(outcome.shape)}")
        for entry in outcome.entries:
            if models and entry.beside is None:
                made.add_section()
            made.add_row(*cells(outcome, entry, limits, models))
    return made


def answers(outcome: ComparisonResult) -> str:
    """Whether the results are correct."""
    color = "dim" if outcome.verdict.right else "red"
    return f"[{color}]{escape(f'{outcome.shape}: {outcome.verdict.words}')}"


def cells(outcome: ComparisonResult, entry: Entry, limits: Limits, models: bool) -> Iterator[str]:
    """The cells of one contender, starting with its name."""
    bold = "[bold]" if entry.ours else ""
    yield bold + escape(entry.name)
    if models:
        yield f"{entry.parameters:,}" if entry.parameters is not None else ""
    if entry.timing is None:
        yield f"[dim]{escape(entry.absent)}" if entry.absent else "[red]not timed"
        return
    yield bold + entry.timing.in_ms()
    yield str(len(entry.timing.seconds))
    if models:
        yield f"{outcome.tokens_per_second(entry):,.0f}"
    ratio = outcome.ratio(entry)
    yield "" if ratio is None else "1" if entry.beside is None else in_digits(ratio)
    yield goal_words(outcome, entry)
    speed = Speed.of(entry, limits)
    if entry.work is not None and speed is not None:
        yield f"{speed.gflops:.1f}"
        yield in_digits(limits.seconds(entry.work) * 1e3)
        yield f"{speed.share:.0%}"


def goal_words(outcome: ComparisonResult, entry: Entry) -> str:
    """The goal, and whether it is met."""
    met = outcome.goal_is_met(entry)
    if met is None:
        return ""
    return f"{entry.goal:g} [green]met" if met else f"{entry.goal:g} [red]missed"


def in_digits(number: float) -> str:
    """Two significant digits or more."""
    return (
        f"{number:.0f}" if number >= 99.5 else f"{number:.1f}" if number >= 1 else f"{number:.2g}"
    )


def goals_line(outcomes: Sequence[ComparisonResult]) -> str:
    """How many goals are met."""
    verdicts = [o.goal_is_met(e) for o in outcomes for e in o.entries if e.goal is not None]
    met, missed = verdicts.count(True), verdicts.count(False)
    return f"goals: {met} met, {missed} missed, {verdicts.count(None)} not measured"
