"""A run's folder beyond its model: `train.json`, which says how it came to be."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from openxlstm.config import DataConfig, TrainConfig
from openxlstm.errors import UserError
from openxlstm.files import read_json, write_json
from openxlstm.strict import Config

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

RECORD = "train.json"


@dataclass(frozen=True, kw_only=True)
class RunRecord(Config):
    """What `train.json` holds."""

    openxlstm: str
    """Version that started the run."""
    preset: str
    """Name of the recipe that it started from."""
    init_from: str | None = None
    """The folder whose weights it started from; None for random ones."""
    data: dict[str, Any]
    """A DataConfig."""
    train: dict[str, Any]
    """A TrainConfig."""
    compute: dict[str, Any] = field(default_factory=dict)
    """A ComputeConfig: how it was computed last."""
    text_sha256: str
    """Of all that it was trained on; of a single text, as UTF-8."""
    result: dict[str, Any] = field(default_factory=dict)
    """How far it came, and its losses."""

    @property
    def data_config(self) -> DataConfig:
        return DataConfig.from_dict(self.data)

    @property
    def train_config(self) -> TrainConfig:
        return TrainConfig.from_dict(self.train)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads a run's record.

        Raises:
            UserError: if there is none, or one that this version does not understand.
        """
        path = folder / RECORD
        if not path.is_file():
            raise UserError(f"{folder} is not a run: it has no {RECORD}")
        try:
            record = cls.from_dict(read_json(path))
            _ = record.data_config, record.train_config
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        return record

    def save(self, folder: Path) -> None:
        write_json(folder / RECORD, self.to_dict())


def is_in_use(folder: Path) -> bool:
    """Whether a folder holds anything that a new run could harm."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def free_folder(name: str) -> Path:
    """runs/NAME, or runs/NAME-2 and so on: the first that is free."""
    folder, count = Path("runs") / name, 1
    while is_in_use(folder):
        count += 1
        folder = Path("runs") / f"{name}-{count}"
    return folder


def newest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a run that is whole; says which newer ones are not.

    Raises:
        UserError: if there is none.
    """
    from openxlstm.train.checkpoint import newest

    path = newest(folder, _say)
    if path is None:
        raise UserError(f"the run in {folder} has no checkpoint that is whole")
    return path


def checkpoint_to_resume(folder: Path) -> Path | None:
    """What a run can go on from: None is its beginning, if it was killed before it saved anything.

    Newer checkpoints, which are damaged, are put aside.

    Raises:
        UserError: if there was a checkpoint, and none is whole.
    """
    from openxlstm.train.checkpoint import checkpoints, newest, set_aside
    from openxlstm.train.records import read_metrics

    path = newest(folder, _say)
    if path is None:
        if checkpoints(folder) or any(record["step"] > 0 for record in read_metrics(folder)):
            raise UserError(
                f"the run in {folder} has no checkpoint to resume; start a new one in another --out"
            )
        _say(f"the run in {folder} had not saved anything yet; it begins anew")
    set_aside(folder, path)
    return path


def clear_unstarted(folder: Path) -> None:
    """Empties the folder of a run that was killed before its record was written."""
    from openxlstm.data.tokenizer_json import CONFIG_NAME, FILE_NAME
    from openxlstm.lm.folder import CONFIG

    files = list(folder.iterdir()) if folder.is_dir() else []
    written_first = CONFIG_NAME, FILE_NAME, CONFIG
    if all(file.name in written_first or file.match(".*.tmp") for file in files):
        for file in files:
            file.unlink()


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keeps every other process from training the run in `folder` as well, until it is left or this
    process has ended, however that came about.

    Raises:
        UserError: if another one is at it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"the run in {folder} is being trained by another process: wait for it, or stop it"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _say(message: str) -> None:
    print(f"openxlstm: {message}", file=sys.stderr, flush=True)
