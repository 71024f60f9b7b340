"""Summaries of runs from their files, in whatever state these are. Imports no torch."""

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openxlstm.errors import UserError
from openxlstm.files import read_json
from openxlstm.runs.run_folder import RECORD, lock
from openxlstm.train.records import METRICS, evaluations, read_metrics


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run according to its files; None stands for what they do not contain."""

    folder: Path
    state: str
    """"running at 40%"; "finished"; "stopped at 40%", with everything saved; "killed? at 40%": no
    result is written and no process of this machine trains it; "damaged: " and the file."""
    when: float | None = None
    """Time of the last write, in seconds since 1970."""
    preset: str | None = None
    layers: str | None = None
    width: int | None = None
    parameters: int | None = None
    data: str | None = None
    step: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """All fields of its configurations, by name."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """Its evaluations."""

    @property
    def name(self) -> str:
        return str(self.folder)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable values, without options and curve, which the folder's files contain."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        del values["options"], values["curve"]
        return {**values, "folder": self.name}


def find_runs(folders: Iterable[Path]) -> Iterator[Path]:
    """The folders with a `train.json` in and below `folders`, each once, in alphabetical order.

    Raises:
        UserError: if a folder does not exist.
    """
    seen = set()
    for top in folders:
        if not top.is_dir():
            raise UserError(f"the folder {top} does not exist; name one that holds runs")
        for place, below, files in os.walk(top):
            # A run holds no runs. Sorting in place is how os.walk is told its order.
            below[:] = [] if RECORD in files else sorted(n for n in below if not n.startswith("."))
            folder = Path(place)
            if RECORD in files and folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield folder


def read_run(folder: Path) -> RunSummary:
    """Summarises a run; raises nothing, whatever is in its files."""
    try:
        return _read(folder)
    except (UserError, OSError, ValueError, TypeError, KeyError, AttributeError):
        return RunSummary(folder=folder, state=f"damaged: {RECORD}")


def _read(folder: Path) -> RunSummary:
    record = read_json(folder / RECORD)
    data, train, compute, result = (
        dict(record.get(name) or {}) for name in ("data", "train", "compute", "result")
    )
    records = list(read_metrics(folder))
    curve = evaluations(records)
    last = max((*records, result), key=lambda r: r.get("step", 0))
    best = min(curve, key=lambda r: r["val_loss"], default={})
    when = (folder / (METRICS if records else RECORD)).stat().st_mtime
    model = _model(folder)
    return RunSummary(
        folder=folder,
        state=_state(folder, train, result, last),
        when=when,
        preset=record.get("preset"),
        layers=model.get("layers"),
        width=model.get("embedding_dim"),
        parameters=_parameters(folder),
        data=_sources(data),
        step=int(last.get("step", 0)),
        tokens=int(last.get("tokens", 0)),
        seconds=float(last.get("seconds", 0.0)),
        best_loss=best.get("val_loss"),
        best_step=best.get("step"),
        train_loss=curve[-1]["train_loss"] if curve else None,
        val_loss=curve[-1]["val_loss"] if curve else None,
        options={
            "openxlstm": record.get("openxlstm"), "preset": record.get("preset"), **model, **data,
            **train, **compute, "text_sha256": record.get("text_sha256"),
        },
        curve=curve,
    )  # fmt: skip


def _state(
    folder: Path, train: dict[str, Any], result: dict[str, Any], last: dict[str, Any]
) -> str:
    """The state of a run, from its lock, its length, and its result."""
    shares = [
        last.get(name, 0) / (length * unit)
        for name, length, unit in (
            ("step", train.get("steps"), 1),
            ("tokens", train.get("tokens"), 1),
            ("seconds", train.get("minutes"), 60),
        )
        if length
    ]
    share = max(shares, default=0.0)
    percent = f"at {math.floor(100 * min(share, 1.0))}%"
    if _is_running(folder):
        return f"running {percent}"
    if result.get("step", -1) < last.get("step", 0):
        return f"killed? {percent}"
    return "finished" if share >= 1 else f"stopped {percent}"


def _is_running(folder: Path) -> bool:
    """Whether a process of this machine is training a run."""
    try:
        with lock(folder):
            return False
    except UserError:
        return True


def _model(folder: Path) -> dict[str, Any]:
    """The options of a run's model, or none."""
    try:
        return dict(read_json(folder / "config.json").get("model") or {})
    except (UserError, OSError, ValueError, TypeError):
        return {}


def _sources(data: dict[str, Any]) -> str:
    """The names of the training data."""
    sources = data.get("sources") or [data.get("source")]
    return ", ".join(map(str, sources))


def _parameters(folder: Path) -> int | None:
    """The number of saved parameters, from the header of the file: 8 bytes, the length of a JSON
    table of shapes, and that table."""
    try:
        with (folder / "model.safetensors").open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > 100_000_000:  # the limit of safetensors
                return None
            head = json.loads(file.read(length))
        shapes = [entry["shape"] for name, entry in head.items() if name != "__metadata__"]
        return sum(math.prod(shape) for shape in shapes)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
