"""Shared by the tests of the command line: a text, options, and how to call a command."""

import contextlib
import hashlib
import io
import random
from dataclasses import dataclass
from pathlib import Path

from openxlstm.cli.main import run

DRAW = random.Random(0)
ANIMALS, THINGS = ["cat", "dog", "hen", "fox"], ["mat", "log", "pen", "box"]
TEXT = "".join(f"the {DRAW.choice(ANIMALS)} sat on the {DRAW.choice(THINGS)}.\n" for _ in range(40))

TINY = (
    "--layers", "ms", "--embedding-dim", "16", "--num-heads", "2", "--batch-size", "2",
    "--window", "8", "--eval-every", "3", "--eval-batches", "1", "--threads", "1",
)  # fmt: skip
"""A model that trains in a moment."""


@dataclass(frozen=True)
class Result:
    """The output of a command, and its exit code."""

    code: int
    out: str
    err: str


def cli(*arguments: object, encoding: str = "utf-8") -> Result:
    """Runs a command in this process, with its output in an encoding."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, newline="") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    said = []
    for stream in (out, err):
        stream.seek(0)
        said.append(stream.read())
    return Result(code, *said)


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, and what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
