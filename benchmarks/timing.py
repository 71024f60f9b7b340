"""How these benchmarks measure: alternating runs in one process, medians, and the machine's limits.

Other programs use the machine too, and its clock rate changes. So the contenders take turns
(A B C A B C …), each turn is timed by itself, and what is compared is the median turn of each.
The figures of two processes, or of two days, do not compare; the ratios within one run do.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Durations of the turns of one contender, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def in_ms(self) -> str:
        """`median (lowest–highest)` in milliseconds."""
        median, low, high = (s * 1e3 for s in (self.median, min(self.seconds), max(self.seconds)))
        digits = 0 if median >= 100 else 1 if median >= 10 else 2
        return f"{median:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"

    def to_dict(self) -> dict[str, float]:
        return {
            "median_ms": self.median * 1e3,
            "min_ms": min(self.seconds) * 1e3,
            "max_ms": max(self.seconds) * 1e3,
            "repeats": len(self.seconds),
        }


def alternate(
    contenders: Mapping[str, Callable[[], object]],
    budget: float,
    fewest: int = 3,
    most: int = 40,
) -> dict[str, Timing]:
    """Times the contenders in turns, after one turn of each that does not count.

    Each has an equal share of `budget` seconds and sits out once it has spent that, so that the
    slow ones have fewer repeats: at least `fewest`, at most `most`.
    """
    share = budget / len(contenders)
    for run in contenders.values():
        run()
    turns: dict[str, list[float]] = {name: [] for name in contenders}
    playing = list(contenders)
    while playing:
        for name in playing:
            start = time.perf_counter()
            contenders[name]()
            turns[name].append(time.perf_counter() - start)
        playing = [
            name
            for name in playing
            if len(turns[name]) < fewest or (len(turns[name]) < most and sum(turns[name]) < share)
        ]
    return {name: Timing(tuple(seconds)) for name, seconds in turns.items()}


@dataclass(frozen=True)
class Limits:
    """What the machine can do at best, measured."""

    gflops: float
    """10⁹ floating-point operations a second in a float32 product of two 1024 × 1024 matrices."""
    gbytes: float
    """10⁹ bytes a second, read plus written, in copying 256 MiB."""

    def or_better(self, other: "Limits") -> "Limits":
        """The higher of both, each by itself: a limit is what no neighbour disturbed."""
        return Limits(max(self.gflops, other.gflops), max(self.gbytes, other.gbytes))

    def __str__(self) -> str:
        return f"1024³ float32 product {self.gflops:.0f} GFLOP/s, copy {self.gbytes:.1f} GB/s"


def measure_limits() -> Limits:
    """The machine's limits at the present number of threads: the best of many turns, no median."""
    a, b, product = (torch.randn(1024, 1024) for _ in range(3))
    source, target = torch.ones(2**26), torch.zeros(2**26)
    turns = alternate(
        {"product": lambda: torch.mm(a, b, out=product), "copy": lambda: target.copy_(source)},
        budget=1,
        fewest=8,
    )
    return Limits(
        gflops=2 * 1024**3 / min(turns["product"].seconds) / 1e9,
        gbytes=2 * source.nbytes / min(turns["copy"].seconds) / 1e9,
    )


def installed(package: str) -> bool:
    """Whether a peer is there. A peer that is there and does not import still raises."""
    return importlib.util.find_spec(package) is not None


def environment() -> dict[str, Any]:
    """What a reader of the figures has to know about where they were measured."""
    packages = ("openxlstm", "xlstm", "mlstm_kernels", "transformers")
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages if installed(name)},
    }


def version(package: str) -> str:
    """The version of a package, also of one that is on the path without being installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(package), "__version__", "unknown"))


def processor() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_json(path: Path | None, results: dict[str, Any]) -> None:
    """Writes what was measured, and where, for a program to read; nothing if path is None."""
    if path is not None:
        path.write_text(json.dumps({"environment": environment(), **results}, indent=2) + "\n")
