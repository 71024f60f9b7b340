"""A whole run: the order of things, and what is left when it is interrupted."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from openxlstm._version import __version__
from openxlstm.bench import session as module
from openxlstm.bench.comparison import Comparison, Entry, Verdict, run_comparison
from openxlstm.bench.limits import Limits
from openxlstm.bench.session import Session, environment


class Bench:
    """Two parts of two comparisons each, and limits that rise and fall."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.budgets: list[float] = []
        self.speeds = iter([3.0, 9.0, 5.0, 7.0, 1.0])
        self.right = True
        self.interrupt_at = ""

    def part(self, part: str) -> Any:
        def comparisons(quick: bool) -> list[tuple[str, Callable[[], Comparison]]]:
            count = 1 if quick else 2
            return [
                (f"{part} {n}", lambda n=n: self.comparison(part, f"{part} {n}"))
                for n in range(count)
            ]

        return SimpleNamespace(comparisons=comparisons)

    def comparison(self, part: str, name: str) -> Comparison:
        def repetition() -> None:
            if name == self.interrupt_at:
                raise KeyboardInterrupt
            self.log.append(name)

        return Comparison(
            part=part,
            name=name,
            sizes={"B": 1},
            entries=(Entry(name="mine", ours=True),),
            repetitions={"mine": repetition},
            check=lambda: Verdict(self.right, "checked"),
        )

    def limits(self, budget: float) -> Limits:
        self.log.append("limits")
        return Limits({"A": next(self.speeds)}, 1.0)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench()
    monkeypatch.setattr(module, "PARTS", {name: bench.part(name) for name in ("ops", "training")})
    monkeypatch.setattr(module, "measure_limits", bench.limits)

    def small(comparison: Comparison, budget: float, fewest: int, tell: Any) -> Any:
        bench.budgets.append(budget)
        return run_comparison(comparison, 1e-9, 1, tell)

    monkeypatch.setattr(module, "run_comparison", small)
    return bench


def test_limits_in_between_and_the_best_holds(bench: Bench) -> None:
    session = Session(("ops", "training"))
    told: list[tuple[str, str]] = []
    session.run(lambda title, who: told.append((title, who)))
    names = ["ops 0", "ops 1", "training 0", "training 1"]
    assert bench.log == ["limits"] + [x for name in names for x in (name, name, "limits")]
    assert [outcome.name for outcome in session.outcomes] == names
    assert session.limits.gflops == 9
    assert session.complete
    assert session.right
    assert bench.budgets == [60.0] * 4, "120 seconds a part"
    assert told[:4] == [
        ("the machine's limits", "product and copy"),
        ("ops 0", "building"),
        ("ops 0", "checking"),
        ("ops 0", "mine"),
    ]


def test_quick_and_budget(bench: Bench) -> None:
    Session(("training",), quick=True).run()
    assert bench.log == ["limits", "training 0", "training 0", "limits"]
    Session(("ops",), budget=8.0).run()
    assert bench.budgets == [module.QUICK_BUDGET, 4.0, 4.0]


def test_an_interruption_leaves_what_is_measured(bench: Bench) -> None:
    bench.interrupt_at = "ops 1"
    session = Session(("ops", "training"))
    with pytest.raises(KeyboardInterrupt):
        session.run()
    assert [outcome.name for outcome in session.outcomes] == ["ops 0"]
    assert not session.complete
    assert session.to_dict()["complete"] is False


def test_a_wrong_answer_is_remembered(bench: Bench) -> None:
    bench.right = False
    session = Session(("ops",))
    session.run()
    assert not session.right
    assert bench.log == ["limits"] * 3, "nobody's repetition came"


def test_for_a_program(bench: Bench) -> None:
    session = Session(("ops",))
    session.run()
    values = json.loads(json.dumps(session.to_dict(), allow_nan=False))
    assert values == session.to_dict()
    assert values["environment"] == environment()
    assert values["limits"]["gflops"] == 9
    assert [comparison["name"] for comparison in values["contests"]] == ["ops 0", "ops 1"]


def test_environment() -> None:
    where = environment()
    assert where["openxlstm"] == __version__
    assert where["torch"] == torch.__version__
    assert where["threads"] == torch.get_num_threads()
    assert where["processor"]
