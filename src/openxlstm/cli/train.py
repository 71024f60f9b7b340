"""`openxlstm train`: from a text to a model's folder."""

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from openxlstm._version import __version__
from openxlstm.cli.options import INTERRUPTED, parse
from openxlstm.cli.train_options import (
    Options,
    compute_config,
    initial_config,
    list_presets,
    new_configs,
    resumed_config,
)
from openxlstm.config import ComputeConfig, ModelConfig
from openxlstm.errors import UserError
from openxlstm.lm.presets import get_preset
from openxlstm.runs.corpus import Corpus, open_corpus
from openxlstm.runs.loading import load_model, load_run
from openxlstm.runs.run_folder import (
    RECORD,
    RunRecord,
    checkpoint_to_resume,
    clear_unstarted,
    free_folder,
    is_in_use,
    lock,
)
from openxlstm.train.callback import Callback, Progress

if TYPE_CHECKING:
    from openxlstm.data.batches import RandomWindows, Streams
    from openxlstm.lm.model import LanguageModel
    from openxlstm.train.evaluate import BatchLike
    from openxlstm.train.processes import Processes


def run(arguments: list[str]) -> int:
    options = parse(Options, "train", arguments)
    if options.list_presets:
        list_presets()
        return 0
    if options.out is None and (options.resume or options.auto_resume):
        raise UserError("which run to resume is not said: add --out RUN")
    if options.sample_every is not None and options.sample_every < 1:
        raise UserError(f"--sample-every must be 1 or more, not {options.sample_every}")
    get_preset(options.preset)  # a wrong name is told before seconds pass with imports

    from openxlstm.device import set_threads
    from openxlstm.train.distributed import processes

    set_threads(options.threads)
    with processes(options.device) as job:
        plan = make_plan(options, job)
        result, stopped = _train(plan, options, job)
    if job.is_first:
        _conclude(plan, options, result, stopped)
    return INTERRUPTED if stopped else 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is decided before anything is written, the same in every process."""

    folder: Path
    record: RunRecord
    corpus: Corpus
    model: ModelConfig
    compute: ComputeConfig
    resumed: bool
    """Whether the run has been here before."""


def make_plan(options: Options, job: "Processes") -> Plan:
    """What the options ask for.

    Raises:
        UserError: if it cannot be done.
    """
    folder = options.out or job.tell(free_folder(options.preset))
    resumed = options.resume or (options.auto_resume and (folder / RECORD).exists())
    if options.auto_resume and not resumed and job.is_first:
        clear_unstarted(folder)
    job.wait()
    if job.local_rank > 0:  # on each machine one process reads all of the tokens to check them
        options = replace(options, verify="sizes")
    make = _resumed_plan if resumed else _new_plan
    plan = make(folder, options, job, quiet=options.quiet or not job.is_first)
    share, rest = divmod(plan.record.data_config.batch_size, job.world_size)
    if rest or share % plan.compute.accumulate:
        raise UserError(
            f"a batch of {plan.record.data_config.batch_size} cannot be dealt out evenly to "
            f"{job.world_size} processes in {plan.compute.accumulate} parts each: make "
            f"--batch-size a multiple of {job.world_size * plan.compute.accumulate}"
        )
    return plan


def _new_plan(folder: Path, options: Options, job: "Processes", *, quiet: bool) -> Plan:
    from openxlstm.device import memory_bytes
    from openxlstm.lm.memory import check_memory

    model, data, train = new_configs(options, get_preset(options.preset))
    tokenizer = None
    if options.init_from is not None:
        source, tokenizer = load_run(options.init_from, "best", quiet=quiet)
        model = initial_config(options, source.config)
        data = data.replace(tokenizer=str(options.init_from))
    if is_in_use(folder):
        resume = "go on with it by adding --resume, or " if (folder / RECORD).exists() else ""
        raise UserError(f"the folder {folder} is in use: {resume}choose another --out")
    compute = compute_config(options)
    if job.device.type == "cpu":
        check_memory(
            model, (memory_bytes() or sys.maxsize) // job.local_size, strategy=compute.strategy,
            world_size=job.world_size, average=train.ema_decay > 0,
        )  # fmt: skip
    corpus = open_corpus(data, tokenizer=tokenizer, verify=options.verify, quiet=quiet)
    record = RunRecord(
        openxlstm=__version__, preset=options.preset, data=data.to_dict(),
        init_from=None if options.init_from is None else str(options.init_from),
        train=train.to_dict(), compute=compute.to_dict(), text_sha256=corpus.sha256,
    )  # fmt: skip
    if options.init_from is None:
        model = model.replace(vocab_size=corpus.tokenizer.vocab_size)
    return Plan(
        folder=folder, record=record, corpus=corpus, model=model, compute=compute, resumed=False
    )


def _resumed_plan(folder: Path, options: Options, job: "Processes", *, quiet: bool) -> Plan:
    from openxlstm.data.tokenizer import load_tokenizer
    from openxlstm.lm.folder import load_config

    record, compute = RunRecord.load(folder), compute_config(options)
    data, model = record.data_config, load_config(folder)
    init_from = None if record.init_from is None else Path(record.init_from)
    train = resumed_config(options, record.preset, init_from, model, data, record.train_config)
    tokenizer = load_tokenizer(folder)
    corpus = open_corpus(data, tokenizer=tokenizer, verify=options.verify, quiet=quiet)
    if corpus.sha256 != record.text_sha256:
        raise UserError(
            f"the text of {', '.join(data.sources)} has changed since the run in {folder} began; "
            "put the old text back, or start a new run"
        )
    record = record.replace(train=train.to_dict(), compute=compute.to_dict())
    return Plan(
        folder=folder, record=record, corpus=corpus, model=model, compute=compute, resumed=True
    )


def _train(plan: Plan, options: Options, job: "Processes") -> tuple[Progress, bool]:
    """How far the run came, and whether it was told to stop."""
    from openxlstm.data.batches import RandomWindows
    from openxlstm.device import seed_everything
    from openxlstm.lm.model import LanguageModel
    from openxlstm.train.loop import fit

    folder, data, config = plan.folder, plan.record.data_config, plan.record.train_config
    seed_everything(config.seed)
    own = {"rank": job.rank, "world_size": job.world_size}
    batches = _batches(plan, own)
    size = data.batch_size, data.eval_window or data.window
    train, val = plan.corpus.train.tokens, plan.corpus.val.tokens
    in_train = RandomWindows(train, *size, weights=data.weights, **own)
    in_val = RandomWindows(val, *size, weights=data.weights, part="the held-out part", **own)
    train_sample, val_sample = (
        list(islice(sample, config.eval_batches)) for sample in (in_train, in_val)
    )
    model = LanguageModel(plan.model)
    if job.world_size == 1 or plan.compute.strategy != "fsdp":  # which moves it block by block
        model.to(job.device)

    with contextlib.ExitStack() as stack:
        callbacks: list[Any] = []
        checkpoint = None
        if job.is_first:
            files = stack.enter_context(_RunFiles(plan))
            checkpoint = checkpoint_to_resume(folder) if plan.resumed else None
            description = _description(plan, model, job)
            watchers = _watchers(plan, options, description, val_sample[0])
            callbacks = [files, *map(stack.enter_context, watchers)]
        checkpoint, init_from = job.tell(checkpoint), plan.record.init_from
        if init_from is not None and checkpoint is None:
            model.load_state_dict(load_model(Path(init_from), "best", quiet=True).state_dict())
        stopped = stack.enter_context(_stop_on_signals(alone=job.world_size == 1))
        result = fit(
            model, batches, config, callbacks, compute=plan.compute, processes=job,
            train_sample=train_sample, val_sample=val_sample,
            carry_state=data.sampling == "streams", folder=folder, resume=checkpoint,
            stop=stopped.is_set,
        )  # fmt: skip
        return result, job.any(stopped.is_set())


def _watchers(plan: Plan, options: Options, description: str, batch: "BatchLike") -> list[Any]:
    """Those who tell of the run; `batch` is what the gates are looked at with."""
    from openxlstm.cli.progress import TrainingProgress
    from openxlstm.generation.text import generate
    from openxlstm.train.gate_watch import GateWatch
    from openxlstm.train.metrics import MetricsFile, TensorBoard
    from openxlstm.train.samples import Samples

    folder, config = plan.folder, plan.record.train_config
    gates = GateWatch(batch) if options.gates or options.tensorboard else None
    progress = TrainingProgress(description, quiet=options.quiet)
    watchers: list[Any] = [progress, MetricsFile(folder, gates=gates)]
    listeners = [progress.show_sample]
    if options.tensorboard:
        made_with = {**plan.record.to_dict(), "model": plan.model.to_dict()}
        board = TensorBoard(folder, gates=gates, config=made_with)
        watchers.append(board)
        listeners.append(board.add_sample)
    if options.sample_every is not None:
        plan.corpus.tokenizer.encode(options.sample_prompt)  # complains now, not in the middle

        def write(model: "LanguageModel") -> str:
            prompt, seed = options.sample_prompt, config.seed
            text = generate(model, plan.corpus.tokenizer, prompt, max_tokens=300, seed=seed)
            return prompt + "".join(text)

        every = options.sample_every * config.eval_every
        watchers.append(Samples(folder, write, every=every, listeners=listeners))
    return watchers


def _conclude(plan: Plan, options: Options, result: Progress, stopped: bool) -> None:
    """What is written and said at the end."""
    from openxlstm.cli.progress import megabytes
    from openxlstm.train.curve import draw_loss
    from openxlstm.train.meter import peak_memory

    folder, sources = plan.folder, ", ".join(plan.record.data_config.sources)
    plan.record.replace(result=asdict(result)).save(folder)
    curve = draw_loss(folder, f"{folder.name} · {plan.model.layers} · {sources}")
    if stopped:
        _say(
            f"stopped at step {result.step:,} with everything saved; to go on:\n"
            f"  openxlstm train --resume --out {folder}"
        )
    elif not options.quiet:
        _say(
            f"best val loss {result.best_loss:.4f} at step {result.best_step:,}; curve: {curve}; "
            f"peak memory {megabytes(peak_memory()) or 'unknown'}\n"
        )
        _write_sample(folder, plan.record.train_config.seed)
        prompt = shlex.quote(plan.corpus.hint)
        _say(f"\nto read on:\n  openxlstm generate {shlex.quote(str(folder))} --prompt {prompt}")


def _batches(plan: Plan, own: dict[str, int]) -> "RandomWindows | Streams":
    """What the run is trained on, without end."""
    from openxlstm.data.batches import RandomWindows, Streams

    data, tokens = plan.record.data_config, plan.corpus.train.tokens
    size = data.batch_size, data.window
    mixture: dict[str, Any] = {"first_window": data.first_window, "weights": data.weights, **own}
    if data.sampling == "streams":
        return Streams(tokens, *size, **mixture)
    return RandomWindows(tokens, *size, plan.record.train_config.seed, **mixture)


def _description(plan: Plan, model: "LanguageModel", job: "Processes") -> str:
    """The run in four lines, before it starts."""
    from openxlstm.lm.summary import summarize

    data, summary = plan.record.data_config, summarize(model)
    num_train, num_val = len(plan.corpus.train), len(plan.corpus.val)
    return "\n".join(
        [
            f"model  {plan.model.layers}, {plan.model.embedding_dim} wide, "
            f"{summary.num_parameters:,} parameters, {summary.flops_per_token:,} FLOPs a token, "
            f"{summary.state_bytes:,} bytes of state",
            f"text   {', '.join(data.sources)}: {num_train:,} tokens to train on, "
            f"{num_val:,} held out ({data.val_split}), {plan.model.vocab_size} different",
            f"batch  {data.batch_size} × {data.window} tokens, {data.sampling}{_shared(plan, job)}",
            f"run    {plan.folder}{_origin(plan)}",
        ]
    )


def _origin(plan: Plan) -> str:
    """Whose weights it starts from, if they are somebody's."""
    return "" if plan.record.init_from is None else f", from {plan.record.init_from}"


