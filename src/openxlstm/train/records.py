"""A run's `metrics.jsonl`, to read: one JSON object a line. Imports no torch."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


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


def evaluations(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations among some records, but for those whose losses were no numbers."""
    return [
        record
        for record in records
        if record["kind"] == "evaluation"
        and record["train_loss"] is not None
        and record["val_loss"] is not None
    ]
