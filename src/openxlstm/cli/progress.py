"""What a person sees of a run while it trains, on standard error."""

import math
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from openxlstm.train.callback import Callback, Evaluated, Progress, Step
from openxlstm.train.meter import Meter, peak_memory

SMOOTHING = 0.98
"""Share of the shown loss that stays from step to step."""

STRETCH = 10.0
"""Seconds that the shown speed is a mean over."""


class TrainingProgress(Callback):
    """A bar with loss, speed, time left and memory, and a line for each evaluation.

    Where standard error is no terminal there are only those lines, without samples.
    """

    def __init__(
        self, description: str, *, quiet: bool, characters_per_token: float | None = None
    ) -> None:
        """`description` is shown first. With `characters_per_token`, evaluations are also told in
        bits per character, else in perplexity."""
        self._description = description
        self._characters_per_token = characters_per_token
        self._console = Console(stderr=True, quiet=quiet, highlight=False, markup=False)
        self._bar = Bar(
            TextColumn("step {task.fields[step]:,}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f}%"),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]} tokens/s"),
            TextColumn("{task.fields[left]} left"),
            TextColumn("{task.fields[memory]}"),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            transient=True,
        )
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
        if self._characters_per_token is None:
            also = f"perplexity {val.perplexity:.4g}"
        else:
            bits = val.loss / math.log(2) / self._characters_per_token
            also = f"{bits:.4f} bits per character"
        self._console.print(
            f"step {evaluated.step:>6,}  {clock(evaluated.seconds):>6}  "
            f"train {train.loss:.4f}  val {val.loss:.4f}  {also}"
            + ("  best" if evaluated.best else ""),
            soft_wrap=True,
        )
        self._meter.pause()

    def show_sample(self, step: int, text: str) -> None:
        """Shows what the model writes after a step, above the bar."""
        if self._console.is_terminal:
            seen = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
            self._console.print(f"\n{seen.strip()}\n", style="dim", soft_wrap=True)

    def _sum_up(self) -> None:
        """What the run came to, in a line; the speed is that since its start or its resume."""
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


def clock(seconds: float) -> str:
    """Seconds as minutes:seconds, with hours when there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def megabytes(size: int) -> str:
    """Bytes in MB, or nothing where they are not known."""
    return f"{size / 1e6:,.0f} MB" if size else ""
