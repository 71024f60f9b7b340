"""What a run writes down as it goes, and its `metrics.jsonl` to read. Imports no torch."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self, TextIO

from openxlstm.files import write_text
from openxlstm.train.callback import Callback, Progress

METRICS = "metrics.jsonl"


class Log(Callback):
    """Appends to a file of a run. A resumed run drops what came after the checkpoint that it goes
    on from, so that it ends with what a run that never stopped has."""

    _file: TextIO | None = None

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def kept(self, step: int) -> Iterable[str]:
        """What the file holds up to a step."""
        raise NotImplementedError

    def on_start(self, progress: Progress) -> None:
        began = progress.seconds > 0  # else this is a new run, whatever the folder holds
        write_text(self._path, "".join(self.kept(progress.step) if began else ()))
        self._file = self._path.open("a", encoding="utf-8", newline="")

    def append(self, text: str) -> None:
        assert self._file is not None, "on_start opens it"
        self._file.write(text)
        self._file.flush()


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of a run's `metrics.jsonl`, up to a line that is none: a kill may have cut the
    last one short."""
    path = folder / METRICS
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                return
            if not isinstance(record, dict) or "kind" not in record:
                return
            yield record


def evaluations(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations among some records, but for those whose losses were no numbers."""
    return [
        record
        for record in records
        if record["kind"] == "evaluation"
        and record.get("train_loss") is not None
        and record.get("val_loss") is not None
    ]
