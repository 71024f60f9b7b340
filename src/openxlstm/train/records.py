"""A run's `metrics.jsonl`, to read: one JSON object a line. Imports no torch."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


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
