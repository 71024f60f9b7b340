"""`openxlstm runs`: what it finds, in what order, and what it makes of broken runs."""

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_cases import cli, tree
from rich.console import Console

import openxlstm
from openxlstm.cli import runs
from openxlstm.runs.listing import find_runs, read_run
from openxlstm.runs.run_folder import lock


@pytest.fixture
def shelf(trained: Path, tmp_path: Path) -> Path:
    """A folder with the trained run and a worse one below, which had another rate."""
    shutil.copytree(trained, tmp_path / "shelf" / "good")
    worse = shutil.copytree(trained, tmp_path / "shelf" / "rates" / "worse")
    change(worse / "train.json", lambda record: record["train"].update(learning_rate=0.25))
    lines = []
    for line in (worse / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "evaluation":
            record["val_loss"] += 0.5
        lines.append(json.dumps(record) + "\n")
    (worse / "metrics.jsonl").write_text("".join(lines))
    return tmp_path / "shelf"


def change(path: Path, how: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads(path.read_text())
    how(record)
    path.write_text(json.dumps(record))


def listed(*arguments: object) -> list[dict[str, Any]]:
    result = cli("runs", *arguments, "--json")
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def test_what_is_known_of_a_run(trained: Path, text_file: Path) -> None:
    (run,) = listed(trained)
    record = json.loads((trained / "train.json").read_text())
    model = openxlstm.LanguageModel.from_pretrained(trained)
    result = record["result"]
    assert run == {
        "folder": str(trained), "state": "finished", "preset": "demo", "layers": "ms", "width": 16,
        "when": (trained / "metrics.jsonl").stat().st_mtime,
        "parameters": sum(p.numel() for p in model.parameters()), "data": str(text_file),
        "step": 12, "tokens": 192, "seconds": result["seconds"], "best_loss": result["best_loss"],
        "best_step": result["best_step"], "train_loss": run["train_loss"],
        "val_loss": run["val_loss"],
    }  # fmt: skip
    assert 0 < run["train_loss"] < 5
    assert run["val_loss"] >= run["best_loss"]


def test_the_table(shelf: Path) -> None:
    result = cli("runs", shelf)
    assert (result.code, result.err) == (0, "")
    head, first, second = result.out.splitlines()
    for name in ("run", "when", "preset", "model", "parameters", "best val", "at step", "state"):
        assert name in head
    assert first.startswith(f"{shelf}/good")
    assert second.startswith(f"{shelf}/rates/worse")
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d +demo +ms×16 +\d,\d{3} ", first)
    assert re.search(r" 12 +192 +0\.\d .* finished *$", first)


def test_a_narrow_terminal_has_fewer_columns_and_breaks_no_figure(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = listed(shelf)[0]["best_loss"]
    console = Console(width=80, file=io.StringIO())
    monkeypatch.setattr(runs, "_console", lambda: console)
    assert runs.run([str(shelf)]) == 0
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert f" {best:.4f} " in said
    assert "finished" in said
    assert "tokens" not in said


def test_runs_without_a_folder_are_those_here(shelf: Path) -> None:
    result = cli("runs")
    assert (result.code, result.out) == (2, "")
    assert "the folder runs does not exist; name one that holds runs" in result.err
    shutil.copytree(shelf, "runs")
    assert [run["folder"] for run in listed()] == ["runs/good", "runs/rates/worse"]


def test_each_run_once_and_nothing_else(shelf: Path, tmp_path: Path) -> None:
    (shelf / ".hidden").mkdir()
    shutil.copy(shelf / "good" / "train.json", shelf / ".hidden")
    (shelf / "photos").mkdir()
    (shelf / "photos" / "cat.jpg").touch()
    (tmp_path / "link").symlink_to(shelf / "good")
    folders = [shelf, shelf / "good", tmp_path / "link"]
    assert list(find_runs(folders)) == [shelf / "good", shelf / "rates" / "worse"]


@pytest.mark.parametrize(
    ("order", "first"),
    [("best", "good"), ("name", "good"), ("when", "worse"), ("minutes", "worse")],
)
def test_order(shelf: Path, order: str, first: str) -> None:
    os.utime(shelf / "rates" / "worse" / "metrics.jsonl", (1e9, 1e9))
    change(shelf / "rates" / "worse" / "train.json", lambda r: r["result"].update(seconds=1e-9))
    metrics = shelf / "rates" / "worse" / "metrics.jsonl"
    stamp = metrics.stat()
    metrics.write_text(re.sub(r'"seconds": [\d.e-]+', '"seconds": 1e-9', metrics.read_text()))
    os.utime(metrics, (stamp.st_atime, stamp.st_mtime))
    assert Path(listed(shelf, "--sort", order)[0]["folder"]).name == first


# ---- states -----------------------------------------------------------------------------------


def stop_at(folder: Path, step: int, *, wrote_its_end: bool) -> None:
    """Makes a finished run of 12 steps one that came to `step`."""
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))
    result = {"step": step, "tokens": 16 * step, "seconds": 0.1} if wrote_its_end else {}
    change(folder / "train.json", lambda record: record.update(result=result))


@pytest.mark.parametrize(
    ("step", "wrote_its_end", "state"),
    [
        (6, True, "stopped at 50%"),
        (6, False, "killed? at 50%"),
        (12, False, "killed? at 100%"),
        (0, False, "killed? at 0%"),
        (12, True, "finished"),
    ],
)
def test_how_a_run_ended(trained_copy: Path, step: int, wrote_its_end: bool, state: str) -> None:
    stop_at(trained_copy, step, wrote_its_end=wrote_its_end)
    run = read_run(trained_copy)
    assert (run.state, run.step) == (state, step)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
@pytest.mark.parametrize("wrote_its_end", [True, False])
def test_a_run_that_is_trained_now(trained_copy: Path, wrote_its_end: bool) -> None:
    """Also one that wrote its end when it was stopped, and now goes on."""
    stop_at(trained_copy, 6, wrote_its_end=wrote_its_end)
    with lock(trained_copy):
        assert read_run(trained_copy).state == "running at 50%"
    assert read_run(trained_copy).state != "running at 50%"


def test_a_run_that_was_resumed_and_killed(trained_copy: Path) -> None:
    """What it wrote when it was stopped the first time is not where it is."""
    change(trained_copy / "train.json", lambda record: record["result"].update(step=6))
    change(trained_copy / "train.json", lambda record: record["train"].update(steps=24))
    assert read_run(trained_copy).state == "killed? at 50%"


@pytest.mark.parametrize(
    ("limits", "state"),
    [
        ({"steps": None, "tokens": 384}, "stopped at 50%"),
        ({"steps": None, "tokens": None, "minutes": 1e9}, "stopped at 0%"),
        ({"steps": 24, "tokens": 200}, "stopped at 96%"),
    ],
)
def test_any_length(trained_copy: Path, limits: dict[str, Any], state: str) -> None:
    change(trained_copy / "train.json", lambda record: record["train"].update(limits))
    assert read_run(trained_copy).state == state


# ---- broken runs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"data": 3}', b'{"train": 3}']
)
def test_a_damaged_record(shelf: Path, content: bytes) -> None:
    (shelf / "good" / "train.json").write_bytes(content)
    first, last = listed(shelf)
    assert first["state"] == "finished"
    assert last["state"].startswith("damaged: train.json")
    assert last["best_loss"] is None
    result = cli("runs", shelf)
    assert (result.code, result.err) == (0, "")
    assert "damaged: train.json" in result.out


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff" * 20, b"\x02" + b"\0" * 7 + b"[]"])
def test_a_missing_or_damaged_part(trained_copy: Path, name: str, content: bytes | None) -> None:
    (trained_copy / name).unlink()
    if content is not None:
        (trained_copy / name).write_bytes(content)
    run = read_run(trained_copy)
    assert run.state == "finished"
    assert (run.layers is None) == (name == "config.json")
    assert (run.parameters is None) == (name == "model.safetensors")


