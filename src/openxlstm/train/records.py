"""Log files that a run appends to, and reading `metrics.jsonl`. Imports no torch."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self, TextIO

from openxlstm.files import write_text
from openxlstm.train.callback import Callback, Progress

METRICS = "metrics.jsonl"


class Log(Callback):
    """Appends to a file of a run. A resumed run drops what was written after its checkpoint, so
    that the file is the same as without the stop."""

    _file: TextIO | None = None

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def kept(self, step: int) -> Iterable[str]:
        """The content of the file up to a step."""
        raise NotImplementedError

    def on_start(self, progress: Progress) -> None:
        began = progress.seconds > 0  # a new run starts an empty file, whatever the folder has
        write_text(self._path, "".join(self.kept(progress.step) if began else ()))
        self._file = self._path.open("a", encoding="utf-8", newline="")

    def append(self, text: str) -> None:
        assert self._file is not None, "on_start opens it"
        self._file.write(text)
        self._file.flush()


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of a run's `metrics.jsonl`, up to a line that is not a record: a kill may have
    truncated the last one."""
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
    """The evaluations among records, without those whose losses are not finite."""
    return [
        record
        for record in records
        if record["kind"] == "evaluation"
        and record.get("train_loss") is not None
        and record.get("val_loss") is not None
    ]
