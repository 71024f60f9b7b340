"""What the tests of the command line share: a text, a trained run, and how to call a command."""

import contextlib
import hashlib
import io
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

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
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str


def call(*arguments: object, encoding: str = "utf-8") -> Result:
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


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, and what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty place to work in, and no corpora of this machine.

    Runs of larger scope than one test draw their loss; others, where it takes most of the time, do
    not."""
    monkeypatch.setattr("openxlstm.train.curve.draw_loss", lambda *_: None)
    for name in ("OPENXLSTM_DATA", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture(scope="session")
def cli() -> Callable[..., Result]:
    return call


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, str]]:
    return contents


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    return TINY


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "animals.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A finished run of 12 steps; the tests that share it only read it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    result = call("train", "--data", text_file, "--out", folder, "--steps", 12, *TINY, "--quiet")
    assert result == Result(0, "", "")
    return folder


@pytest.fixture
def trained_copy(trained: Path, tmp_path: Path) -> Path:
    """The same run, to be changed and broken."""
    return shutil.copytree(trained, tmp_path / "run")
