"""Progress on standard error: bars on a terminal, single lines elsewhere, nothing with --quiet."""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar

from openxlstm.train.callback import Callback, Evaluated, Progress, Step
from openxlstm.train.meter import Meter, peak_memory

if TYPE_CHECKING:
    from openxlstm.experiments.claims import ContenderResult

SMOOTHING = 0.98
"""Share of the shown loss that is kept from step to step."""

STRETCH = 10.0
"""Seconds over which the shown throughput is averaged."""


def say(message: str) -> None:
    """Prints a message on standard error."""
    print(f"openxlstm: {message}", file=sys.stderr, flush=True)


def make_bar(*columns: str | ProgressColumn, quiet: bool) -> Bar:
    """A bar on standard error that is cleared at its end, shown only if that is a terminal."""
    console = Console(stderr=True, quiet=quiet, highlight=False, markup=False)
    hidden = quiet or not console.is_terminal
    return Bar(*columns, console=console, disable=hidden, transient=True)


@contextlib.contextmanager
def byte_bars(
    names: Mapping[str, str] | None = None, *, quiet: bool
) -> Iterator[Callable[[str, int, int | None], None]]:
    """Shows one bar per task whose bytes are being read.

    Args:
        names: what to show for each task, instead of its name.

    Returns:
        a function to call with the name of a task, the bytes that are done, and the bytes in all.
    """
    text = TextColumn("{task.description}", markup=False)
    left = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bar = make_bar(text, BarColumn(), *left, quiet=quiet)
    tasks: dict[str, Any] = {}

    def report(task: str, done: int, total: int | None) -> None:
        bar.start()
        if task not in tasks:
            tasks[task] = bar.add_task((names or {}).get(task, task), completed=done)
        bar.update(tasks[task], completed=done, total=total, visible=done != total)

    try:
        yield report
    finally:
        bar.stop()


class TrainingProgress(Callback):
    """A bar with loss, throughput, time left and memory, and a line per evaluation.

    Without a terminal only the lines are written, and no samples.
    """

    def __init__(self, description: str, *, quiet: bool) -> None:
        """`description` is shown before the first step."""
        self._description = description
        self._bar = make_bar(
            "step {task.fields[step]:,}",
            BarColumn(),
            "{task.percentage:.0f}%",
            "loss {task.fields[loss]}",
            "{task.fields[speed]} tokens/s",
            "{task.fields[left]} left",
            "{task.fields[memory]}",
            quiet=quiet,
        )
        self._console = self._bar.console
        self._task = self._bar.add_task(
            "", total=1.0, step=0, loss="?", speed="?", left="?", memory=""
        )
        self._meter = Meter(STRETCH)
        self._loss: float | None = None
        self._start = Progress()
        self._first: Step | None = None
        self._last: Step | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._bar.stop()
        if error is None and self._console.is_terminal:
            self._sum_up()

    def on_start(self, progress: Progress) -> None:
        self._start = Progress(**vars(progress))
        self._meter.add(progress.tokens, progress.seconds)
        self._console.print(f"{self._description}\n", soft_wrap=True)

    def on_step(self, step: Step) -> None:
        if math.isfinite(step.loss):
            loss = step.loss if self._loss is None else self._loss
            self._loss = SMOOTHING * loss + (1 - SMOOTHING) * step.loss
        first = self._first = self._first or step
        self._last = step
        if self._bar.disable:
            return
        self._meter.add(step.tokens, step.seconds)
        speed = self._meter.tokens_per_second
        done = step.share - first.share
        left = (step.seconds - first.seconds) * (1 - step.share) / done if done > 0 else None
        self._bar.update(
            self._task,
            completed=step.share,
            step=step.step,
            loss="?" if self._loss is None else f"{self._loss:.3f}",
            speed="?" if speed is None else f"{speed:,.0f}",
            left="?" if left is None else clock(left),
            memory=megabytes(peak_memory()),
        )

    def on_evaluated(self, evaluated: Evaluated) -> None:
        train, val = evaluated.train, evaluated.val
        self._console.print(
            f"step {evaluated.step:>6,}  {clock(evaluated.seconds):>6}  "
            f"train {train.loss:.4f}  val {val.loss:.4f}  perplexity {val.perplexity:.4g}"
            + ("  best" if evaluated.best else ""),
            soft_wrap=True,
        )
        self._meter.pause()

    def show_sample(self, step: int, text: str) -> None:
        """Shows the text that the model generated after a step, above the bar."""
        if self._console.is_terminal:
            seen = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
            self._console.print(f"\n{seen.strip()}\n", style="dim", soft_wrap=True)

    def _sum_up(self) -> None:
        """Prints steps, tokens, time, memory, and the throughput since the start or the resume."""
        if self._last is None:
            return
        step, tokens, seconds = self._last.step, self._last.tokens, self._last.seconds
        elapsed = seconds - self._start.seconds
        parts = [
            f"{step:,} steps",
            f"{tokens:,} tokens",
            clock(seconds),
            f"{(tokens - self._start.tokens) / elapsed:,.0f} tokens/s" if elapsed > 0 else "",
            megabytes(peak_memory()),
        ]
        self._console.print(" · ".join(filter(None, parts)), soft_wrap=True)


class ContenderBars:
    """A bar per contender of an experiment; without a terminal, a line when each has finished."""

    def __init__(self, name: str, contenders: Sequence[str], *, quiet: bool) -> None:
        self._name = name
        self._bar = make_bar(
            "{task.description:<15}",
            BarColumn(),
            "{task.percentage:>3.0f}%",
            "{task.fields[words]}",
            quiet=quiet,
        )
        self._tasks = {
            contender: self._bar.add_task(contender, total=1.0, words="")
            for contender in contenders
        }

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, contender: str, share: float, words: str) -> None:
        """Shows the finished share of a contender's work, with a few words."""
        self._bar.update(self._tasks[contender], completed=share, words=words)

    def finish(self, result: "ContenderResult") -> None:
        """Shows that a contender has finished."""
        if result.contender in self._tasks:
            words = f"{result.steps:,} steps, {result.seconds:.0f} s"
            self.update(result.contender, 1.0, words)
            if not self._bar.console.is_terminal:
                line = f"{self._name}: {result.contender}, {words}"
                self._bar.console.print(line, soft_wrap=True)


class BenchmarkProgress:
    """The comparison and the contender that run now.

    A terminal shows one line that changes between repetitions: a thread that draws would take time
    from the contender that is measured. Without a terminal, each comparison has a line.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._said: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write_line("")

    def tell(self, title: str, contender: str) -> None:
        if self._terminal:
            self._write_line(f"{title}: {contender}")
        elif title not in self._said and not self._quiet:
            print(title, file=sys.stderr, flush=True)
        self._said.add(title)

    def _write_line(self, text: str) -> None:
        if self._terminal and not self._quiet:
            sys.stderr.write(f"\r\x1b[2K{text[:79]}")
            sys.stderr.flush()


def clock(seconds: float) -> str:
    """Seconds as minutes:seconds, with hours when there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def megabytes(size: int) -> str:
    """Bytes in MB, or nothing if they are unknown."""
    return f"{size / 1e6:,.0f} MB" if size else ""
