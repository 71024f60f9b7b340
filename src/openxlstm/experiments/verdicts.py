"""Prints an experiment: the task, a table of the contenders, a verdict per claim."""

from collections.abc import Mapping
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from openxlstm.experiments.catalogue import EXPERIMENTS
from openxlstm.experiments.claims import Claim, ContenderResult, Curve, Experiment

WIDTH = 132
"""Wider than any table; a narrower terminal wraps the lines."""

TOO_SHORT = "too short to judge"
"""The verdict on every claim after a quick run."""


def print_list(file: TextIO) -> None:
    """Prints all experiments with their claims."""
    console = console_on(file)
    for name, experiment in EXPERIMENTS.items():
        console.print(f"[bold]{name}[/]  {escape(experiment.title)}", soft_wrap=True)
        for claim in experiment.claims:
            console.print(f"    {escape(claim.words)}  [dim]{claim.source}", soft_wrap=True)
        console.print()


def print_verdicts(
    name: str, outcomes: Mapping[str, ContenderResult], file: TextIO, *, quick: bool, seed: int
) -> None:
    """Prints the results of an experiment."""
    experiment, console = EXPERIMENTS[name], console_on(file)
    console.print(f"[bold]{escape(experiment.title)}[/]  [dim]{name}, seed {seed}", soft_wrap=True)
    console.print(escape(experiment.task), soft_wrap=True)
    console.print(contender_table(experiment, outcomes))
    for claim in experiment.claims:
        verdict, figure = judge(claim, outcomes, quick=quick)
        color = {"holds": "green", "does not hold": "red"}.get(verdict, "yellow")
        console.print(
            f"[{color}]{verdict}[/]: {escape(claim.words)} "
            f"[dim]({escape(', '.join(filter(None, [figure, claim.source])))})",
            soft_wrap=True,
        )
    console.print()


def console_on(file: TextIO) -> Console:
    console = Console(file=file, highlight=False)
    console.width = max(console.width, WIDTH)
    return console


def judge(claim: Claim, outcomes: Mapping[str, ContenderResult], *, quick: bool) -> tuple[str, str]:
    """The verdict on a claim, and a text with the measured and the claimed figure."""
    figure = claim.figure(outcomes)
    wanted = [
        f"{sign} {value:.4g}" if claim.over or claim.curve != "accuracy" else f"{sign} {value:.0%}"
        for sign, value in (("≥", claim.at_least), ("<", claim.below))
        if value is not None
    ]
    if figure is None:
        return (TOO_SHORT if quick else "not measured"), f"claimed: {' and '.join(wanted)}"
    found = f"{figure:.2f} times" if claim.over else f"{figure:.1%}"
    words = f"{found}, claimed: {' and '.join(wanted)}"
    if quick:
        return TOO_SHORT, words
    return ("holds" if claim.holds(figure) else "does not hold"), words


def contender_table(experiment: Experiment, outcomes: Mapping[str, ContenderResult]) -> Table:
    """A table with one row per contender and one column per figure."""
    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.add_column("who", no_wrap=True)
    made.add_column("what", no_wrap=True)
    made.add_column("parameters", justify="right", no_wrap=True)
    if not experiment.together:
        made.add_column("trained", justify="right", no_wrap=True)
    for curve in experiment.curves:
        for at in curve.columns:
            made.add_column(column_heading(curve, at), justify="right", no_wrap=True)
    answers = set()
    for contender in experiment.contenders:
        outcome = outcomes.get(contender)
        if outcome is None:
            made.add_row(f"[bold]{contender}", "[red]not measured")
            continue
        cells = [f"[bold]{contender}", escape(outcome.about), f"{outcome.parameters:,}"]
        if outcome.seconds is not None:
            cells.append(f"{outcome.seconds:.0f} s, {outcome.steps:,} steps")
        for curve in experiment.curves:
            cells += [format_value(curve, outcome.value(curve.name, at)) for at in curve.columns]
        made.add_row(*cells)
        answers.add(outcome.answers)
    notes = [
        curve.y if curve.is_share else f"{curve.y}, by {curve.x}" for curve in experiment.curves
    ]
    notes += [
        f"chance: {percent(curve.chance)}"
        for curve in experiment.curves
        if curve.chance is not None
    ]
    notes += [
        f"trained on up to {curve.trained_up_to} {curve.x}"
        for curve in experiment.curves
        if curve.trained_up_to is not None
    ]
    notes += [f"each accuracy of {count:,} answers" for count in answers if count]
    if experiment.together:
        notes.append("medians of alternating measurements in one process, on one thread")
    made.caption = " · ".join(notes)
    made.caption_justify = "left"
    return made


def column_heading(curve: Curve, at: int) -> str:
    """The heading of a column."""
    return f"{curve.name}\n{at:,}"


def format_value(curve: Curve, value: float | None) -> str:
    """A formatted figure; a dash if it was not measured."""
    if value is None:
        return "–"
    return percent(value) if curve.is_share else f"{value:,.0f}"


def percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0095 or share == 0 else f"{share:.2%}"


def to_json(
    name: str, outcomes: Mapping[str, ContenderResult], where: dict[str, Any], *,
    quick: bool, seed: int, complete: bool,
) -> dict[str, Any]:  # fmt: skip
    """All results as JSON-ready values; curves are lists of [x, y]."""
    experiment = EXPERIMENTS[name]
    claims = []
    for claim in experiment.claims:
        verdict, words = judge(claim, outcomes, quick=quick)
        claims.append(
            {
                "claim": claim.words, "source": claim.source, "contender": claim.contender,
                "figure": claim.figure(outcomes), "verdict": verdict, "words": words,
            }
        )  # fmt: skip
    return {
        "experiment": name,
        "task": experiment.task,
        "seed": seed,
        "quick": quick,
        "complete": complete,
        "environment": where,
        "claims": claims,
        "chance": {curve.name: curve.chance for curve in experiment.curves},
        "contenders": [
            {
                "name": outcome.contender,
                "what": outcome.about,
                "parameters": outcome.parameters,
                "seconds": outcome.seconds,
                "steps": outcome.steps,
                "answers": outcome.answers,
                "curves": {
                    curve: [[x, y] for x, y in points.items()]
                    for curve, points in outcome.curves.items()
                },
            }
            for outcome in (outcomes[who] for who in experiment.contenders if who in outcomes)
        ],
    }
