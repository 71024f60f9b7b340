"""Training a run: everything is decided and checked first, then it is trained in its folder."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from openxlstm._version import __version__
from openxlstm.config import ComputeConfig, DataConfig, ModelConfig, TrainConfig
from openxlstm.errors import UserError
from openxlstm.runs.corpus import Corpus, ShowBytes, open_corpus
from openxlstm.runs.run import Run, open_run
from openxlstm.runs.run_folder import RECORD, RunRecord, checkpoint_to_resume, is_in_use, lock
from openxlstm.train.callback import Callback, Progress

if TYPE_CHECKING:
    from openxlstm.data.batches import RandomWindows, Streams
    from openxlstm.data.shards import Verify
    from openxlstm.train.gate_watch import GateWatch
    from openxlstm.train.processes import Processes


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run that can be trained: all decisions, the same in every process. Nothing is written."""

    folder: Path
    record: RunRecord
    corpus: Corpus
    model: ModelConfig
    compute: ComputeConfig
    resumed: bool
    """Whether the folder holds this run already."""


def prepare_new_run(
    folder: Path,
    *,
    model: ModelConfig,
    data: DataConfig,
    train: TrainConfig,
    processes: "Processes",
    compute: ComputeConfig | None = None,
    preset: str = "",
    init_from: Run | None = None,
    verify: "Verify" = "hashes",
    progress: ShowBytes | None = None,
) -> PreparedRun:
    """Prepares a run in a new folder.

    Args:
        model: its `vocab_size` is replaced by the tokenizer's, unless the run starts from weights.
        processes: the processes that train the run; `train.processes.ALONE` for this one alone.
        preset: name of the preset that the configurations are from, for the record.
        init_from: where the first weights and the tokenizer are from; random weights by default.
        verify, progress: as for `open_corpus`.

    Raises:
        UserError: if the run is impossible: no memory, no text, a folder that is in use.
    """
    from openxlstm.device import memory_bytes
    from openxlstm.lm.memory import check_memory

    compute, tokenizer, source = compute or ComputeConfig(), None, None
    if init_from is not None:
        tokenizer, source = init_from.tokenizer, str(init_from.folder)
        data = data.replace(tokenizer=source)
    if is_in_use(folder):
        resume = "resume it with --resume, or " if (folder / RECORD).exists() else ""
        raise UserError(f"the folder {folder} is in use: {resume}choose another --out")
    if processes.device.type == "cpu":
        check_memory(
            model, (memory_bytes() or sys.maxsize) // processes.local_size,
            strategy=compute.strategy, world_size=processes.world_size,
            average=train.ema_decay > 0,
        )  # fmt: skip
    _check_batch(data, compute, processes)
    corpus = open_corpus(data, tokenizer=tokenizer, verify=verify, progress=progress)
    if init_from is None:
        model = model.replace(vocab_size=corpus.tokenizer.vocab_size)
    record = RunRecord(
        openxlstm=__version__, preset=preset, init_from=source, data=data.to_dict(),
        train=train.to_dict(), compute=compute.to_dict(), text_sha256=corpus.sha256,
    )  # fmt: skip
    return PreparedRun(
        folder=folder, record=record, corpus=corpus, model=model, compute=compute, resumed=False
    )


def prepare_resumed_run(
    run: Run,
    *,
    train: TrainConfig,
    processes: "Processes",
    compute: ComputeConfig | None = None,
    verify: "Verify" = "hashes",
    progress: ShowBytes | None = None,
) -> PreparedRun:
    """Prepares a run to be resumed, for a length that may differ from its record's.

    Args: as for `prepare_new_run`.

    Raises:
        UserError: if a file of the run is damaged, or its text has changed.
    """
    compute, data = compute or ComputeConfig(), run.record.data_config
    _check_batch(data, compute, processes)
    corpus = run.open_corpus(verify=verify, progress=progress)
    if corpus.sha256 != run.record.text_sha256:
        raise UserError(
            f"the text of {', '.join(data.sources)} has changed since the run in {run.folder} "
            "began; put the old text back, or start a new run"
        )
    record = run.record.replace(train=train.to_dict(), compute=compute.to_dict())
    return PreparedRun(
        folder=run.folder, record=record, corpus=corpus, model=run.config, compute=compute,
        resumed=True,
    )  # fmt: skip


