"""A comparison of contenders on one task, checked before it is timed, and its result."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from openxlstm.bench.limits import Limits, Work
from openxlstm.bench.timing import FEWEST, Timing, alternate


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One contender, without the code that it runs."""

    name: str
    ours: bool = False
    beside: str | None = None
    """The entry whose time is the unit of `ratio`; None for that entry itself."""
    parameters: int | None = None
    work: Work | None = None
    """Work of one repetition; known for openxlstm only."""
    goal: float | None = None
    """Ratio to reach."""
    absent: str | None = None
    """Why the contender cannot run here, or None."""
    timing: Timing | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether the results are correct, with an explanation."""

    right: bool
    words: str
    error: float | None = None
    """Largest relative error, if results were compared number by number."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison to be measured."""

    part: str
    """ops, training or generation."""
    name: str
    sizes: Mapping[str, int]
    tokens: int | None = None
    """Tokens per repetition; None if the table has no column for them."""
    entries: tuple[Entry, ...]
    """All contenders in the order of the table, absent ones included."""
    repetitions: Mapping[str, Callable[[], object]]
    """The function of one repetition, by the name of its entry."""
    check: Callable[[], Verdict]


@dataclass(frozen=True, kw_only=True)
class ComparisonResult:
    """The result of a comparison, without models and tensors."""

    part: str
    name: str
    sizes: Mapping[str, int]
    tokens: int | None = None
    entries: tuple[Entry, ...]
    """The contenders with their timings; no timings if the results were wrong."""
    verdict: Verdict = field(default_factory=lambda: Verdict(True, ""))

    @property
    def shape(self) -> str:
        return ", ".join(f"{name} {size}" for name, size in self.sizes.items())

    def ratio(self, entry: Entry) -> float | None:
        """Time of an entry relative to the entry `beside` it; None if one was not timed."""
        beside = next(other for other in self.entries if other.name == (entry.beside or entry.name))
        if entry.timing is None or beside.timing is None:
            return None
        return entry.timing.median / beside.timing.median

    def goal_is_met(self, entry: Entry) -> bool | None:
        """Whether the goal is met; None if there is no goal or no timing."""
        ratio = self.ratio(entry)
        return None if entry.goal is None or ratio is None else ratio >= entry.goal

    def tokens_per_second(self, entry: Entry) -> float | None:
        if entry.timing is None or self.tokens is None:
            return None
        return self.tokens / entry.timing.median

    def to_dict(self, limits: Limits) -> dict[str, Any]:
        """Everything as JSON-ready values."""
        return {
            "part": self.part,
            "name": self.name,
            "sizes": dict(self.sizes),
            "right": self.verdict.right,
            "check": self.verdict.words,
            "error": finite(self.verdict.error),
            "entries": [self._entry_to_dict(entry, limits) for entry in self.entries],
        }

    def _entry_to_dict(self, entry: Entry, limits: Limits) -> dict[str, Any]:
        values: dict[str, Any] = {
            "name": entry.name,
            "ours": entry.ours,
            "beside": entry.beside,
            "absent": entry.absent,
            "parameters": entry.parameters,
        }
        if entry.timing is not None:
            values |= entry.timing.to_dict()
            values["time_over_ours"] = self.ratio(entry)
            values["tokens_per_s"] = self.tokens_per_second(entry)
        if entry.work is not None:
            speed = Speed.of(entry, limits)
            values |= {"flops": entry.work.flops, "bytes": entry.work.bytes}
            values["limit_ms"] = limits.seconds(entry.work) * 1e3
            values["gflops"] = speed and speed.gflops
            values["share_of_limit"] = speed and speed.share
        if entry.goal is not None:
            values |= {"goal": entry.goal, "goal_is_met": self.goal_is_met(entry)}
        return values


@dataclass(frozen=True)
class Speed:
    """Speed of an entry, and its share of the machine's limit."""

    gflops: float
    share: float
    """Least time at the machine's limit, relative to the measured time."""

    @classmethod
    def of(cls, entry: Entry, limits: Limits) -> "Speed | None":
        """The speed of an entry; None if its work or time is not known."""
        if entry.work is None or entry.timing is None:
            return None
        seconds = entry.timing.median
        return cls(entry.work.flops / seconds / 1e9, limits.seconds(entry.work) / seconds)


def finite(number: float | None) -> float | None:
    """The number, or None instead of nan and inf, which JSON does not have."""
    return None if number is None or number - number != 0 else number


def run_comparison(
    comparison: Comparison,
    budget: float,
    fewest: int = FEWEST,
    tell: Callable[[str], object] = lambda name: None,
) -> ComparisonResult:
    """Checks a comparison and, if the results are correct, times it."""
    tell("checking")
    verdict = comparison.check()
    timings: dict[str, Timing] = {}
    if verdict.right:
        timings = alternate(comparison.repetitions, budget, fewest, tell=tell)
    return ComparisonResult(
        part=comparison.part,
        name=comparison.name,
        sizes=comparison.sizes,
        tokens=comparison.tokens,
        entries=tuple(
            replace(entry, timing=timings.get(entry.name)) for entry in comparison.entries
        ),
        verdict=verdict,
    )
