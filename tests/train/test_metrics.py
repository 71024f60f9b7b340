"""The record of a run, also of one that was killed and resumed."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from train_cases import make_model

from openxlstm.lm.model import LanguageModel
from openxlstm.train import gate_watch
from openxlstm.train.callback import Evaluated, Progress, Step
from openxlstm.train.evaluate import Evaluation
from openxlstm.train.gate_watch import GateWatch
from openxlstm.train.metrics import MetricsFile, TensorBoard
from openxlstm.train.records import evaluations, read_metrics


def step(number: int, loss: float = 2.0, skipped: bool = False) -> Step:
    return Step(
        step=number, tokens=10 * number, seconds=0.5 * number, share=number / 100, loss=loss,
        learning_rate=0.01, gradient_norm=1.5, skipped=skipped,
    )  # fmt: skip


def evaluated(number: int, val: float = 2.0, model: LanguageModel | None = None) -> Evaluated:
    return Evaluated(
        step=number, tokens=10 * number, seconds=0.5 * number,
        train=Evaluation(loss=1.0, tokens=5), val=Evaluation(loss=val, tokens=5), best=val < 2,
        model=model,
    )  # fmt: skip


class OneBatch(NamedTuple):
    x: Tensor
    y: Tensor
    reset: Tensor | None


@pytest.fixture
def watch() -> GateWatch:
    """Of the gates over a batch with a reset in it."""
    ids = torch.arange(12).view(2, 6) % 5
    return GateWatch(OneBatch(ids, ids, ids == 3))


def write(folder: Path, steps: range, every: int = 1, begin: int = 0) -> None:
    with MetricsFile(folder, every=every) as metrics:
        metrics.on_start(Progress(step=begin, seconds=0.5 * begin))
        for number in steps:
            metrics.on_step(step(number, loss=float(number)))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_what_a_line_holds(tmp_path: Path) -> None:
    with MetricsFile(tmp_path, every=1) as metrics:
        metrics.on_start(Progress())
        metrics.on_evaluated(evaluated(0))
        metrics.on_step(step(1))
        metrics.on_evaluated(evaluated(1, val=1.25))
    assert lines(tmp_path) == [
        {"kind": "evaluation", "step": 0, "tokens": 0, "seconds": 0.0, "train_loss": 1.0,
         "val_loss": 2.0, "best": False},
        {"kind": "step", "step": 1, "tokens": 10, "seconds": 0.5, "loss": 2.0,
         "learning_rate": 0.01, "gradient_norm": 1.5},
        {"kind": "evaluation", "step": 1, "tokens": 10, "seconds": 0.5, "train_loss": 1.0,
         "val_loss": 1.25, "best": True},
    ]  # fmt: skip
    assert list(read_metrics(tmp_path)) == lines(tmp_path)


def test_a_line_is_one_batch_of_so_many(tmp_path: Path) -> None:
    """Not a mean of several, which a resumed run would not know."""
    write(tmp_path, range(1, 13), every=5)
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(5, 5.0), (10, 10.0)]


def test_every_line_is_on_disk_at_once(tmp_path: Path) -> None:
    """Whoever watches a run, or kills it, finds all that it told."""
    with MetricsFile(tmp_path, every=1) as metrics:
        metrics.on_start(Progress())
        metrics.on_step(step(1))
        assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize("at", [0, 1, 4, 6, 9])
def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path, at: int) -> None:
    write(tmp_path, range(1, 7))
    write(tmp_path, range(at + 1, 10), begin=at)
    assert [r["step"] for r in read_metrics(tmp_path)] == [
        *range(1, min(at, 6) + 1), *range(at + 1, 10)
    ]  # fmt: skip


def test_a_last_line_that_was_cut_is_dropped(tmp_path: Path) -> None:
    """At every length: a kill may come in the middle of a write, even of a character."""
    write(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for length in range(last, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2], length
        write(tmp_path, range(3, 5), begin=2)
        assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_no_record_is_an_empty_one(tmp_path: Path) -> None:
    assert list(read_metrics(tmp_path)) == []
    (tmp_path / "metrics.jsonl").touch()
    assert list(read_metrics(tmp_path)) == []


def test_a_run_that_never_started_closes(tmp_path: Path) -> None:
    with MetricsFile(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    """NaN is not JSON: other readers of the file would stop at it."""
    with MetricsFile(tmp_path, every=1) as metrics:
        metrics.on_start(Progress())
        metrics.on_step(step(1, loss=math.nan))
        metrics.on_evaluated(evaluated(1, val=math.inf))
    first, second = lines(tmp_path)
    assert first["loss"] is None
    assert second["val_loss"] is None
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert evaluations(list(read_metrics(tmp_path))) == []


def test_a_step_that_was_left_out_is_always_told(tmp_path: Path) -> None:
    with MetricsFile(tmp_path, every=5) as metrics:
        metrics.on_start(Progress())
        for number in range(1, 6):
            metrics.on_step(step(number, skipped=number == 3))
    assert [(r["step"], r.get("skipped")) for r in lines(tmp_path)] == [(3, True), (5, None)]


def test_gates(tmp_path: Path, watch: GateWatch) -> None:
    told = evaluated(0, model=make_model(layers="ms"))
    with MetricsFile(tmp_path, gates=watch) as metrics:
        assert metrics.wants_model
        metrics.on_start(Progress())
        metrics.on_evaluated(told)
    (line,) = lines(tmp_path)
    assert line["kind"] == "evaluation"
    assert line["gates"] == {name: found.to_dict() for name, found in watch.at(told).items()}
    assert 0 < line["gates"]["block 0 (mLSTM)"]["forget"] < 1
    assert line["gates"]["block 1 (sLSTM)"]["floor"] is None
    assert not MetricsFile(tmp_path).wants_model


def test_gates_are_looked_at_once_an_evaluation(
    watch: GateWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    monkeypatch.setattr(gate_watch, "gate_statistics", lambda *_: looked.append(1) or {})
    for told in (evaluated(0, model=make_model()), evaluated(3, model=make_model())):
        for _ in range(3):
            watch.at(told)
    assert len(looked) == 2


def read_board(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard")).Reload()


def test_all_that_tensorboard_shows(tmp_path: Path, watch: GateWatch) -> None:
    told = evaluated(2, model=make_model(layers="ms"))
    pytest.importorskip("tensorboard")
    with TensorBoard(tmp_path, every=2, gates=watch, config={"rate": 0.1}) as board:
        assert board.wants_model
        board.on_start(Progress())
        board.on_step(step(1))
        board.on_step(step(2))
        board.on_evaluated(told)
        board.add_sample(2, "KING:\n  No *more*.")
    events = read_board(tmp_path)
    scalars = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
    assert scalars["gradient_norm"] == 1.5
    assert scalars["skipped_steps"] == 0
    assert scalars["peak_memory_mb"] > 10
    assert scalars["perplexity"] == pytest.approx(math.exp(2.0))
    block = watch.at(told)["block 1 (sLSTM)"]
    assert scalars["gates/block 1 (sLSTM)/forget"] == pytest.approx(block.forget)
    assert "gates/block 1 (sLSTM)/floor" not in scalars

    def text(tag: str) -> bytes:
        return events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0]

    assert text("sample") == b"    KING:\n      No *more*.\n"
    assert b'      "rate": 0.1\n' in text("config")


def test_tensorboard_shows_the_speed_since_the_point_before(tmp_path: Path) -> None:
    """A stall shows, an evaluation does not count, nor does the time before a resume."""
    pytest.importorskip("tensorboard")
    clocked = {41: 100.5, 42: 101.0, 43: 101.5, 44: 110.0, 45: 130.5, 46: 131.0}
    with TensorBoard(tmp_path, every=2) as board:
        board.on_start(Progress(step=40, tokens=400, seconds=100.0))
        for number, seconds in clocked.items():
            board.on_step(replace(step(number), seconds=seconds))
            if number == 44:
                board.on_evaluated(replace(evaluated(44), seconds=130.0))
    speeds = [(e.step, e.value) for e in read_board(tmp_path).Scalars("tokens_per_second")]
    assert speeds == [(42, 20.0), (44, pytest.approx(20 / 9)), (46, 20.0)]


def test_tensorboard_counts_steps_that_were_left_out(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with TensorBoard(tmp_path, every=3) as board:
        board.on_start(Progress())
        for number in range(1, 10):
            board.on_step(step(number, skipped=number in (1, 3, 8)))
    assert [e.value for e in read_board(tmp_path).Scalars("skipped_steps")] == [2, 0, 1]


def test_a_resumed_run_doubles_no_point_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for begin, end in ((0, 6), (4, 8)):  # the checkpoint was at 4, the kill at 6
        with TensorBoard(tmp_path, every=1) as board:
            board.on_start(Progress(step=begin, seconds=0.5 * begin))
            for number in range(begin + 1, end + 1):
                board.on_step(step(number, loss=float(begin)))
    points = [(e.step, e.value) for e in read_board(tmp_path).Scalars("loss/batch")]
    assert points == [(n, 0.0) for n in (1, 2, 3, 4)] + [(n, 4.0) for n in (5, 6, 7, 8)]


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with TensorBoard(tmp_path, every=2) as board:
        board.on_start(Progress())
        board.on_evaluated(evaluated(0))
        for number in range(1, 6):
            board.on_step(step(number, loss=float(number)))
        board.on_evaluated(evaluated(5, val=1.5))
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert "tfevents" in file.name
    events = read_board(tmp_path)

    def points(tag: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in events.Scalars(tag)]

    assert points("loss/batch") == [(2, 2.0), (4, 4.0)]
    assert points("loss/train") == [(0, 1.0), (5, 1.0)]
    assert points("loss/val") == [(0, 2.0), (5, 1.5)]
    assert points("tokens_per_second") == [(2, 20.0), (4, 20.0)]