def train_run(
    run: PreparedRun,
    processes: "Processes",
    *,
    watch_gates: bool = False,
    watchers: "Callable[[GateWatch | None], Sequence[Any]]" = lambda gates: (),
    stop: AbstractContextManager[Callable[[], bool]] | None = None,
    say: Callable[[str], object] | None = None,
) -> tuple[Progress, bool]:
    """Trains a run in its folder, and appends to its `metrics.jsonl`.

    Args:
        watch_gates: whether gate statistics of a validation batch are part of evaluations.
        watchers: called in the first process with the watched gates, if any; returns more
            callbacks, which must be context managers.
        stop: entered while the run trains; what it gives is asked after every step whether to stop.
        say: called with a line about damaged checkpoints.

    Returns:
        How far the run came, and whether it was stopped before its end.

    Raises:
        UserError, OSError: like `train.loop.fit`.
    """
    from openxlstm.data.batches import RandomWindows
    from openxlstm.device import seed_everything
    from openxlstm.lm.model import LanguageModel
    from openxlstm.train.gate_watch import GateWatch
    from openxlstm.train.loop import fit
    from openxlstm.train.metrics import MetricsFile

    data, config = run.record.data_config, run.record.train_config
    seed_everything(config.seed)
    share = {"rank": processes.rank, "world_size": processes.world_size}
    batches = _batches(run, share)
    size = data.batch_size, data.eval_window or data.window
    train, val = run.corpus.train.tokens, run.corpus.val.tokens
    in_train = RandomWindows(train, *size, weights=data.weights, **share)
    in_val = RandomWindows(val, *size, weights=data.weights, part="the held-out part", **share)
    train_sample, val_sample = (
        list(islice(sample, config.eval_batches)) for sample in (in_train, in_val)
    )
    model = LanguageModel(run.model)
    if processes.world_size == 1 or run.compute.strategy != "fsdp":  # which moves it block by block
        model.to(processes.device)

    with contextlib.ExitStack() as stack:
        callbacks: list[Any] = []
        checkpoint = None
        if processes.is_first:
            files = stack.enter_context(_RunFiles(run))
            checkpoint = checkpoint_to_resume(run.folder, say) if run.resumed else None
            gates = GateWatch(val_sample[0]) if watch_gates else None
            others = [MetricsFile(run.folder, gates=gates), *watchers(gates)]
            callbacks = [files, *map(stack.enter_context, others)]
        checkpoint, init_from = processes.tell(checkpoint), run.record.init_from
        if init_from is not None and checkpoint is None:
            model.load_state_dict(open_run(init_from).model.state_dict())
        stopped = stack.enter_context(stop or contextlib.nullcontext(lambda: False))
        result = fit(
            model, batches, config, callbacks, compute=run.compute, processes=processes,
            train_sample=train_sample, val_sample=val_sample,
            carry_state=data.sampling == "streams", folder=run.folder, resume=checkpoint,
            stop=stopped,
        )  # fmt: skip
        return result, processes.any(stopped())


def conclude_run(run: PreparedRun, result: Progress) -> Path | None:
    """Writes a run's result into its record, and draws its loss; returns the picture's path, or
    None if there is nothing to draw yet. For the first process alone."""
    from openxlstm.train.curve import draw_loss

    run.record.replace(result=asdict(result)).save(run.folder)
    sources = ", ".join(run.record.data_config.sources)
    return draw_loss(run.folder, f"{run.folder.name} · {run.model.layers} · {sources}")


def _check_batch(data: DataConfig, compute: ComputeConfig, processes: "Processes") -> None:
    """Raises UserError if the processes cannot share a batch evenly."""
    parts = processes.world_size * compute.accumulate
    if data.batch_size % parts:
        raise UserError(
            f"a batch of {data.batch_size} cannot be shared evenly by {processes.world_size} "
            f"processes in {compute.accumulate} parts each: make --batch-size a multiple of {parts}"
        )


def _batches(run: PreparedRun, share: dict[str, int]) -> "RandomWindows | Streams":
    """Endless training batches."""
    from openxlstm.data.batches import RandomWindows, Streams

    data, tokens = run.record.data_config, run.corpus.train.tokens
    size = data.batch_size, data.window
    mixture: dict[str, Any] = {"first_window": data.first_window, "weights": data.weights, **share}
    if data.sampling == "streams":
        return Streams(tokens, *size, **mixture)
    return RandomWindows(tokens, *size, run.record.train_config.seed, **mixture)


class _RunFiles(Callback):
    """Holds the lock of a run's folder, and writes its record once training is about to start."""

    def __init__(self, run: PreparedRun) -> None:
        self._run = run
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self._run.resumed:
            self._lock.enter_context(lock(self._run.folder))
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def on_start(self, progress: Progress) -> None:
        from openxlstm.lm.config_file import write_config

        run = self._run
        if not run.resumed:
            run.folder.mkdir(parents=True, exist_ok=True)
            self._lock.enter_context(lock(run.folder))
            run.corpus.tokenizer.save(run.folder)
            write_config(run.model, run.folder)
        for leftover in run.folder.glob(".*.tmp"):  # the run was killed while it wrote this
            leftover.unlink()
        run.record.save(run.folder)
