"""`openxlstm train`: trains a language model on text, in a folder of its own."""

import contextlib
import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openxlstm.cli.options import INTERRUPTED
from openxlstm.cli.progress import TrainingProgress, byte_bars, megabytes, say
from openxlstm.cli.train_options import (
    Options,
    compute_config,
    initial_config,
    list_presets,
    new_configs,
    parse_options,
    resumed_config,
)
from openxlstm.errors import UserError
from openxlstm.lm.presets import get_preset
from openxlstm.runs.run import open_run
from openxlstm.runs.run_folder import RECORD, RunRecord, clear_unstarted, free_folder
from openxlstm.runs.training import (
    PreparedRun,
    conclude_run,
    prepare_new_run,
    prepare_resumed_run,
    train_run,
)
from openxlstm.train.callback import Progress

if TYPE_CHECKING:
    from openxlstm.lm.model import LanguageModel
    from openxlstm.train.gate_watch import GateWatch
    from openxlstm.train.processes import Processes


def run(arguments: list[str]) -> int:
    options, given = parse_options(arguments)
    if options.list_presets:
        list_presets()
        return 0
    if options.out is None and (options.resume or options.auto_resume):
        raise UserError("--resume needs the run's folder: add --out RUN")
    if options.sample_every is not None and options.sample_every < 1:
        raise UserError(f"--sample-every must be 1 or more, not {options.sample_every}")
    get_preset(options.preset)  # a wrong name raises before the imports, which take seconds

    from openxlstm.device import set_threads
    from openxlstm.train.distributed import processes

    set_threads(options.threads)
    with processes(options.device) as job:
        prepared = _prepare(options, given, job)
        result, stopped = train_run(
            prepared,
            job,
            watch_gates=options.gates or options.tensorboard,
            watchers=lambda gates: _watchers(prepared, options, job, gates),
            stop=_stop_on_signals(alone=job.world_size == 1),
            say=say,
        )
    if job.is_first:
        _conclude(prepared, options, result, stopped)
    return INTERRUPTED if stopped else 0


def _prepare(options: Options, given: dict[str, Any], job: "Processes") -> PreparedRun:
    folder = options.out or job.tell(free_folder(options.preset))
    resumed = options.resume or (options.auto_resume and (folder / RECORD).exists())
    if options.auto_resume and not resumed and job.is_first:
        clear_unstarted(folder)
    job.wait()
    shared: dict[str, Any] = {"processes": job, "compute": compute_config(given)}
    # One process per machine reads all of the tokens to check them.
    shared["verify"] = "sizes" if job.local_rank > 0 else options.verify
    with byte_bars(quiet=options.quiet or not job.is_first) as shared["progress"]:
        if resumed:
            record, past = RunRecord.load(folder), open_run(folder)
            init_from = None if record.init_from is None else Path(record.init_from)
            configs = past.config, record.data_config, record.train_config
            train = resumed_config(
                options, given, preset=record.preset, init_from=init_from, configs=configs
            )
            return prepare_resumed_run(past, train=train, **shared)
        model, data, train = new_configs(given, get_preset(options.preset))
        source = None if options.init_from is None else open_run(options.init_from)
        if source is not None:
            model = initial_config(given, source.config)
        return prepare_new_run(
            folder, preset=options.preset, model=model, data=data, train=train, init_from=source,
            **shared,
        )  # fmt: skip


def _watchers(
    prepared: PreparedRun, options: Options, job: "Processes", gates: "GateWatch | None"
) -> list[Any]:
    """The callbacks that report the run."""
    from openxlstm.generation.text import generate
    from openxlstm.train.metrics import TensorBoard
    from openxlstm.train.samples import Samples

    folder, config = prepared.folder, prepared.record.train_config
    progress = TrainingProgress(_description(prepared, job), quiet=options.quiet)
    watchers: list[Any] = [progress]
    listeners = [progress.show_sample]
    if options.tensorboard:
        made_with = {**prepared.record.to_dict(), "model": prepared.model.to_dict()}
        board = TensorBoard(folder, gates=gates, config=made_with)
        watchers.append(board)
        listeners.append(board.add_sample)
    if options.sample_every is not None:
        tokenizer, prompt = prepared.corpus.tokenizer, options.sample_prompt
        tokenizer.encode(prompt)  # raises now rather than in the middle of the run

        def write(model: "LanguageModel") -> str:
            text = generate(model, tokenizer, prompt, max_tokens=300, seed=config.seed)
            return prompt + "".join(text)

        every = options.sample_every * config.eval_every
        watchers.append(Samples(folder, write, every=every, listeners=listeners))
    return watchers


def _conclude(prepared: PreparedRun, options: Options, result: Progress, stopped: bool) -> None:
    """Writes the result, and prints it with a sample and the next command to type."""
    from openxlstm.generation.text import generate
    from openxlstm.train.meter import peak_memory

    folder, curve = prepared.folder, conclude_run(prepared, result)
    if stopped:
        say(
            f"stopped at step {result.step:,}, and everything is saved; to resume:\n"
            f"  openxlstm train --resume --out {folder}"
        )
    elif not options.quiet:
        say(
            f"best val loss {result.best_loss:.4f} at step {result.best_step:,}; curve: {curve}; "
            f"peak memory {megabytes(peak_memory()) or 'unknown'}\n"
        )
        best = open_run(folder)
        seed = prepared.record.train_config.seed
        for piece in generate(best.model, best.tokenizer, max_tokens=500, seed=seed):
            print(piece, end="", flush=True)
        print(flush=True)
        place, prompt = shlex.quote(str(folder)), shlex.quote(prepared.corpus.hint)
        say(f"\nto generate more:\n  openxlstm generate {place} --prompt {prompt}")


def _description(prepared: PreparedRun, job: "Processes") -> str:
    """The run in four lines, before it starts."""
    from openxlstm.lm.memory import summarize_unbuilt

    model, data, corpus = prepared.model, prepared.record.data_config, prepared.corpus
    summary, parts = summarize_unbuilt(model), prepared.compute.accumulate
    origin = prepared.record.init_from
    batch = f"{data.batch_size} × {data.window} tokens, {data.sampling}"
    if job.world_size > 1:
        batch += f", on {job.world_size} processes ({prepared.compute.strategy})"
    if parts > 1:
        batch += f", in {parts} parts"
    return "\n".join(
        [
            f"model  {model.layers}, {model.embedding_dim} wide, "
            f"{summary.num_parameters:,} parameters, {summary.flops_per_token:,} FLOPs per token, "
            f"{summary.state_bytes:,} bytes of state",
            f"text   {', '.join(data.sources)}: {len(corpus.train):,} training tokens, "
            f"{len(corpus.val):,} validation tokens ({data.val_split}), "
            f"vocabulary of {model.vocab_size}",
            f"batch  {batch}",
            f"run    {prepared.folder}" + ("" if origin is None else f", from {origin}"),
        ]
    )


@contextlib.contextmanager
def _stop_on_signals(*, alone: bool) -> Iterator[Callable[[], bool]]:
    """Gives a function that returns True after the first Ctrl-C or SIGTERM.

    The second signal ends the process at once, unless there are other processes: torchrun passes on
    what the terminal has already sent to each of them.
    """
    stopped = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        if stopped.is_set():
            if alone:
                raise KeyboardInterrupt
            return
        stopped.set()
        # os.write, since the signal may interrupt a print.
        hint = b"; once more stops without saving" if alone else b""
        os.write(2, b"\nstopping after this step" + hint + b"\n")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
