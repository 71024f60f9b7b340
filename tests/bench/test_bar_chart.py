"""The picture: that it is one, that it says what was measured, and that it can be read."""

import itertools
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openxlstm.bench.bar_chart import bar_figure, draw_bar_chart, round_times
from openxlstm.bench.comparison import ComparisonResult
from openxlstm.bench.limits import Limits

Outcomes = Callable[..., list[ComparisonResult]]

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_picture_of_sensible_size(
    outcomes: Outcomes, limits: Limits, where: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "new" / "bars.png"
    assert draw_bar_chart(path, outcomes(), limits, where)
    content = path.read_bytes()
    assert content.startswith(PNG)
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    assert 1200 <= width <= 2400
    assert 800 <= height <= 2400
    assert len(content) > 30_000, "something is drawn"
    assert [p.name for p in path.parent.iterdir()] == ["bars.png"]


def test_nothing_to_draw(
    outcomes: Outcomes, limits: Limits, where: dict[str, Any], tmp_path: Path
) -> None:
    first = outcomes()[0]
    untimed = tuple(replace(entry, timing=None) for entry in first.entries)
    assert not draw_bar_chart(
        tmp_path / "bars.png", [replace(first, entries=untimed)], limits, where
    )
    assert list(tmp_path.iterdir()) == []


SELECTIONS: dict[str, tuple[slice, bool]] = {
    "all": (slice(None), True),
    "no peers": (slice(None), False),
    "ops": (slice(8), True),
    "one op": (slice(1), True),
    "mlstm and training": (slice(3, 9, 5), True),
    "three panels": (slice(9), True),
    "training": (slice(8, 9), True),
    "generation": (slice(9, 10), True),
}


def figure_of(selection: str, outcomes: Outcomes, limits: Limits, where: dict[str, Any]) -> Any:
    which, peers = SELECTIONS[selection]
    figure = bar_figure(outcomes(peers)[which], limits, where)
    figure.canvas.draw()
    return figure


def texts(figure: Any) -> list[Any]:
    """Everything written that can be seen."""
    from matplotlib.text import Text

    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]


@pytest.mark.parametrize("selection", SELECTIONS)
def test_bars_stand_apart_with_their_labels_beside_them(
    selection: str, outcomes: Outcomes, limits: Limits, where: dict[str, Any]
) -> None:
    figure = figure_of(selection, outcomes, limits, where)
    for axes in figure.axes:
        rows = sorted(bar.get_y() for bar in axes.patches)
        assert all(low + 1 <= high + 1e-9 for low, high in itertools.pairwise(rows))
        labels = [text.get_window_extent() for text in axes.texts]
        assert max(label.x1 for label in labels) <= axes.bbox.x1
        assert min(label.x0 for label in labels) >= axes.bbox.x0


@pytest.mark.parametrize("selection", SELECTIONS)
def test_nothing_covers_anything(
    selection: str, outcomes: Outcomes, limits: Limits, where: dict[str, Any]
) -> None:
    figure = figure_of(selection, outcomes, limits, where)
    boxes = [(t.get_text(), t.get_window_extent().padded(-0.5)) for t in texts(figure)]
    for (one, box), (other, other_box) in itertools.combinations(boxes, 2):
        assert not box.overlaps(other_box), f"{one!r} and {other!r}"
    for text, box in boxes:
        for x, y in box.corners():
            assert figure.bbox.contains(x, y), f"{text!r} is cut off"


def test_bars_show_the_times(outcomes: Outcomes, limits: Limits, where: dict[str, Any]) -> None:
    figure = figure_of("one op", outcomes, limits, where)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [entry.name for entry in outcomes()[0].entries]
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert ends == pytest.approx([9.0, 30.0, 4663.0, 54.0, 20.0])
    middles = [bar.get_y() + bar.get_height() / 2 for bar in axes.patches]
    assert middles == pytest.approx(axes.get_yticks())
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "from the top"
    colors = [bar.get_facecolor() for bar in axes.patches]
    assert len({colors[0], colors[1], colors[2]}) == 3
    assert colors[2] == colors[3] == colors[4]
    written = [t.get_text() for t in texts(figure)]
    assert "9.0 ms · 27% of limit" in written
    assert "4663 ms · 518×" in written
    assert "20.0 ms · 2.2× (goal 2× ✓)" in written
    assert "B 16, NH 4, T 256, DQK 64, DHV 64" in written
    marks = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
    assert marks == pytest.approx([2.41592] * 2, rel=1e-4), "the limit, on ours"


def test_generation_is_a_token(outcomes: Outcomes, limits: Limits, where: dict[str, Any]) -> None:
    (axes,) = figure_of("generation", outcomes, limits, where).axes
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert ends == pytest.approx([330 / 128, 900 / 128, 340 / 128])
    assert axes.get_title(loc="left").endswith("per token")


def test_without_peers_there_are_fewer_bars(
    outcomes: Outcomes, limits: Limits, where: dict[str, Any]
) -> None:
    count = [
        sum(len(axes.patches) for axes in figure_of(which, outcomes, limits, where).axes)
        for which in ("all", "no peers")
    ]
    assert count == [4 * 5 + 4 * 5 + 7 + 3, 4 * 3 + 4 * 3 + 4 + 2]


def test_round_times() -> None:
    assert round_times(0.5, 2000) == [1, 10, 100, 1000]
    assert round_times(18, 700) == pytest.approx([20, 50, 100, 200, 500])


def test_no_window_is_opened(
    outcomes: Outcomes, limits: Limits, where: dict[str, Any], tmp_path: Path
) -> None:
    pyplot = sys.modules.pop("matplotlib.pyplot", None)
    try:
        draw_bar_chart(tmp_path / "bars.png", outcomes(), limits, where)
        assert "matplotlib.pyplot" not in sys.modules
    finally:
        if pyplot is not None:
            sys.modules["matplotlib.pyplot"] = pyplot
