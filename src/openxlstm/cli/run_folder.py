"""A run's folder beyond its model: `train.json`, which says how it came to be."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from openxlstm.config import Config, DataConfig, TrainConfig
from openxlstm.errors import UserError
from openxlstm.files import read_json, write_json

if TYPE_CHECKING:
    from openxlstm.data.tokenizer import Tokenizer
    from openxlstm.lm.model import LanguageModel

RECORD = "train.json"


@dataclass(frozen=True, kw_only=True)
class RunRecord(Config):
    """What `train.json` holds."""

    openxlstm: str
    """Version that started the run."""
    preset: str
    """Name of the recipe that it started from."""
    data: dict[str, Any]
    """A DataConfig."""
    train: dict[str, Any]
    """A TrainConfig."""
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


Checkpoint = Literal["best", "last"]
"""best: the weights with the lowest validation loss. last: those of the newest checkpoint."""


def load_run(folder: Path, checkpoint: Checkpoint) -> "tuple[LanguageModel, Tokenizer]":
    """The model and the tokenizer of a run.

    Raises:
        UserError: if something is missing, damaged or does not fit.
    """
    from openxlstm.data.tokenizer import load_tokenizer
    from openxlstm.lm.folder import WEIGHTS
    from openxlstm.lm.model import LanguageModel
    from openxlstm.train.loop import LAST

    weights, prefix = (LAST, "model.") if checkpoint == "last" else (WEIGHTS, "")
    model = LanguageModel.from_pretrained(folder, weights, prefix)
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, "
            f"its model {model.config.vocab_size}: they do not belong together"
        )
    return model, tokenizer
