"""The loss curve as a picture."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from openxlstm.train import curve
from openxlstm.train.curve import draw_loss

PNG = b"\x89PNG\r\n\x1a\n"


def evaluation(step: int, train: float = 2.0, val: float = 2.1) -> dict[str, Any]:
    return {
        "kind": "evaluation", "step": step, "tokens": step, "seconds": 1.0 + step,
        "train_loss": train, "val_loss": val, "best": False,
    }  # fmt: skip


def batches(step: int) -> dict[str, Any]:
    return {
        "kind": "step", "step": step, "tokens": step, "seconds": 1.0 + step, "loss": 2.0,
        "learning_rate": 0.1, "gradient_norm": 1.0,
    }  # fmt: skip


RUN = [
    evaluation(0, 4.2, 4.2), batches(5), batches(10), evaluation(10, 2, 2.1), batches(15),
    evaluation(15, 1.5, 2.4),
]  # fmt: skip


def record(folder: Path, records: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(r) + "\n" for r in records)
    (folder / "metrics.jsonl").write_text(text)


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG, whose end is there too."""
    content = path.read_bytes()
    assert content.startswith(PNG)
    assert content.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", content[16:24])


def test_a_picture_of_sensible_size(tmp_path: Path) -> None:
    record(tmp_path, RUN)
    path = draw_loss(tmp_path, "a run")
    assert path is not None
    assert path == tmp_path / "loss.png"
    width, height = size(path)
    assert 600 <= width <= 2000
    assert 400 <= height <= 1500
    assert 10_000 < path.stat().st_size < 500_000, "something is drawn"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]


def test_what_is_drawn_depends_on_the_run(tmp_path: Path) -> None:
    record(tmp_path, RUN)
    draw_loss(tmp_path, "a run")
    first = (tmp_path / "loss.png").read_bytes()
    record(tmp_path, [*RUN, evaluation(20, 1.2, 2.6)])
    draw_loss(tmp_path, "a run")
    assert (tmp_path / "loss.png").read_bytes() != first


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_draw_yet(tmp_path: Path, count: int) -> None:
    assert draw_loss(tmp_path, "no record at all") is None
    record(tmp_path, [*RUN[:count], batches(3)])
    assert draw_loss(tmp_path, "a run") is None
    assert not (tmp_path / "loss.png").exists()


@pytest.mark.parametrize(
    "records",
    [
        [evaluation(0), evaluation(1)],
        [evaluation(0, 2, 2), evaluation(1, 2, 2)],
        [evaluation(0, 1e4, 1e4), evaluation(1, 1e-4, 1e3)],
        [evaluation(5), evaluation(6)],
    ],
    ids=["two", "flat", "steep", "later"],
)
def test_any_run_can_be_drawn(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    record(tmp_path, records)
    path = draw_loss(tmp_path, "a run")
    assert path is not None
    size(path)


@pytest.mark.parametrize("title", ["$x^$", "50% \\frac", "a_b [c] {d}", "", "x" * 300, "中"])
def test_a_title_may_be_anything(tmp_path: Path, title: str) -> None:
    record(tmp_path, RUN)
    assert draw_loss(tmp_path, title) is not None


def test_a_failed_drawing_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    record(tmp_path, RUN)
    (tmp_path / "loss.png").write_bytes(b"old")

    def half(self: Figure, path: Path, **_: Any) -> None:
        path.write_bytes(PNG)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="No space"):
        draw_loss(tmp_path, "a run")
    assert (tmp_path / curve.CURVE).read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]


def test_no_window_is_opened(tmp_path: Path) -> None:
    """pyplot would look for a display, and keep every figure."""
    import sys

    record(tmp_path, RUN)
    pyplot = sys.modules.pop("matplotlib.pyplot", None)
    try:
        draw_loss(tmp_path, "a run")
        assert "matplotlib.pyplot" not in sys.modules
    finally:
        if pyplot is not None:
            sys.modules["matplotlib.pyplot"] = pyplot
