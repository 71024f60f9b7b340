"""How fast a run is of late, and the most memory that it has held. Imports no torch."""

import math
import sys
from collections import deque
from pathlib import Path


class Meter:
    """Tokens a second over a recent stretch of training.

    A mean from the start would hide a stall, and count the time before a resume.
    """

    def __init__(self, stretch: float = math.inf) -> None:
        """Looks back over `stretch` seconds, or one step where that is longer."""
        self._stretch = stretch
        self._points: deque[tuple[int, float]] = deque()

    def add(self, tokens: int, seconds: float) -> None:
        """Told where the run is: tokens trained on, and seconds on its clock."""
        self._points.append((tokens, seconds))
        while len(self._points) > 2 and seconds - self._points[1][1] >= self._stretch:
            self._points.popleft()

    def pause(self) -> None:
        """Leaves out the time up to the next `add`, in which there was something else to do."""
        self._points.clear()

    def restart(self) -> None:
        """Begins a new stretch where the run is."""
        while len(self._points) > 1:
            self._points.popleft()

    @property
    def tokens_per_second(self) -> float | None:
        """None as long as there is no stretch to measure."""
        if len(self._points) < 2:
            return None
        (first_tokens, begin), (last_tokens, end) = self._points[0], self._points[-1]
        return (last_tokens - first_tokens) / (end - begin) if end > begin else None


def peak_memory() -> int:
    """The most bytes that this process has held at once: of the GPU if it uses one, else of main
    memory; 0 where the system does not say."""
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
