"""Commands in processes of their own that start at once, and that end at a moment of their life.

A server imports openxlstm once and forks for each process of a job, which saves the seconds that
imports take. It has one thread, so that a fork copies a whole program.

A moment is the instant before a process changes something in its run's folder: before it opens a
file to write, renames, removes or makes one. A process counts its moments and kills itself at one
of them, so that a kill comes where it was meant to, however busy the machine is.
"""

import contextlib
import itertools
import json
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


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
        kill: tuple[int, int] | None = None,
        terminate: tuple[int, int] | None = None,
        largest_file: int | None = None,
        folder: Path | None = None,
    ) -> Ended:
        """Runs one command of openxlstm in each process of a job.

        Args:
            world_size: how many there are.
            kill: a process, by rank, and the moment, counted from 1, at which it is killed.
            terminate: a process, and the moment at which it is told to stop (SIGTERM).
            largest_file: bytes that no file may grow beyond.
            folder: where it works.
        """
        self._count += 1
        errors = [str(self._folder / f"{self._count}-{rank}.txt") for rank in range(world_size)]
        job = {
            "arguments": [str(argument) for argument in arguments], "errors": errors,
            "largest_file": largest_file, "folder": str(folder or Path.cwd()),
            "kill": kill, "terminate": terminate,
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


@contextlib.contextmanager
def started(*command: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the test that started it, however that ends."""
    with subprocess.Popen([*map(str, command)], text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def gone(pid: int) -> bool:
    """Whether a process is no longer there, or is only waiting to be told of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def children(parent: int) -> list[int]:
    """The processes that a process has started, from the first on."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            text = path.read_text()
            found += [int(text.split()[0])] * (int(text.rpartition(")")[2].split()[1]) == parent)
    return sorted(found)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks in /proc")

PATIENCE = 60
"""Seconds that a process may go on after another one of its job has failed."""

CHANGES = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "shutil.rmtree"}
"""What Python tells an audit hook of, that changes files."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


# ---- the server -------------------------------------------------------------------------------


def serve() -> None:
    from openxlstm.cli.main import run
    from openxlstm.train import curve

    curve.draw_loss = lambda *_: None  # it takes longer than all the rest
    with tempfile.TemporaryDirectory() as folder:  # imports all that a run needs
        text = Path(folder, "text.txt")
        text.write_text("the cat sat on the mat. " * 20)
        options = ("--window", "8", "--embedding-dim", "16", "--steps", "1", "--quiet")
        assert run(["train", "--data", str(text), "--out", f"{folder}/run", *options]) == 0
    assert len([*Path("/proc/self/task").glob("*")]) <= 1, "a fork copies one thread"

    for line in sys.stdin:
        print(json.dumps(_run(**json.loads(line))), flush=True)


def _run(arguments: list[str], errors: Sequence[str], **options: Any) -> list[int]:
    port, world_size = _free_port(), len(errors)
    return _wait([
        _fork(arguments, rank, world_size, port, error, **options)
        for rank, error in enumerate(errors)
    ])  # fmt: skip


def _end_at(moment: int, number: int, folder: str) -> None:
    """Sends this process a signal at a moment of its life."""
    count = itertools.count(1)

    def hook(event: str, values: tuple[Any, ...]) -> None:
        changes = event in CHANGES and (event != "open" or values[2] & WRITING)
        if changes and folder in str(values[0]) and next(count) == moment:
            os.kill(os.getpid(), number)

    sys.addaudithook(hook)


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
    largest_file: int | None, folder: str, kill: list[int] | None, terminate: list[int] | None,
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
        for ending, number in ((kill, signal.SIGKILL), (terminate, signal.SIGTERM)):
            if ending and ending[0] == rank:
                _end_at(ending[1], number, arguments[arguments.index("--out") + 1])
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
