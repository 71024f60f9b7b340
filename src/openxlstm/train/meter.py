"""Recent throughput and peak memory of a run. Imports no torch."""

import math
import sys
from collections import deque
from pathlib import Path


class Meter:
    """Tokens per second over the last seconds of training.

    A mean since the start would hide a stall, and include the time before a resume.
    """

    def __init__(self, stretch: float = math.inf) -> None:
        """Averages over `stretch` seconds, but over one step at least."""
        self._stretch = stretch
        self._points: deque[tuple[int, float]] = deque()

    def add(self, tokens: int, seconds: float) -> None:
        """Records the tokens and seconds of a run after a step."""
        self._points.append((tokens, seconds))
        while len(self._points) > 2 and seconds - self._points[1][1] >= self._stretch:
            self._points.popleft()

    def pause(self) -> None:
        """Excludes the time until the next `add`, which was not spent on training."""
        self._points.clear()

    def restart(self) -> None:
        """Starts a new average at the last `add`."""
        while len(self._points) > 1:
            self._points.popleft()

    @property
    def tokens_per_second(self) -> float | None:
        """The throughput; None with fewer than two records."""
        if len(self._points) < 2:
            return None
        (first_tokens, begin), (last_tokens, end) = self._points[0], self._points[-1]
        return (last_tokens - first_tokens) / (end - begin) if end > begin else None


def peak_memory() -> int:
    """Peak memory of this process in bytes: of the GPU if it uses one, else of main memory; 0 if
    the system does not report it."""
    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    try:  # On Linux, ru_maxrss may be the peak of the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * int(status.partition("VmHWM:")[2].split(maxsplit=1)[0])
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
