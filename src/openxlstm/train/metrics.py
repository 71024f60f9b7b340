"""The record of a run: one JSON object a line, and what draws on it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, TextIO

from openxlstm.errors import UserError
from openxlstm.files import write_text
from openxlstm.train.callback import Callback, Evaluated, Progress, Step

METRICS = "metrics.jsonl"


class MetricsFile(Callback):
    """Appends to a run's `metrics.jsonl`.

    Lines of the kind "step" hold the loss of one batch in `every`; lines of the kind "evaluation"
    the losses of the train and val samples. A resumed run drops what came after the checkpoint that
    it goes on from, so that it ends with the lines of a run that never stopped.
    """

    def __init__(self, folder: Path, every: int = 10) -> None:
        self._folder = folder
        self._every = every
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def on_start(self, progress: Progress) -> None:
        path = self._folder / METRICS
        began = progress.seconds > 0  # else this is a new run, whatever the folder holds
        kept = [r for r in read_metrics(self._folder) if began and r["step"] <= progress.step]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")

    def on_step(self, step: Step) -> None:
        if step.step % self._every == 0:
            self._write(
                kind="step", step=step.step, tokens=step.tokens, seconds=step.seconds,
                loss=step.loss,
                learning_rate=step.learning_rate, gradient_norm=step.gradient_norm,
            )  # fmt: skip

    def on_evaluated(self, evaluated: Evaluated) -> None:
        self._write(
            kind="evaluation", step=evaluated.step, tokens=evaluated.tokens,
            seconds=evaluated.seconds, train_loss=evaluated.train.loss,
            val_loss=evaluated.val.loss, best=evaluated.best,
        )  # fmt: skip

    def _write(self, **record: Any) -> None:
        assert self._file is not None, "on_start opens it"
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


class TensorBoard(Callback):
    """Writes a run's losses for TensorBoard, into `tensorboard/` in its folder."""

    def __init__(self, folder: Path, every: int = 10) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "--tensorboard needs the package tensorboard: pip install 'openxlstm[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._every = every

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def on_step(self, step: Step) -> None:
        if step.step % self._every == 0:
            self._writer.add_scalar("loss/batch", step.loss, step.step)
            self._writer.add_scalar("learning_rate", step.learning_rate, step.step)
            self._writer.add_scalar("gradient_norm", step.gradient_norm, step.step)
            self._writer.add_scalar("tokens_per_second", step.tokens / step.seconds, step.step)

    def on_evaluated(self, evaluated: Evaluated) -> None:
        self._writer.add_scalar("loss/train", evaluated.train.loss, evaluated.step)
        self._writer.add_scalar("loss/val", evaluated.val.loss, evaluated.step)


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of a run's `metrics.jsonl`; a last line that a kill cut short is left out."""
    path = folder / METRICS
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                return
