"""Claims, verdicts, tables and pictures, from figures that were made up."""

import io
import json

import pytest

from openxlstm.experiments import line_chart
from openxlstm.experiments.catalogue import EXPERIMENTS
from openxlstm.experiments.claims import Claim, ContenderResult
from openxlstm.experiments.verdicts import judge, print_list, print_verdicts, to_json


def made_up(name: str, value: float = 0.5) -> dict[str, ContenderResult]:
    experiment = EXPERIMENTS[name]
    return {
        who: ContenderResult(
            contender=who, about="2 blocks", parameters=1234, seconds=1.0, steps=10, answers=77,
            curves={curve.name: dict.fromkeys(curve.columns, value) for curve in experiment.curves},
        )
        for who in experiment.contenders
    }  # fmt: skip


def claim(**options: object) -> Claim:
    return Claim(words="it can", source="x", contender="sLSTM", at=256, **options)  # pyright: ignore


@pytest.mark.parametrize(
    ("options", "value", "verdict", "words"),
    [
        ({"at_least": 0.99}, 0.99, "holds", "99.0%, claimed: ≥ 99%"),
        ({"at_least": 0.99}, 0.98, "does not hold", "98.0%, claimed: ≥ 99%"),
        ({"below": 0.6}, 0.6, "does not hold", "60.0%, claimed: < 60%"),
        ({"below": 0.6}, 0.5, "holds", "50.0%, claimed: < 60%"),
        ({"below": 1.25, "over": 16}, 0.5, "holds", "1.00 times, claimed: < 1.25"),
        ({"at_least": 2.0, "over": 16}, 0.5, "does not hold", "1.00 times, claimed: ≥ 2"),
    ],
)
def test_verdicts(options: dict[str, float], value: float, verdict: str, words: str) -> None:
    outcomes = made_up("parity", value)
    assert judge(claim(**options), outcomes, quick=False) == (verdict, words)
    assert judge(claim(**options), outcomes, quick=True) == ("too short to judge", words)
    assert judge(claim(**options), {}, quick=False)[0] == "not measured"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_claim_is_about_what_is_measured(name: str) -> None:
    experiment = EXPERIMENTS[name]
    outcomes = made_up(name)
    columns = {curve.name: curve.columns for curve in experiment.curves}
    for claim in experiment.claims:
        assert claim.contender in experiment.contenders
        assert claim.at in columns[claim.curve]
        assert claim.figure(outcomes) is not None
        assert (claim.at_least is None) != (claim.below is None)
        assert "arXiv:" in claim.source


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("quick", [True, False])
def test_report_and_picture(name: str, quick: bool) -> None:
    outcomes, said = made_up(name), io.StringIO()
    print_verdicts(name, outcomes, said, quick=quick, seed=3)
    for words in (*EXPERIMENTS[name].contenders, "1,234", "seed 3"):
        assert words in said.getvalue()
    assert ("too short to judge" in said.getvalue()) == quick
    result = to_json(name, outcomes, {}, quick=quick, seed=3, complete=True)
    assert json.loads(json.dumps(result)) == result
    assert len(result["contenders"]) == 4
    figure = line_chart.experiment_figure(name, outcomes, quick=quick)
    assert len(figure.axes) == len(EXPERIMENTS[name].curves)
    assert ("too short" in figure.get_suptitle()) == quick
    for axes in figure.axes:
        assert len(axes.get_legend().get_texts()) == 4


def test_a_part_of_it() -> None:
    """After Ctrl-C."""
    outcomes = {"sLSTM": made_up("parity")["sLSTM"]}
    said = io.StringIO()
    print_verdicts("parity", outcomes, said, quick=False, seed=0)
    assert said.getvalue().count("not measured") == 6, "three lines of the table, three claims"
    assert line_chart.experiment_figure("parity", {}, quick=False).axes


def test_the_list_has_every_claim() -> None:
    said = io.StringIO()
    print_list(said)
    for name, experiment in EXPERIMENTS.items():
        assert name in said.getvalue()
        for claim in experiment.claims:
            assert claim.words in said.getvalue()
