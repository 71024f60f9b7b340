"""A place to work in, a text, and a trained run."""

import shutil
from pathlib import Path

import pytest
from cli_cases import TEXT, TINY, Result, cli


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
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "animals.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A finished run of 12 steps; the tests that share it only read it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    result = cli("train", "--data", text_file, "--out", folder, "--steps", 12, *TINY, "--quiet")
    assert result == Result(0, "", "")
    return folder


@pytest.fixture
def trained_copy(trained: Path, tmp_path: Path) -> Path:
    """The same run, to be changed and broken."""
    return shutil.copytree(trained, tmp_path / "run")
