"""What a person sees of a run while it trains, on standard error."""

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from openxlstm.train.callback import Callback, Evaluated, Progress, Step

SMOOTHING = 0.98
"""Share of the shown loss that stays from step to step."""


class TrainingProgress(Callback):
    """A bar with loss, tokens a second and time left, and a line for each evaluation."""

    def __init__(self, description: str, *, quiet: bool) -> None:
        self._description = description
        self._console = Console(stderr=True, quiet=quiet, highlight=False, markup=False)
        self._bar = Bar(
            TextColumn("step {task.fields[step]:,}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f}%"),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TextColumn("{task.fields[speed]:,.0f} tokens/s"),
            TextColumn("{task.fields[left]} left"),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=1.0, step=0, loss=0.0, speed=0.0, left="?")
        self._loss: float | None = None
        self._start = Progress()
        self._start_share: float | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_start(self, progress: Progress) -> None:
        self._start = Progress(**vars(progress))
        self._console.print(f"{self._description}\n", soft_wrap=True)

    def on_step(self, step: Step) -> None:
        loss = step.loss if self._loss is None else self._loss
        self._loss = SMOOTHING * loss + (1 - SMOOTHING) * step.loss
        if self._start_share is None:
            self._start_share = step.share
        seconds = step.seconds - self._start.seconds
        done = step.share - self._start_share
        left = seconds * (1 - step.share) / done if done > 0 else None
        self._bar.update(
            self._task,
            completed=step.share,
            step=step.step,
            loss=self._loss,
            speed=(step.tokens - self._start.tokens) / seconds,
            left="?" if left is None else clock(left),
        )

    def on_evaluated(self, evaluated: Evaluated) -> None:
        train, val = evaluated.train.loss, evaluated.val.loss
        mark = "  best" if evaluated.best else ""
        self._console.print(
            f"step {evaluated.step:>6,}  {clock(evaluated.seconds):>6}  "
            f"train {train:.4f}  val {val:.4f}{mark}"
        )


def clock(seconds: float) -> str:
    """Seconds as minutes:seconds, with hours when there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
