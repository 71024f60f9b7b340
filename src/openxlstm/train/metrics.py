"""The record of a run: one JSON object a line, and what draws on it."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from openxlstm.errors import UserError
from openxlstm.train.callback import Callback, Evaluated, Progress, Step
from openxlstm.train.meter import Meter, peak_memory
from openxlstm.train.records import METRICS, Log, read_metrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from openxlstm.train.gate_watch import GateWatch


class MetricsFile(Log):
    """Appends to a run's `metrics.jsonl`.

    Lines of the kind "step" hold the loss of one batch in `every`, and say so of a step that was
    left out; lines of the kind "evaluation" the losses of the train and val samples and, where
    someone watches `gates`, the statistics of each block's. What is not a finite number is null.
    """

    def __init__(self, folder: Path, every: int = 10, gates: "GateWatch | None" = None) -> None:
        super().__init__(folder / METRICS)
        self._every = every
        self._gates = gates
        self.wants_model = gates is not None

    def kept(self, step: int) -> Iterable[str]:
        records = read_metrics(self._path.parent)
        return (json.dumps(record) + "\n" for record in records if record["step"] <= step)

    def on_step(self, step: Step) -> None:
        skipped = {"skipped": True} if step.skipped else {}
        if skipped or step.step % self._every == 0:
            self._write(
                kind="step", step=step.step, tokens=step.tokens, seconds=step.seconds,
                loss=step.loss,
                learning_rate=step.learning_rate, gradient_norm=step.gradient_norm, **skipped,
            )  # fmt: skip

    def on_evaluated(self, evaluated: Evaluated) -> None:
        found = {} if self._gates is None else self._gates.at(evaluated)
        gates = {"gates": {name: block.to_dict() for name, block in found.items()}} if found else {}
        self._write(
            kind="evaluation", step=evaluated.step, tokens=evaluated.tokens,
            seconds=evaluated.seconds, train_loss=evaluated.train.loss,
            val_loss=evaluated.val.loss, best=evaluated.best,
            **gates,
        )  # fmt: skip

    def _write(self, **record: Any) -> None:
        for name, value in record.items():
            if isinstance(value, float) and not math.isfinite(value):
                record[name] = None  # JSON has no word for it
        self.append(json.dumps(record) + "\n")


class TensorBoard(Callback):
    """Writes a run for TensorBoard, into `tensorboard/` in its folder.

    Every so many steps: the batch's loss, the learning rate, the gradient's norm, tokens a second
    since the point before (evaluations left out), the steps since then that were left out, and the
    most memory held so far. At evaluations: both losses, the perplexity and, where someone watches
    `gates`, the statistics of each block's. Besides, samples of text and the run's configuration.
    """

    _board: "SummaryWriter | None" = None

    def __init__(
        self,
        folder: Path,
        every: int = 10,
        gates: "GateWatch | None" = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        """`config` is shown as it is; it must be JSON-ready.

        Raises:
            UserError: if the package tensorboard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "--tensorboard needs the package tensorboard: pip install 'openxlstm[tensorboard]'"
            ) from None
        self._open = SummaryWriter
        self._folder = folder / "tensorboard"
        self._every = every
        self._gates = gates
        self.wants_model = gates is not None
        self._config = config
        self._meter = Meter()
        self._skipped = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._board is not None:
            self._board.close()

    def on_start(self, progress: Progress) -> None:
        # What a run wrote after the checkpoint that it goes on from is not shown twice.
        purge_step = progress.step + 1 if progress.seconds > 0 else None
        self._board = self._open(str(self._folder), purge_step=purge_step)
        if self._config is not None:
            code = json.dumps(self._config, indent=2, ensure_ascii=False)
            self._board.add_text("config", _as_code(code), progress.step)
        self._meter.add(progress.tokens, progress.seconds)

    def on_step(self, step: Step) -> None:
        self._meter.add(step.tokens, step.seconds)
        self._skipped += step.skipped
        if step.step % self._every == 0:
            self._add("loss/batch", step.loss, step.step)
            self._add("learning_rate", step.learning_rate, step.step)
            self._add("gradient_norm", step.gradient_norm, step.step)
            self._add("skipped_steps", self._skipped, step.step)
            self._add("peak_memory_mb", peak_memory() / 1e6, step.step)
            speed = self._meter.tokens_per_second
            if speed is not None:
                self._add("tokens_per_second", speed, step.step)
            self._skipped = 0
            self._meter.restart()

    def on_evaluated(self, evaluated: Evaluated) -> None:
        self._add("loss/train", evaluated.train.loss, evaluated.step)
        self._add("loss/val", evaluated.val.loss, evaluated.step)
        self._add("perplexity", evaluated.val.perplexity, evaluated.step)
        for block, found in ({} if self._gates is None else self._gates.at(evaluated)).items():
            for name, value in found.to_dict().items():
                if value is not None:
                    self._add(f"gates/{block}/{name}", value, evaluated.step)
        self._meter.pause()

    def add_sample(self, step: int, text: str) -> None:
        """Shows what the model writes after a step."""
        assert self._board is not None, "on_start opens it"
        self._board.add_text("sample", _as_code(text), step)

    def _add(self, tag: str, value: float, step: int) -> None:
        assert self._board is not None, "on_start opens it"
        self._board.add_scalar(tag, value, step)


def _as_code(text: str) -> str:
    """Text as TensorBoard's Markdown shows it unchanged."""
    return "".join(f"    {line}\n" for line in text.split("\n"))
