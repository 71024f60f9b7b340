"""`openxlstm bench`, at sizes that take a moment."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_cases import cli

import openxlstm.ops
from openxlstm.bench import generation_speed, limits, op_speed, session, training_speed

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, values in {
        op_speed: {"MLSTM_SHAPES": ((1, 2, 64, 16),), "SLSTM_SHAPES": ((1, 16, 2, 8),)},
        training_speed: {"B": 1, "T": 64, "LSTM_WIDTH": 16},
        generation_speed: {"TOKENS": 4, "WIDE": 128},
        limits: {"SIDE": 64, "COPIED": 2**16},
    }.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)


def bench(*options: object) -> Any:
    return cli("bench", "--quick", "--budget", "0.01", "--threads", 1, *options)


def test_everything(tmp_path: Path) -> None:
    figures, bars = tmp_path / "new" / "figures.json", tmp_path / "bars.png"
    result = bench("--json", figures, "--plot", bars, "--quiet")
    assert (result.code, result.err) == (0, "")
    for words in ("mLSTM, forward + backward", "sLSTM", "training step", "generation", "goals:"):
        assert words in result.out
    assert torch.get_num_threads() == 1
    values = json.loads(figures.read_text())
    assert [comparison["name"] for comparison in values["contests"]] == [
        "mlstm", "slstm", "training", "generation",
    ]  # fmt: skip
    assert (values["quick"], values["complete"]) == (True, True)
    assert values["environment"]["threads"] == 1
    for comparison in values["contests"]:
        assert comparison["right"] is True
        for entry in comparison["entries"]:
            assert ("median_ms" in entry) == (entry["absent"] is None)
            if entry["ours"]:
                assert entry["median_ms"] > 0
                assert entry["gflops"] > 0
                expected = entry["limit_ms"] / entry["median_ms"]
                assert entry["share_of_limit"] == pytest.approx(expected)
                assert entry["name"] in result.out
            elif entry["absent"]:
                assert entry["absent"] in result.out
    assert bars.read_bytes().startswith(PNG)
    names = {path.name for path in tmp_path.iterdir()}
    assert names - {"cache"} == {"bars.png", "new", "work"}  # matplotlib may have made the first


def test_one_part_with_progress() -> None:
    result = bench("--part", "ops")
    assert result.code == 0
    assert result.err.splitlines() == [
        "the machine's limits", "mlstm (1, 2, 64, 16)", "slstm (1, 16, 2, 8)",
    ]  # fmt: skip
    assert "mLSTM" in result.out
    assert "generation" not in result.out


def test_a_wrong_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = openxlstm.ops.slstm

    def wrong(*inputs: Any, backend: str) -> Any:
        h, state = right(*inputs, backend=backend)
        return (h if backend == "reference" else h * 2), state

    monkeypatch.setattr(openxlstm.ops, "slstm", wrong)
    result = bench("--part", "ops", "--json", tmp_path / "figures.json")
    assert result.code == 1
    assert "not timed" in result.out
    assert "differs from" in result.out
    mlstm, slstm = json.loads((tmp_path / "figures.json").read_text())["contests"]
    assert (mlstm["right"], slstm["right"]) == (True, False)
    assert "median_ms" in mlstm["entries"][0]
    assert not any("median_ms" in entry for entry in slstm["entries"])


def test_ctrl_c_keeps_what_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(op_speed, "slstm_comparison", interrupted)
    result = bench("--part", "ops", "--json", tmp_path / "figures.json")
    assert result.code == 130
    assert "mLSTM" in result.out
    assert "sLSTM" not in result.out
    values = json.loads((tmp_path / "figures.json").read_text())
    assert values["complete"] is False
    assert [comparison["name"] for comparison in values["contests"]] == ["mlstm"]
    monkeypatch.setattr(session, "measure_limits", interrupted)
    result = bench("--part", "ops", "--json", tmp_path / "other.json")
    assert (result.code, result.out) == (130, "")
    assert not (tmp_path / "other.json").exists()


def test_quiet_means_warnings_too(monkeypatch: pytest.MonkeyPatch) -> None:
    right = op_speed.mlstm_comparison

    def warning(*shape: int) -> Any:
        warnings.warn("as peers do", stacklevel=1)
        return right(*shape)

    monkeypatch.setattr(op_speed, "mlstm_comparison", warning)
    result = bench("--part", "ops", "--quiet")
    assert (result.code, result.err) == (0, "")
    with pytest.warns(UserWarning, match="as peers do"):
        bench("--part", "ops")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--budget 0", "budget must be a positive number of seconds, not 0.0"),
        ("--budget -1", "budget must be a positive"),
        ("--budget nan", "budget must be a positive"),
        ("--budget inf", "budget must be a positive"),
        ("--threads 0", "threads must be at least 1, not 0"),
        ("--part everything", "--part"),
        ("--plot bars.svg", "give it a name that ends in .png, not bars.svg"),
        ("--plot bars", "ends in .png"),
        ("--json .", "--json needs a file, and . is a folder"),
        ("--plot .", "--plot needs a file, and . is a folder"),
        ("--json file/below.json", "--json: file/below.json cannot be written"),
        ("--faster", "--faster"),
        ("everything", "everything"),
    ],
)
def test_what_makes_no_sense_is_one_line(options: str, words: str) -> None:
    """Seen before anything is measured."""
    Path("file").write_text("a file, no folder")
    result = bench(*options.split())
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("openxlstm: ")
    assert result.err.count("\n") == 1
    assert words in result.err
    assert [path.name for path in Path().iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    result = bench("--json", tmp_path / "figures.json")
    tmp_path.chmod(0o700)
    assert result.code == 2
    assert "cannot be written" in result.err


def test_a_failed_writing_leaves_the_old_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from matplotlib.figure import Figure

    (tmp_path / "bars.png").write_bytes(b"old")

    def half(self: Figure, path: Path, **_: Any) -> None:
        path.write_bytes(PNG)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", half)
    result = bench("--part", "ops", "--plot", tmp_path / "bars.png", "--quiet")
    assert result.code == 2
    assert result.err.splitlines() == ["openxlstm: No space left on device"]
    assert (tmp_path / "bars.png").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["bars.png"]