@pytest.mark.parametrize("content", [None, b"", b'{"kind": "eval', b"\xff\xff", b"3\n", b"{}\n"])
def test_missing_or_damaged_metrics(
    trained_copy: Path, content: bytes | None, tmp_path: Path
) -> None:
    (trained_copy / "metrics.jsonl").unlink()
    if content is not None:
        (trained_copy / "metrics.jsonl").write_bytes(content)
    (run,) = listed(trained_copy)
    assert run["state"] == "finished"
    result = cli("runs", trained_copy, "--plot", tmp_path / "a.png")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "nothing to draw" in result.err


def test_a_run_of_another_version(trained_copy: Path) -> None:
    """Options that this one does not know, and one of before there were several texts."""

    def other(record: dict[str, Any]) -> None:
        record.update(machines=3)
        record["train"].update(speed="fast")
        record["data"]["source"] = record["data"].pop("sources")[0]

    data = read_run(trained_copy).data
    change(trained_copy / "train.json", other)
    run = read_run(trained_copy)
    assert (run.state, run.data) == ("finished", data)


def test_several_texts(trained_copy: Path) -> None:
    change(trained_copy / "train.json", lambda record: record["data"].update(sources=["a", "b"]))
    assert read_run(trained_copy).data == "a, b"


def test_a_loss_that_was_no_number_is_passed_over(trained_copy: Path) -> None:
    (best,) = {run["best_loss"] for run in listed(trained_copy)}
    with (trained_copy / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "evaluation", "step": 13, "train_loss": null, "val_loss": null}\n')
    assert listed(trained_copy)[0]["best_loss"] == best


