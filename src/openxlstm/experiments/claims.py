"""Experiments, claims and results as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ContenderResult:
    """The results of one contender."""

    contender: str
    about: str
    """A description of the model."""
    parameters: int
    """Number of parameters, embedding and head included."""
    curves: dict[str, dict[int, float]]
    """The measured curves by name: values by length (or number of pairs)."""
    seconds: float | None = None
    """Training time on one thread; None if the experiment has no training."""
    steps: int | None = None
    """Optimizer steps of the training."""
    answers: int | None = None
    """Number of answers behind each accuracy."""

    def value(self, curve: str, at: int) -> float | None:
        """The value of a curve at a length, or None if it was not measured."""
        return self.curves.get(curve, {}).get(at)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement about one figure of one contender, with its source."""

    words: str
    source: str
    contender: str
    at: int
    """The length, or number of pairs, of the figure."""
    at_least: float | None = None
    below: float | None = None
    """The claim holds in [at_least, below)."""
    curve: str = "accuracy"
    over: int | None = None
    """If given, the figure is the value at `at`, relative to the value at this length."""

    def figure(self, outcomes: Mapping[str, ContenderResult]) -> float | None:
        """The figure in the results of the contenders; None if it was not measured."""
        outcome = outcomes.get(self.contender)
        value = outcome.value(self.curve, self.at) if outcome else None
        if outcome is None or value is None or self.over is None:
            return value
        base = outcome.value(self.curve, self.over)
        return value / base if base else None

    def holds(self, figure: float) -> bool:
        """Whether a figure agrees with the claim."""
        return (self.at_least is None or figure >= self.at_least) and (
            self.below is None or figure < self.below
        )


@dataclass(frozen=True, kw_only=True)
class Curve:
    """How a curve is displayed."""

    name: str
    x: str
    """Label of the horizontal axis."""
    y: str
    columns: tuple[int, ...]
    """Lengths that the table shows."""
    trained_up_to: int | None = None
    """The longest examples in training."""
    chance: float | None = None
    """The value of random guessing."""
    log_y: bool = False

    @property
    def is_share(self) -> bool:
        """Whether the values are between 0 and 1 and displayed in percent."""
        return self.name == "accuracy"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A task with its contenders and claims."""

    title: str
    task: str
    """The task, in one or two sentences."""
    module: str
    """The module of this package that runs the experiment."""
    contenders: tuple[str, ...]
    claims: tuple[Claim, ...]
    curves: tuple[Curve, ...]
    together: bool = False
    """Whether all contenders alternate in one process, because their speed is measured."""
