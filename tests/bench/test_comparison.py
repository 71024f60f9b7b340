"""Checked before it is timed; and what is made of the times."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from openxlstm.bench.comparison import (
    Comparison,
    ComparisonResult,
    Entry,
    Speed,
    Verdict,
    run_comparison,
)
from openxlstm.bench.goals import GOALS, find_goal
from openxlstm.bench.limits import Limits, Work
from openxlstm.bench.timing import Timing

Outcomes = Callable[..., list[ComparisonResult]]


def comparison(verdict: Verdict, ran: list[str]) -> Comparison:
    return Comparison(
        part="ops",
        name="mlstm",
        sizes={"T": 8},
        entries=(
            Entry(name="mine", ours=True, work=Work(10, 20)),
            Entry(name="theirs", beside="mine", goal=2),
            Entry(name="gone", beside="mine", absent="not installed"),
        ),
        repetitions={"mine": lambda: ran.append("mine"), "theirs": lambda: ran.append("theirs")},
        check=lambda: verdict,
    )


def test_a_right_answer_is_timed() -> None:
    ran: list[str] = []
    outcome = run_comparison(comparison(Verdict(True, "well"), ran), 1e-9, fewest=2)
    assert ran == ["mine", "theirs"] * 3
    mine, theirs, gone = outcome.entries
    assert mine.timing is not None
    assert theirs.timing is not None
    assert len(mine.timing.seconds) == len(theirs.timing.seconds) == 2
    assert gone.timing is None
    assert gone.absent == "not installed"
    assert (outcome.part, outcome.name, outcome.shape) == ("ops", "mlstm", "T 8")


def test_a_wrong_answer_is_not_timed() -> None:
    ran: list[str] = []
    outcome = run_comparison(comparison(Verdict(False, "differs", math.nan), ran), 10.0)
    assert ran == [], "nobody's repetition came"
    assert [entry.timing for entry in outcome.entries] == [None] * 3
    assert not outcome.verdict.right


def test_it_tells_who_is_next() -> None:
    told: list[str] = []
    run_comparison(comparison(Verdict(True, ""), []), 1e-9, fewest=1, tell=told.append)
    assert told == ["checking", "mine", "theirs", "mine", "theirs"]


def outcome_of(mine: float, theirs: float, goal: float | None = 2.0) -> ComparisonResult:
    return ComparisonResult(
        part="training",
        name="training",
        sizes={"B": 2},
        tokens=100,
        entries=(
            Entry(name="mine", ours=True, work=Work(2 * 10**9, 1), timing=Timing((mine,))),
            Entry(name="theirs", beside="mine", goal=goal, timing=Timing((theirs,))),
            Entry(name="gone", beside="mine", goal=goal, absent="not installed"),
        ),
    )


def test_ratio_and_goal() -> None:
    outcome = outcome_of(0.5, 1.25)
    mine, theirs, gone = outcome.entries
    assert [outcome.ratio(entry) for entry in outcome.entries] == [1.0, 2.5, None]
    assert outcome.goal_is_met(theirs) is True
    assert outcome.goal_is_met(mine) is None, "no goal"
    assert outcome.goal_is_met(gone) is None, "nothing to judge it by"
    for time, met in ((1.01, True), (1.0, True), (0.99, False)):  # at least twice ours
        other = outcome_of(0.5, time)
        assert other.goal_is_met(other.entries[1]) is met
    assert outcome.tokens_per_second(theirs) == 80
    assert outcome.tokens_per_second(gone) is None


def test_speed_by_hand() -> None:
    mine, theirs, _ = outcome_of(0.5, 1.0).entries
    limits = Limits({"A": 10.0}, 1.0)
    assert Speed.of(mine, limits) == Speed(gflops=4.0, share=0.4)
    assert Speed.of(theirs, limits) is None
    assert Speed.of(replace(mine, timing=None), limits) is None


def test_for_a_program(outcomes: Outcomes, limits: Limits) -> None:
    for peers in (True, False):
        for outcome in outcomes(peers):
            values = outcome.to_dict(limits)
            assert json.loads(json.dumps(values, allow_nan=False)) == values
            assert len(values["entries"]) == len(outcome.entries)
    values = outcome_of(0.5, 1.25).to_dict(Limits({"A": 10.0}, 1.0))
    mine, theirs, gone = values["entries"]
    assert mine["gflops"] == 4.0
    assert mine["share_of_limit"] == 0.4
    assert mine["limit_ms"] == pytest.approx(200)
    assert (mine["flops"], mine["bytes"]) == (2 * 10**9, 1)
    assert (theirs["median_ms"], theirs["time_over_ours"]) == (1250, 2.5)
    assert (theirs["goal"], theirs["goal_is_met"]) == (2, True)
    assert theirs["tokens_per_s"] == 80
    assert "median_ms" not in gone
    assert (gone["absent"], gone["goal_is_met"]) == ("not installed", None)


@pytest.mark.parametrize("error", [math.nan, math.inf, -math.inf, None])
def test_json_has_no_nan(error: float | None, limits: Limits) -> None:
    outcome = replace(outcome_of(1, 1), verdict=Verdict(False, "bad", error))
    values: dict[str, Any] = json.loads(json.dumps(outcome.to_dict(limits), allow_nan=False))
    assert (values["right"], values["error"]) == (False, None)
    outcome = replace(outcome_of(1, 1), verdict=Verdict(True, "good", 0.25))
    assert outcome.to_dict(limits)["error"] == 0.25


def test_goals() -> None:
    assert find_goal("slstm", "NX-AI cell", 256) == find_goal("slstm", "NX-AI cell", 1024) == 80
    assert find_goal("mlstm", "attention", 256) == 2
    assert find_goal("mlstm", "attention", 4096) == 15
    assert find_goal("mlstm", "attention", 1024) is None
    assert find_goal("mlstm", "NX-AI cell", 256) is None
    assert find_goal("training", "NX-AI mmmm") == 3.5
    assert find_goal("training", "NX-AI msmm") is None
    assert len(set(GOALS)) == len(GOALS)
