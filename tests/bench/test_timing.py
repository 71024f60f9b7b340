"""Taking repetitions, with a clock that the contenders themselves move."""

from collections.abc import Callable

import pytest

from openxlstm.bench.timing import Timing, alternate


class Field:
    """Contenders whose repetitions take what is said, and what happened."""

    def __init__(self, **seconds: float) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.runs = {name: self.contender(name, cost) for name, cost in seconds.items()}

    def contender(self, name: str, cost: float) -> Callable[[], None]:
        def run() -> None:
            self.log.append(name)
            self.now += cost

        return run

    def play(self, budget: float, fewest: int = 3, most: int = 40) -> dict[str, Timing]:
        return alternate(self.runs, budget, fewest, most, clock=lambda: self.now)


def test_they_alternate() -> None:
    field = Field(A=1, B=1, C=1)
    timings = field.play(budget=15)
    assert "".join(field.log) == "ABC" + 5 * "ABC"
    assert {name: t.seconds for name, t in timings.items()} == dict.fromkeys("ABC", (1.0,) * 5)


def test_the_slow_has_fewer_turns_but_enough() -> None:
    field = Field(A=1, B=1, C=10)
    timings = field.play(budget=18, fewest=2)
    assert "".join(field.log) == "ABC" + 2 * "ABC" + 4 * "AB"
    assert timings["C"].seconds == (10.0, 10.0)


def test_the_last_one_does_not_play_on_alone() -> None:
    field = Field(A=1, B=10)
    field.play(budget=40, fewest=3)
    assert "".join(field.log) == "AB" + 3 * "AB"


def test_one_alone_uses_its_budget() -> None:
    field = Field(A=2)
    assert len(field.play(budget=11)["A"].seconds) == 6


def test_nobody_has_more_than_most() -> None:
    field = Field(A=1, B=1)
    timings = field.play(budget=1e9, most=4)
    assert [len(t.seconds) for t in timings.values()] == [4, 4]


def test_the_first_turn_does_not_count() -> None:
    field = Field(A=1, B=1)
    first = [100.0, 100.0]
    plain = field.contender("B", 1)

    def warming_up() -> None:
        field.now += first.pop() if first else 0
        plain()

    field.runs["B"] = warming_up
    first.pop()
    assert field.play(budget=6)["B"].seconds == (1.0, 1.0, 1.0)


def test_telling_takes_no_time_of_theirs() -> None:
    field = Field(A=1, B=1)
    told: list[str] = []

    def tell(name: str) -> None:
        told.append(name)
        field.now += 1000

    timings = alternate(field.runs, 1, 2, tell=tell, clock=lambda: field.now)
    assert told == field.log == ["A", "B"] * 3
    assert timings["A"].seconds == timings["B"].seconds == (1.0, 1.0)


def test_the_real_clock_runs() -> None:
    timing = alternate({"sum": lambda: sum(range(10_000))}, 1e-6, 3)["sum"]
    assert len(timing.seconds) == 3
    assert 0 < timing.lowest <= timing.median <= timing.highest < 10


def test_what_a_timing_says() -> None:
    timing = Timing((0.030, 0.010, 0.020, 0.100))
    assert timing.median == pytest.approx(0.025)
    assert (timing.lowest, timing.highest) == (0.010, 0.100)
    assert timing.in_ms() == "25.0 (10.0–100.0)"
    assert Timing((0.1234,)).in_ms() == "123 (123–123)"
    assert Timing((0.00123456,)).in_ms() == "1.23 (1.23–1.23)"
    assert timing.to_dict() == {
        "median_ms": pytest.approx(25),
        "lowest_ms": 10,
        "highest_ms": 100,
        "turns_ms": [30, 10, 20, 100],
    }