# ---- comparing --------------------------------------------------------------------------------


@pytest.mark.parametrize("x", ["step", "tokens", "minutes"])
def test_the_picture(shelf: Path, tmp_path: Path, x: str) -> None:
    before = tree(shelf)
    result = cli("runs", shelf, "--plot", tmp_path / "new" / "a.png", "--x", x)
    assert (result.code, result.err) == (0, f"picture: {tmp_path}/new/a.png\n")
    assert "finished" in result.out, "the table is there too"
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert tree(shelf) == before
    assert cli("runs", shelf, "--plot", tmp_path / "b.svg", "-q").err == ""
    assert "<svg" in (tmp_path / "b.svg").read_text()


def test_a_picture_of_another_kind(shelf: Path) -> None:
    result = cli("runs", shelf, "--plot", "a.pdf")
    assert (result.code, result.out) == (2, "")
    assert result.err == "openxlstm: --plot a.pdf must end in .png or .svg\n"


def test_what_differs(shelf: Path) -> None:
    result = cli("runs", shelf, "--diff")
    assert (result.code, result.err) == (0, "")
    head, *options, last = result.out.splitlines()
    assert head.split() == [f"{shelf}/good", f"{shelf}/rates/worse"]
    assert [line.split() for line in options] == [["learning_rate", "0.005", "0.25"]]
    assert last.startswith("best val loss ")


def test_gates(shelf: Path) -> None:
    result = cli("runs", shelf, "--gates")
    assert (result.code, result.out) == (2, "")
    assert "no run has gate statistics" in result.err
    path = shelf / "good" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for record in lines[:-1]:  # the last was one that nobody looked at
        record["gates"] = {
            "block 0 (mLSTM)": {"forget": record["step"] / 9, "half_life": None, "floor": 0.12345}
        }
    path.write_text("".join(json.dumps(record) + "\n" for record in lines))
    result = cli("runs", shelf, "--gates")
    assert (result.code, result.err) == (0, "")
    head, line = result.out.splitlines()
    assert head.split() == [
        "run", "step", "block", "forget", "half-life", "longest", "input", "output", "log", "n",
        "floor",
    ]  # fmt: skip
    assert line.split() == [
        f"{shelf}/good", "9", "block", "0", "(mLSTM)", "1", "-", "-", "-", "-", "-", "0.123"
    ]  # fmt: skip


def test_no_run_at_all(tmp_path: Path) -> None:
    result = cli("runs", tmp_path)
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(r"openxlstm: there is no run in .*: openxlstm train .*\n", result.err)
