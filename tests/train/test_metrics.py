"""The record of a run, also of one that was killed and resumed."""

import json
from pathlib import Path
from typing import Any

import pytest

from openxlstm.train.callback import Evaluated, Progress, Step
from openxlstm.train.evaluate import Evaluation
from openxlstm.train.metrics import MetricsFile, TensorBoard, read_metrics


def step(number: int, loss: float = 2.0) -> Step:
    return Step(
        step=number, tokens=10 * number, seconds=0.5 * number, share=number / 100, loss=loss,
        learning_rate=0.01, gradient_norm=1.5,
    )  # fmt: skip


def evaluated(number: int, val: float = 2.0) -> Evaluated:
    return Evaluated(
        step=number, tokens=10 * number, seconds=0.5 * number,
        train=Evaluation(loss=1.0, tokens=5), val=Evaluation(loss=val, tokens=5), best=val < 2,
    )  # fmt: skip


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


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TensorBoard(tmp_path, every=2) as board:
        board.on_start(Progress())
        board.on_evaluated(evaluated(0))
        for number in range(1, 6):
            board.on_step(step(number, loss=float(number)))
        board.on_evaluated(evaluated(5, val=1.5))
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert "tfevents" in file.name
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()

    def points(tag: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in events.Scalars(tag)]

    assert points("loss/batch") == [(2, 2.0), (4, 4.0)]
    assert points("loss/train") == [(0, 1.0), (5, 1.0)]
    assert points("loss/val") == [(0, 2.0), (5, 1.5)]
    assert points("tokens_per_second") == [(2, 20.0), (4, 20.0)]
