"""A run's folder beside its model: the record of its training, its checkpoints and its lock."""

import contextlib
import os
from collections.abc import Callable, Iterator
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
    """The content of `train.json`: how a run came to be, and its result."""

    openxlstm: str
    """Version of openxlstm that started the run."""
    preset: str
    """Name of the preset that it started from."""
    init_from: str | None = None
    """Folder whose weights it started from; None for random weights."""
    data: dict[str, Any]
    """A DataConfig."""
    train: dict[str, Any]
    """A TrainConfig."""
    compute: dict[str, Any] = field(default_factory=dict)
    """A ComputeConfig: the one of its last resume."""
    text_sha256: str
    """SHA-256 of its sources: of a single text as UTF-8, of several sources' digests."""
    result: dict[str, Any] = field(default_factory=dict)
    """A `train.callback.Progress` at its end: steps, tokens, seconds and best loss."""

    @property
    def data_config(self) -> DataConfig:
        return DataConfig.from_dict(self.data)

    @property
    def train_config(self) -> TrainConfig:
        return TrainConfig.from_dict(self.train)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The record in a run's folder.

        Raises:
            UserError: if there is none, or one that this version cannot read.
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
    """Whether a path holds anything that a new folder would overwrite."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def free_folder(name: str) -> Path:
    """The first unused folder of runs/NAME, runs/NAME-2, runs/NAME-3 and so on."""
    folder, count = Path("runs") / name, 1
    while is_in_use(folder):
        count += 1
        folder = Path("runs") / f"{name}-{count}"
    return folder


def newest_checkpoint(folder: Path, say: Callable[[str], object] | None = None) -> Path:
    """The newest intact checkpoint of a run; calls `say` with a line per newer, damaged one.

    Raises:
        UserError: if there is none.
    """
    from openxlstm.train.checkpoint import newest

    path = newest(folder, say or _ignore)
    if path is None:
        raise UserError(f"the run in {folder} has no intact checkpoint")
    return path


def checkpoint_to_resume(folder: Path, say: Callable[[str], object] | None = None) -> Path | None:
    """The checkpoint that a run resumes from; None is its start, if it has not saved anything yet.

    Newer checkpoints, which are damaged, are renamed; `say` is called with a line about each.

    Raises:
        UserError: if there was a checkpoint, and none is intact.
    """
    from openxlstm.train.checkpoint import checkpoints, newest, set_aside
    from openxlstm.train.records import read_metrics

    path = newest(folder, say or _ignore)
    if path is None:
        if checkpoints(folder) or any(record["step"] > 0 for record in read_metrics(folder)):
            raise UserError(
                f"the run in {folder} has no checkpoint to resume; start a new one in another --out"
            )
        (say or _ignore)(f"the run in {folder} had not saved anything yet; it starts from step 0")
    set_aside(folder, path)
    return path


def clear_unstarted(folder: Path) -> None:
    """Removes the files of a run that was killed before its record was written."""
    from openxlstm.data.tokenizer_json import CONFIG_NAME, FILE_NAME
    from openxlstm.lm.config_file import CONFIG

    files = list(folder.iterdir()) if folder.is_dir() else []
    written_first = CONFIG_NAME, FILE_NAME, CONFIG
    if all(file.name in written_first or file.match(".*.tmp") for file in files):
        for file in files:
            file.unlink()


def _ignore(_: str) -> None: ...


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Locks the run in `folder` against training by another process of this machine. The lock ends
    with the block, or with this process, even if that is killed.

    Raises:
        UserError: if another process holds the lock.
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
