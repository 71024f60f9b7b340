"""Commands in processes of their own that start at once, and that can be killed at any moment.

A server imports openxlstm once and forks for each process of a job, which saves the seconds that
imports take. It has one thread, so that a fork copies a whole program.
"""

import contextlib
import json
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ended:
    """How a job ended: for each process its exit code, -9 if it was killed, and what it said."""

    codes: list[int]
    errors: list[str]


class Jobs:
    """Runs jobs, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def close(self) -> None:
        self._server.communicate(timeout=60)

    def run(
        self,
        *arguments: object,
        world_size: int = 1,
        kill: tuple[int, float] | None = None,
        send: tuple[int, float] | None = None,
        largest_file: int | None = None,
        folder: Path | None = None,
    ) -> Ended:
        """Runs one command of openxlstm in each process of a job.

        Args:
            world_size: how many there are.
            kill: a process, by rank, and the seconds after which it is killed.
            send: a process, and the seconds after which it is told to stop (SIGTERM).
            largest_file: bytes that no file may grow beyond.
            folder: where it works.
        """
        self._count += 1
        errors = [str(self._folder / f"{self._count}-{rank}.txt") for rank in range(world_size)]
        job = {
            "arguments": [str(argument) for argument in arguments], "errors": errors,
            "largest_file": largest_file, "folder": str(folder or Path.cwd()),
            "signals": [
                (rank, seconds, number)
                for said, number in ((kill, signal.SIGKILL), (send, signal.SIGTERM)) if said
                for rank, seconds in [said]
            ],
        }  # fmt: skip
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        codes = json.loads(self._server.stdout.readline())
        return Ended(codes, [Path(path).read_text() for path in errors])


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Jobs]:
    jobs = Jobs(folder)
    try:
        yield jobs
    finally:
        jobs.close()


PATIENCE = 20
"""Seconds that a process may go on after another one of its job has failed."""


# ---- the server -------------------------------------------------------------------------------


def serve() -> None:
    import openxlstm.cli.train
    import openxlstm.data.batches
    import openxlstm.generation.text
    import openxlstm.train.curve
    import openxlstm.train.loop
    import openxlstm.train.metrics  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(_run(**json.loads(line))), flush=True)


def _run(
    arguments: list[str], errors: Sequence[str], signals: list[Any], **limits: Any
) -> list[int]:
    port, world_size = _free_port(), len(errors)
    children = [
        _fork(arguments, rank, world_size, port, error, **limits)
        for rank, error in enumerate(errors)
    ]
    began = time.monotonic()
    for rank, seconds, number in sorted(signals, key=lambda signal: signal[1]):
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.kill(children[rank], number)
    return _wait(children)


def _wait(children: list[int]) -> list[int]:
    """Their exit codes. As torchrun does, it ends those that outlive a failed one for long."""
    codes: dict[int, int] = {}
    failed = math.inf
    while len(codes) < len(children):
        for child in set(children) - codes.keys():
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
                if codes[child]:
                    failed = min(failed, time.monotonic())
            elif time.monotonic() > failed + PATIENCE:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[child] for child in children]


def _fork(
    arguments: list[str], rank: int, world_size: int, port: int, error: str,
    largest_file: int | None, folder: str,
) -> int:  # fmt: skip
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        from openxlstm.cli.main import run

        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        os.chdir(folder)
        said = os.open(error, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        code = run(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise AssertionError


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    serve()
