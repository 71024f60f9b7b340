"""What an experiment found, as plain values, and what follows from it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ContenderResult:
    """What one contender did."""

    contender: str
    about: str
    """What it is made of, in words."""
    parameters: int
    """All of them, embedding and head included."""
    curves: dict[str, dict[int, float]]
    """What was measured: by name, the values over lengths (or numbers of pairs)."""
    seconds: float | None = None
    """Time of the training, on one thread; None where nothing is learned."""
    steps: int | None = None
    """Optimizer steps of it."""
    answers: int | None = None
    """Answers that each accuracy is the mean of."""

    def value(self, curve: str, at: int) -> float | None:
        """What was measured there, or None if it was not."""
        return self.curves.get(curve, {}).get(at)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement about one figure of one contender, with who says so."""

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
    """If given, the figure is the value `at` over that at this length."""

    def figure(self, outcomes: Mapping[str, ContenderResult]) -> float | None:
        """The figure by contender's outcome; None if it was not measured."""
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
    """How a curve is shown."""

    name: str
    x: str
    """What its horizontal axis counts."""
    y: str
    columns: tuple[int, ...]
    """Places that the table shows."""
    trained_up_to: int | None = None
    """The hardest that the contenders learned from."""
    chance: float | None = None
    """What guessing reaches."""
    log_y: bool = False

    @property
    def is_share(self) -> bool:
        """Whether its values are between 0 and 1, and shown in percent."""
        return self.name == "accuracy"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Claims, and who has to take part to judge them."""

    title: str
    task: str
    """What has to be done, in a sentence or two."""
    module: str
    """The module of this room that runs it."""
    contenders: tuple[str, ...]
    claims: tuple[Claim, ...]
    curves: tuple[Curve, ...]
    together: bool = False
    """Whether all contenders take turns in one process, undisturbed, since speed is measured."""
