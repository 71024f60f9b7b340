"""Timing: contenders alternate in one process, and their medians are compared.

Other programs use the machine too, and its clock rate changes. So the contenders alternate (A B C A
B C …), each repetition is timed separately, and the medians are compared. Figures of different
processes or days are not comparable; the ratios within one run are.

The spread is shown from the lowest to the highest repetition: slow contenders have only three
repetitions, too few for quartiles.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FEWEST, MOST = 3, 40
"""Fewest and most repetitions of a contender, for any budget."""


@dataclass(frozen=True)
class Timing:
    """Durations of the repetitions of one contender, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def lowest(self) -> float:
        return min(self.seconds)

    @property
    def highest(self) -> float:
        return max(self.seconds)

    def in_ms(self) -> str:
        """`median (lowest–highest)` in milliseconds."""
        median, low, high = (s * 1e3 for s in (self.median, self.lowest, self.highest))
        digits = 0 if median >= 100 else 1 if median >= 10 else 2
        return f"{median:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"

    def to_dict(self) -> dict[str, Any]:
        """The summary and all repetitions in their order, as JSON-ready values."""
        return {
            "median_ms": self.median * 1e3,
            "lowest_ms": self.lowest * 1e3,
            "highest_ms": self.highest * 1e3,
            "turns_ms": [seconds * 1e3 for seconds in self.seconds],
        }


def alternate(
    contenders: Mapping[str, Callable[[], object]],
    budget: float,
    fewest: int = FEWEST,
    most: int = MOST,
    *,
    tell: Callable[[str], object] = lambda name: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times the contenders alternately, after one untimed repetition of each as warm-up.

    Each has an equal share of `budget` seconds and stops when it has spent that, so that slow
    ones have fewer repetitions: at least `fewest`, at most `most`. The last of several does not
    continue alone, since its data would stay in the caches. `tell` is called with the next
    contender, outside of the measured time.
    """
    share = budget / len(contenders)
    for name, run in contenders.items():
        tell(name)
        run()
    repetitions: dict[str, list[float]] = {name: [] for name in contenders}
    playing = list(contenders)
    rounds = 0
    while playing:
        for name in playing:
            tell(name)
            start = clock()
            contenders[name]()
            repetitions[name].append(clock() - start)
        rounds += 1
        if rounds >= fewest:
            playing = [name for name in playing if rounds < most and sum(repetitions[name]) < share]
            if len(playing) == 1 < len(contenders):
                break
    return {name: Timing(tuple(seconds)) for name, seconds in repetitions.items()}
