"""Several runs in one picture."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, get_args

import pytest

from openxlstm.train.compare import LossCurve, X, draw_comparison

PNG = b"\x89PNG\r\n\x1a\n"


def evaluation(step: int, train: float, val: float) -> dict[str, Any]:
    return {
        "kind": "evaluation", "step": step, "tokens": 100 * step, "seconds": 30.0 * step,
        "train_loss": train, "val_loss": val, "best": False,
    }  # fmt: skip


def curve(name: str = "a", scale: float = 1.0, count: int = 4) -> LossCurve:
    losses = [evaluation(step, scale * 4 / (1 + step), scale * 5 / (1 + step)) for step in range(4)]
    return LossCurve(name=name, evaluations=losses[:count])


def drawn_text(path: Path) -> str:
    return "".join(ET.fromstring(path.read_text()).itertext())


@pytest.mark.parametrize("x", get_args(X))
def test_against_each_clock(x: X, tmp_path: Path) -> None:
    pictures = []
    for name in (x, "step"):
        draw_comparison(tmp_path / f"{name}.png", [curve(), curve("b", 1.2)], x)
        pictures.append((tmp_path / f"{name}.png").read_bytes())
        assert pictures[-1].startswith(PNG)
        assert len(pictures[-1]) > 10_000
    draw_comparison(tmp_path / "a.svg", [curve()], x)
    assert "<svg" in (tmp_path / "a.svg").read_text()
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".svg"}, "nothing is left"


def test_a_picture_says_who_is_who(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")
    draw_comparison(tmp_path / "a.svg", [curve("_first"), curve("$x^$", 2.0)], "minutes")
    said = drawn_text(tmp_path / "a.svg")
    for words in ("1.250  _first", "2.500  $x^$", "minutes", "best val loss", "nats per token"):
        assert words in said


@pytest.mark.parametrize(
    "curves",
    [
        [curve(count=1)],
        [curve(count=1), curve("b", 0.1)],
        [curve(str(number), 1 + number / 30) for number in range(25)],
        [curve(), LossCurve(name="b", evaluations=[evaluation(0, 4, 4), evaluation(1, 9e9, 9e9)])],
        [LossCurve(name="flat", evaluations=[evaluation(5, 2, 2), evaluation(6, 2, 2)])],
        [curve("中" * 80)],
    ],
    ids=["one point", "two", "many", "diverged", "flat", "name"],
)  # fmt: skip
def test_any_runs_can_be_drawn(curves: list[LossCurve], tmp_path: Path) -> None:
    draw_comparison(tmp_path / "a.png", curves)
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