def _shared(plan: Plan, job: "Processes") -> str:
    """How a batch is dealt out, if it is."""
    parts = plan.compute.accumulate
    among = f", among {job.world_size} processes ({plan.compute.strategy})"
    return (among if job.world_size > 1 else "") + (f", in {parts} parts" if parts > 1 else "")


class _RunFiles(Callback):
    """Writes what a run's folder says of the run, as soon as it can start and not before; keeps
    other runs out of it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self._plan.resumed:
            self._lock.enter_context(lock(self._plan.folder))
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def on_start(self, progress: Progress) -> None:
        from openxlstm.lm.folder import save_config

        plan = self._plan
        if not plan.resumed:
            plan.folder.mkdir(parents=True, exist_ok=True)
            self._lock.enter_context(lock(plan.folder))
            plan.corpus.tokenizer.save(plan.folder)
            save_config(plan.model, plan.folder)
        for leftover in plan.folder.glob(".*.tmp"):  # the run was killed while it wrote this
            leftover.unlink()
        plan.record.save(plan.folder)


@contextlib.contextmanager
def _stop_on_signals(*, alone: bool) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C, or SIGTERM, sets. The second stops at once, unless there are
    other processes: torchrun passes on what the terminal has sent to each of them already."""
    stopped = threading.Event()

    def stop(number: int, _: object) -> None:
        if stopped.is_set():
            if alone:
                raise KeyboardInterrupt
            return
        stopped.set()
        # os.write, since print may be under way in the very step that the signal interrupts.
        hint = b"; once more stops without saving" if alone else b""
        os.write(2, b"\nstopping after this step" + hint + b"\n")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_sample(folder: Path, seed: int) -> None:
    """Writes some text by the best model to standard output."""
    from openxlstm.generation.text import generate

    for piece in generate(*load_run(folder, "best"), max_tokens=500, seed=seed):
        print(piece, end="", flush=True)
    print(flush=True)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
