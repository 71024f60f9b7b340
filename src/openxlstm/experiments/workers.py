"""Runs contenders side by side, each in a separate process with one thread.

A process receives names only, sends its progress and results, and ends. No process outlives its
parent: Ctrl-C ends all of them, and so does the end of the parent.
"""

import contextlib
import importlib
import multiprocessing
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from openxlstm.experiments.catalogue import EXPERIMENTS
from openxlstm.experiments.claims import ContenderResult
from openxlstm.spawning import SPAWN, follow_parent, interrupts_held

Hear = Callable[[str, float, str], object]
"""Receives progress: the contender, the completed share of its work, and a status text."""

ALL = "all contenders"
"""Stands for all contenders, if they alternate in one process."""


@dataclass(frozen=True, kw_only=True)
class ContenderJob:
    """The task of one process."""

    experiment: str
    contender: str
    seed: int
    quick: bool


@dataclass(frozen=True)
class Crash:
    """A process that failed."""

    contender: str
    reason: str
    """The reason, in one line."""
    trace: str = ""


def jobs_of(name: str, seed: int, quick: bool) -> list[ContenderJob]:
    """The jobs of an experiment."""
    experiment = EXPERIMENTS[name]
    who = (ALL,) if experiment.together else experiment.contenders
    return [ContenderJob(experiment=name, contender=one, seed=seed, quick=quick) for one in who]


def run_jobs(
    jobs: list[ContenderJob], processes: int, hear: Hear
) -> Generator[ContenderResult | Crash]:
    """Runs up to `processes` jobs at a time, and yields results as they arrive.

    Closing the iterator, or an exception in it, ends all processes.
    """
    waiting = deque(jobs)
    running: dict[Any, tuple[ContenderJob, BaseProcess]] = {}
    with interrupts_noted() as interrupt:
        try:
            while waiting or running:
                while waiting and len(running) < processes:
                    job = waiting.popleft()
                    here, there = SPAWN.Pipe(duplex=False)
                    process = SPAWN.Process(target=work, args=(job, there), daemon=True)
                    with interrupts_held():
                        process.start()
                    running[here] = job, process
                    there.close()  # so that the end of the process is the end of the pipe
                ready: list[Any] = wait([*running, interrupt])
                if interrupt in ready:
                    raise KeyboardInterrupt
                for here in ready:
                    job, process = running[here]
                    try:
                        message = here.recv()
                    except EOFError:
                        del running[here]
                        process.join()
                        if process.exitcode:
                            yield Crash(job.contender, ending(process.exitcode))
                        continue
                    if isinstance(message, ContenderResult | Crash):
                        yield message
                    else:
                        hear(job.contender, *message)
        finally:
            end(running)


def end(running: dict[Any, tuple[ContenderJob, BaseProcess]]) -> None:
    """Ends processes: terminates them, and kills those that do not end."""
    for _, process in running.values():
        process.terminate()
    for here, (_, process) in running.items():
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()
        here.close()


def ending(exit_code: int) -> str:
    """The reason why a process ended without a message."""
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = "; there may not have been enough memory" if -exit_code == 9 else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {exit_code}"


@contextlib.contextmanager
def interrupts_noted() -> Iterator[Any]:
    """Turns Ctrl-C into a message on a pipe, because an exception could occur anywhere, such as
    between the start of a process and its registration."""
    noted, note = multiprocessing.Pipe(duplex=False)
    is_main = threading.current_thread() is threading.main_thread()  # others cannot set a handler
    before = signal.getsignal(signal.SIGINT)
    if is_main:
        signal.signal(signal.SIGINT, lambda *_: note.send_bytes(b"Ctrl-C"))
    try:
        yield noted
    finally:
        if is_main:
            signal.signal(signal.SIGINT, before)
        noted.close()
        note.close()


def work(job: ContenderJob, there: Connection) -> None:
    """The main function of a process: runs one job."""
    follow_parent()
    try:
        import torch

        torch.set_num_threads(1)
        experiment = EXPERIMENTS[job.experiment]
        module: Any = importlib.import_module(f"openxlstm.experiments.{experiment.module}")

        def tell(share: float, words: str) -> None:
            there.send((share, words))

        if experiment.together:
            for outcome in module.run_together(job.seed, job.quick, tell):
                there.send(outcome)
        else:
            there.send(module.run(job.experiment, job.contender, job.seed, job.quick, tell))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        there.send(Crash(job.contender, reason, traceback.format_exc()))
