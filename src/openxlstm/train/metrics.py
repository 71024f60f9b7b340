"""Callbacks that record a run: one JSON object per line, and TensorBoard."""

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

    Records of the kind "step" have the batch loss of every `every`-th step, and of each skipped
    step. Records of the kind "evaluation" have the losses on the training and validation samples,
    and the statistics of each block's `gates` if they are watched. A value that is not finite is
    null.
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
                record[name] = None  # JSON has no such number
        self.append(json.dumps(record) + "\n")


class TensorBoard(Callback):
    """Writes a run's metrics for TensorBoard, to `tensorboard/` in its folder.

    Every `every` steps: loss of the batch, learning rate, norm of the gradient, throughput since
    the last such step (without evaluations), skipped steps since then, and peak memory. At
    evaluations: both losses, the perplexity, and the statistics of each block's `gates` if they are
    watched. Also samples of text, and the run's configuration.
    """

    _board: "SummaryWriter | None" = None

    def __init__(
        self,
        folder: Path,
        every: int = 10,
        gates: "GateWatch | None" = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        """`config` must be JSON-serialisable; it is shown as it is.

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
        # Removes what the run wrote after the checkpoint that it resumes from.
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
        """Shows the text that the model generated after a step."""
        assert self._board is not None, "on_start opens it"
        self._board.add_text("sample", _as_code(text), step)

    def _add(self, tag: str, value: float, step: int) -> None:
        assert self._board is not None, "on_start opens it"
        self._board.add_scalar(tag, value, step)


def _as_code(text: str) -> str:
    """Text as a Markdown code block, which TensorBoard shows unchanged."""
    return "".join(f"    {line}\n" for line in text.split("\n"))
