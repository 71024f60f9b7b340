"""A run, or any model's folder, opened from Python: model, tokenizer, text and metrics."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openxlstm.runs.corpus import Corpus, ShowBytes, open_corpus
from openxlstm.runs.loading import Checkpoint, Dtype, is_foreign, load_model
from openxlstm.runs.run_folder import RECORD, RunRecord
from openxlstm.train.records import read_metrics

if TYPE_CHECKING:
    from openxlstm.config import DataConfig, ModelConfig
    from openxlstm.data.shards import Verify
    from openxlstm.data.tokenizer import Tokenizer
    from openxlstm.lm.model import LanguageModel


class Run:
    """A run's folder. Each part is loaded when it is first asked for; `open_run` makes one."""

    def __init__(
        self,
        folder: Path,
        *,
        checkpoint: Checkpoint = "best",
        dtype: Dtype | None = None,
        say: Callable[[str], object] | None = None,
    ) -> None:
        self.folder = folder
        self._checkpoint: Checkpoint = checkpoint
        self._dtype: Dtype | None = dtype
        self._say = say
        if not is_foreign(folder):
            _ = self.config  # raises now if the folder holds no model

    @cached_property
    def config(self) -> "ModelConfig":
        """The model's configuration."""
        from openxlstm.config import ModelConfig
        from openxlstm.lm.config_file import read_config

        if is_foreign(self.folder):
            return self.model.config
        return read_config(self.folder, ModelConfig)

    @cached_property
    def model(self) -> "LanguageModel":
        """The language model, in evaluation mode, on the CPU."""
        return load_model(self.folder, self._checkpoint, dtype=self._dtype, say=self._say)

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """The model's tokenizer. Raises UserError if it has tokens that the model lacks."""
        from openxlstm.data.tokenizer import load_tokenizer
        from openxlstm.generation.text import check_vocabulary

        tokenizer = load_tokenizer(self.folder)
        check_vocabulary(tokenizer, self.config, self.folder)
        return tokenizer

    @property
    def was_trained_here(self) -> bool:
        """Whether the folder has a record of its training, as `openxlstm train` writes."""
        return (self.folder / RECORD).is_file()

    @cached_property
    def record(self) -> RunRecord:
        """How the run came to be: its preset, data, options and result (`train.json`).

        Raises:
            UserError: if there is no record, or a damaged one.
        """
        return RunRecord.load(self.folder)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of `metrics.jsonl`: losses of training steps and of evaluations."""
        return list(read_metrics(self.folder))

    @cached_property
    def corpus(self) -> Corpus:
        """The text that the run was trained on, tokenized. Raises UserError like `open_corpus`."""
        return self.open_corpus()

    def open_corpus(
        self,
        data: "DataConfig | None" = None,
        *,
        verify: "Verify" = "hashes",
        progress: ShowBytes | None = None,
    ) -> Corpus:
        """`runs.corpus.open_corpus` with this run's tokenizer, and its own data by default."""
        data = self.record.data_config if data is None else data
        return open_corpus(data, tokenizer=self.tokenizer, verify=verify, progress=progress)


def open_run(
    folder: str | Path,
    *,
    checkpoint: Checkpoint = "best",
    dtype: Dtype | None = None,
    say: Callable[[str], object] | None = None,
) -> Run:
    """Opens the folder of a run, or of a model, and loads nothing yet.

        run = openxlstm.open_run("runs/demo")
        print(run.record.result["best_loss"], run.config.layers, len(run.metrics))
        print("".join(openxlstm.generate(run.model, run.tokenizer, "ROMEO:", max_tokens=100)))
        tokens = run.corpus.val.tokens  # the validation text

    Args:
        checkpoint: the weights to load: "best" has the lowest validation loss, "last" is the newest
            checkpoint's.
        dtype: of the weights, "float32" or "bfloat16"; None leaves them as they are stored.
        say: called with a line about what a large model takes, and about damaged checkpoints.

    Raises:
        UserError: if the folder holds no model, or its configuration is damaged. So do the parts of
            the returned run, when they are loaded.
    """
    return Run(Path(folder), checkpoint=checkpoint, dtype=dtype, say=say)
