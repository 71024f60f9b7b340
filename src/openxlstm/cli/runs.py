"""`openxlstm runs`: lists training runs, and compares their losses in a picture."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from openxlstm.cli.options import Quiet, Verbose, parse
from openxlstm.errors import UserError
from openxlstm.runs.listing import RunSummary, find_runs, read_run

if TYPE_CHECKING:
    from rich.console import Console

ORDERS: dict[str, Callable[[RunSummary], Any]] = {
    "best": lambda run: run.best_loss,
    "name": lambda run: run.name,
    "when": lambda run: run.when,
    "parameters": lambda run: run.parameters,
    "tokens": lambda run: run.tokens,
    "minutes": lambda run: run.seconds,
}
"""Values that runs can be sorted by."""

PICTURES = (".png", ".svg")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Lists the runs in and below folders with their best validation losses, lowest first, and
    draws their loss curves. A run that was killed or damaged is listed with what can be read of
    it."""

    folders: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)
    """Runs, or folders that contain runs; by default runs/."""
    sort: Literal["best", "name", "when", "parameters", "tokens", "minutes"] = "best"
    """Column to sort by."""
    diff: bool = False
    """Show the options in which the runs differ, instead of the table."""
    gates: bool = False
    """Show the gate statistics of each block, of runs trained with --gates, instead of the
    table."""
    json: bool = False
    """Print a JSON list with one object per run."""
    plot: Path | None = None
    """Also draw the losses of all runs, into this file (.png or .svg)."""
    x: Literal["step", "tokens", "minutes"] = "step"
    """Horizontal axis of the picture."""
    quiet: Quiet = False
    """Do not print the path of the picture."""
    verbose: Verbose = False
    """Show the traceback of an error."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "runs", arguments)
    if options.plot is not None and options.plot.suffix not in PICTURES:
        raise UserError(f"--plot {options.plot} must end in {' or '.join(PICTURES)}")
    runs = _sorted([read_run(folder) for folder in find_runs(options.folders)], options.sort)
    if not runs:
        raise UserError(
            f"there is no run in {', '.join(map(str, options.folders))}: "
            "openxlstm train makes one, in a folder with a train.json"
        )
    if options.json:
        print(json.dumps([run.to_dict() for run in runs], indent=2))
    elif options.diff:
        _print_differences(runs)
    elif options.gates:
        _print_gates(runs)
    else:
        _print_table(runs)
    if options.plot is not None:
        _draw(runs, options)
    return 0


def _sorted(runs: list[RunSummary], order: str) -> list[RunSummary]:
    """Runs by value, smallest first; runs without a value come last."""
    value = ORDERS[order]
    return sorted(runs, key=lambda run: (value(run) is None, value(run) or 0))


def _draw(runs: Sequence[RunSummary], options: Options) -> None:
    from openxlstm.train.compare import LossCurve, draw_comparison

    assert options.plot is not None
    curves = [LossCurve(name=run.name, evaluations=run.curve) for run in runs if run.curve]
    if not curves:
        raise UserError("there is nothing to draw: no run has been evaluated yet")
    draw_comparison(options.plot, curves, options.x)
    if not options.quiet:
        print(f"picture: {options.plot}", file=sys.stderr)


@dataclass(frozen=True)
class Column:
    """A column of the table: its heading, and its text for a run."""

    name: str
    says: Callable[[RunSummary], str]
    is_figure: bool = True
    is_wide: bool = False
    """Whether it is shown only on a wide terminal."""


COLUMNS = (
    Column("run", lambda run: run.name, is_figure=False),
    Column("when", lambda run: _date(run.when), is_figure=False, is_wide=True),
    Column("preset", lambda run: run.preset or "", is_figure=False, is_wide=True),
    Column("model", lambda run: f"{run.layers}×{run.width}" if run.layers else "", is_figure=False),
    Column("parameters", lambda run: _count(run.parameters)),
    Column("data", lambda run: run.data or "", is_figure=False, is_wide=True),
    Column("steps", lambda run: _count(run.step), is_wide=True),
    Column("tokens", lambda run: _count(run.tokens), is_wide=True),
    Column("minutes", lambda run: "" if run.seconds is None else f"{run.seconds / 60:.1f}"),
    Column("best val", lambda run: _loss(run.best_loss)),
    Column("at step", lambda run: _count(run.best_step)),
    Column("train", lambda run: _loss(run.train_loss), is_wide=True),
    Column("val", lambda run: _loss(run.val_loss), is_wide=True),
    Column("state", lambda run: run.state, is_figure=False),
)

WIDE = 140
"""Least width of a terminal that shows all columns, in characters."""


def _print_table(runs: Sequence[RunSummary]) -> None:
    from rich.table import Table

    console, table = _console(), Table(box=None, pad_edge=False)
    columns = [column for column in COLUMNS if console.width >= WIDE or not column.is_wide]
    for column in columns:
        if column.is_figure:
            table.add_column(column.name, justify="right", no_wrap=True)
        else:
            table.add_column(column.name, overflow="fold")
    for run in runs:
        table.add_row(*(column.says(run) for column in columns))
    console.print(table)


def _print_differences(runs: Sequence[RunSummary]) -> None:
    """Prints a line per option that differs among the runs that can be read."""
    from rich.table import Table

    readable = [run for run in runs if run.options]
    names = list(dict.fromkeys(name for run in readable for name in run.options))
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for run in readable:
        table.add_column(run.name, overflow="fold")
    for name in names:
        values = [run.options.get(name) for run in readable]
        if any(value != values[0] for value in values):
            table.add_row(name, *map(_said, values))
    table.add_row("best val loss", *(_loss(run.best_loss) for run in readable))
    _console().print(table)


GATES = {
    "forget": "forget",
    "half_life": "half-life",
    "longest_half_life": "longest",
    "input": "input",
    "output": "output",
    "log_normalizer": "log n",
    "floor": "floor",
}
"""The gate statistics that are shown, with their headings."""


def _print_gates(runs: Sequence[RunSummary]) -> None:
    """Prints a line per block, at the last evaluation that has gate statistics."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("run", "step", "block", *GATES.values()):
        is_word = name in ("run", "block")
        table.add_column(name, justify="left" if is_word else "right", no_wrap=name != "run")
    for run in runs:
        last = next((record for record in reversed(run.curve) if record.get("gates")), None)
        for block, found in last["gates"].items() if last else ():
            figures = (found.get(name) for name in GATES)
            table.add_row(
                run.name, _count(last["step"]) if last else "", block, *map(_rough, figures)
            )
    if not table.row_count:
        raise UserError("no run has gate statistics: train with --gates to record them")
    _console().print(table)


def _console() -> "Console":
    """A console on standard output; a pipe gets long lines that are not wrapped."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 400
    return Console(file=sys.stdout, width=width, highlight=False, markup=False)


def _rough(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _said(value: object) -> str:
    match value:
        case None:
            return "-"
        case [*parts]:
            return ", ".join(map(str, parts))
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def _date(when: float | None) -> str:
    return "" if when is None else f"{datetime.fromtimestamp(when):%Y-%m-%d %H:%M}"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _loss(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.4f}"
