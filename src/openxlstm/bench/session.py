"""One run of the benchmark: its comparisons in order, with the limits measured in between."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from openxlstm._version import __version__
from openxlstm.bench import generation_speed, op_speed, peers, training_speed
from openxlstm.bench.comparison import ComparisonResult, run_comparison
from openxlstm.bench.limits import Limits, measure_limits
from openxlstm.bench.timing import FEWEST

Part = Literal["ops", "training", "generation"]
PARTS: dict[Part, Any] = {
    "ops": op_speed,
    "training": training_speed,
    "generation": generation_speed,
}
"""The module of each part, which has `comparisons(quick)`."""

BUDGET, QUICK_BUDGET = 120.0, 4.0
"""Default seconds of timing per part."""

Tell = Callable[[str, str], object]
"""Receives the title of a comparison and the name of its next contender."""


@dataclass
class Session:
    """A run of the benchmark and its results so far."""

    parts: Sequence[Part]
    quick: bool = False
    budget: float | None = None
    limits: Limits = field(default_factory=lambda: Limits({}, 0.0))
    outcomes: list[ComparisonResult] = field(default_factory=list)
    complete: bool = False
    """Whether the run was not interrupted."""

    def run(self, tell: Tell = lambda title, who: None) -> None:
        """Measures everything. After an interruption, the results so far are available.

        Limits are measured before and after each comparison; the best of all is used for all.
        """
        torch.manual_seed(0)
        budget = self.budget or (QUICK_BUDGET if self.quick else BUDGET)
        fewest = 1 if self.quick else FEWEST
        self._measure_limits(tell)
        for part in self.parts:
            comparisons = PARTS[part].comparisons(self.quick)
            for title, build in comparisons:
                tell(title, "building")
                share = budget / len(comparisons)
                outcome = run_comparison(
                    build(), share, fewest, lambda who, title=title: tell(title, who)
                )
                self.outcomes.append(outcome)
                self._measure_limits(tell)
        self.complete = True

    def _measure_limits(self, tell: Tell) -> None:
        tell("the machine's limits", "product and copy")
        self.limits = self.limits.or_better(measure_limits(0.3 if self.quick else 1.0))

    @property
    def right(self) -> bool:
        """Whether all results were correct."""
        return all(outcome.verdict.right for outcome in self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values."""
        return {
            "environment": environment(),
            "quick": self.quick,
            "complete": self.complete,
            "limits": self.limits.to_dict(),
            "contests": [outcome.to_dict(self.limits) for outcome in self.outcomes],
        }


def environment() -> dict[str, Any]:
    """The machine and the versions with which the figures were measured."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "openxlstm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "peers": peers.versions(),
    }


def processor() -> str:
    """The name of the processor, if the system provides it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
