"""How the benchmarks measure: contenders that take turns in one process, and their medians.

Other programs use the machine too, and its clock rate changes. So the contenders take turns
(A B C A B C …), each turn is timed by itself, and what is compared is the median turn of each.
The figures of two processes, or of two days, do not compare; the ratios within one run do.

The spread is shown from the lowest turn to the highest. With the three turns that a slow contender
gets, quartiles would look tidier than what was measured.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FEWEST, MOST = 3, 40
"""Turns of a contender, whatever the budget."""


@dataclass(frozen=True)
class Timing:
    """Durations of the turns of one contender, in seconds."""

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
        """The summary, and every turn in the order they were taken, as JSON-ready values."""
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
    """Times the contenders in turns, after one turn of each that does not count.

    Each has an equal share of `budget` seconds and sits out once it has spent that, so that the
    slow ones have fewer turns: at least `fewest`, at most `most`. The last of several does not play
    on by itself, with caches that nobody else found warm. `tell` hears who is next, outside the
    time that is taken.
    """
    share = budget / len(contenders)
    for name, run in contenders.items():
        tell(name)
        run()
    turns: dict[str, list[float]] = {name: [] for name in contenders}
    playing = list(contenders)
    rounds = 0
    while playing:
        for name in playing:
            tell(name)
            start = clock()
            contenders[name]()
            turns[name].append(clock() - start)
        rounds += 1
        if rounds >= fewest:
            playing = [name for name in playing if rounds < most and sum(turns[name]) < share]
            if len(playing) == 1 < len(contenders):
                break
    return {name: Timing(tuple(seconds)) for name, seconds in turns.items()}
