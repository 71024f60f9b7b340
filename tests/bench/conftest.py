"""Outcomes to report and to draw, without measuring anything."""

from collections.abc import Callable
from typing import Any

import pytest

from openxlstm.bench.comparison import ComparisonResult, Entry, Verdict
from openxlstm.bench.goals import find_goal
from openxlstm.bench.limits import Limits, Work
from openxlstm.bench.op_speed import MLSTM_SHAPES, SLSTM_SHAPES
from openxlstm.bench.timing import Timing
from openxlstm.bench.work import mlstm_work, slstm_work

Outcomes = Callable[..., list[ComparisonResult]]


def timing(ms: float) -> Timing:
    """Three repetitions with this median."""
    return Timing((ms * 0.9e-3, ms * 1e-3, ms * 1.2e-3))


def entry(name: str, ms: float | None, **others: Any) -> Entry:
    if ms is None:
        return Entry(name=name, absent="not installed", **others)
    return Entry(name=name, timing=timing(ms), **others)


def op(
    name: str, sizes: dict[str, int], work: Work, times: dict[str, float | None]
) -> ComparisonResult:
    """One op at one shape; the first of `times` is the unit."""
    first = next(iter(times))
    entries = []
    for who, ms in times.items():
        beside = None if who == first else first
        if who.startswith("openxlstm"):
            entries.append(entry(who, ms, ours=True, work=work, beside=beside))
        else:
            goal = find_goal(name, who, sizes["T"])
            entries.append(entry(who, ms, beside=beside, goal=goal))
    return ComparisonResult(
        part="ops",
        name=name,
        sizes=sizes,
        entries=tuple(entries),
        verdict=Verdict(True, "within 3e-06 of somebody", 3e-6),
    )


def models(part: str, times: dict[str, float | None], beside: dict[str, str]) -> ComparisonResult:
    return ComparisonResult(
        part=part,
        name=part,
        sizes={"B": 16, "T": 256, "vocabulary": 65},
        tokens=4096 if part == "training" else 128,
        entries=tuple(
            entry(
                who,
                ms,
                ours=who not in beside,
                beside=beside.get(who),
                parameters=None if ms is None else 454_560,
                work=None if who in beside else Work(10**10, 10**7),
                goal=find_goal(part, who),
            )
            for who, ms in times.items()
        ),
        verdict=Verdict(True, "all is well"),
    )


@pytest.fixture
def limits() -> Limits:
    return Limits({"MKL": 200.0, "oneDNN": 500.0}, 80.0)


@pytest.fixture
def outcomes() -> Outcomes:
    def make(peers: bool = True) -> list[ComparisonResult]:
        """A whole run at the real shapes, with peers or without."""

        def if_here(ms: float) -> float | None:
            return ms if peers else None

        made = []
        for B, NH, T, D in MLSTM_SHAPES:
            times = {
                "openxlstm native": 9.0,
                "openxlstm torch": 30.0,
                "NX-AI parallel": if_here(4663.0),
                "NX-AI chunkwise": if_here(54.0),
                "attention": 20.0 if T == 256 else 100.0,
            }
            sizes = {"B": B, "NH": NH, "T": T, "DQK": D, "DHV": D}
            made.append(op("mlstm", sizes, mlstm_work(B, NH, T, D, D), times))
        for B, T, NH, DH in SLSTM_SHAPES:
            times = {
                "openxlstm native": 12.0,
                "openxlstm torch": 60.0,
                "NX-AI cell": if_here(1100.0),
                "NX-AI block": if_here(2728.0),
                "nn.LSTM": 23.0,
            }
            sizes = {"B": B, "T": T, "NH": NH, "DH": DH}
            made.append(op("slstm", sizes, slstm_work(B, T, NH, DH), times))
        times = {
            "openxlstm mmmm": 100.0,
            "NX-AI mmmm": if_here(600.0),
            "openxlstm ssss": 90.0,
            "NX-AI ssss": if_here(800.0),
            "nn.LSTM 3 × 256": 143.0,
            "openxlstm 4 × large": 80.0,
            "Hugging Face 4 × large": if_here(200.0),
        }
        beside = {"NX-AI mmmm": "openxlstm mmmm", "Hugging Face 4 × large": "openxlstm 4 × large"}
        beside |= dict.fromkeys(("NX-AI ssss", "nn.LSTM 3 × 256"), "openxlstm ssss")
        made.append(models("training", times, beside))
        times = {
            "openxlstm 4 × large": 330.0,
            "Hugging Face 4 × large": if_here(900.0),
            "openxlstm 8 × m": 340.0,
        }
        beside = {"Hugging Face 4 × large": "openxlstm 4 × large"}
        made.append(models("generation", times, beside))
        return made

    return make


@pytest.fixture
def where() -> dict[str, Any]:
    return {
        "processor": "Processor [R] of a long name, 64 cores",
        "threads": 2,
        "openxlstm": "1.2.3",
        "torch": "4.5.6+cpu",
        "python": "3.11",
        "peers": {"xlstm": "2.0.6", "mlstm_kernels": "2.0.6", "transformers": "5.23.0"},
    }
