"""The tables."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from openxlstm.bench.comparison import ComparisonResult, Verdict
from openxlstm.bench.limits import Limits
from openxlstm.bench.tables import goals_line, in_digits, print_comparisons

Outcomes = Callable[..., list[ComparisonResult]]


@pytest.fixture(autouse=True)
def _no_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def printed(
    outcomes: list[ComparisonResult], limits: Limits, where: dict[str, Any]
) -> list[list[str]]:
    """Lines, in words."""
    file = io.StringIO()
    print_comparisons(outcomes, limits, where, file)
    text = file.getvalue()
    assert "\x1b" not in text
    assert "…" not in text, "nothing is cut"
    return [line.split() for line in text.splitlines()]


def line_of(who: str, lines: list[list[str]]) -> list[str]:
    words = who.split()
    return next(line[len(words) :] for line in lines if line[: len(words)] == words)


def test_every_figure(outcomes: Outcomes, limits: Limits, where: dict[str, Any]) -> None:
    lines = printed(outcomes(), limits, where)
    text = [" ".join(line) for line in lines]
    assert text[0] == (
        "Processor [R] of a long name, 64 cores, 2 threads, openxlstm 1.2.3, torch 4.5.6+cpu, "
        "xlstm 2.0.6, mlstm_kernels 2.0.6, transformers 5.23.0"
    )
    # 16·4·256 steps of (3·64·128 + 12·64²) in 9 ms; at 500 GFLOP/s they take 2.4
    ours = line_of("openxlstm native", lines)
    assert ours == ["9.00", "(8.10–10.80)", "3", "1", "134.2", "2.4", "27%"]
    too = line_of("openxlstm torch", lines)
    assert too == ["30.0", "(27.0–36.0)", "3", "3.3", "40.3", "2.4", "8%"]
    assert line_of("NX-AI parallel", lines) == ["4663", "(4197–5596)", "3", "518"]
    assert line_of("attention", lines) == ["20.0", "(18.0–24.0)", "3", "2.2", "2", "met"]
    assert line_of("nn.LSTM", lines) == ["23.0", "(20.7–27.6)", "3", "1.9", "4", "missed"]
    model = line_of("openxlstm mmmm", lines)
    assert model == ["454,560", "100", "(90–120)", "3", "40,960", "1", "100.0", "20.0", "20%"]
    peer = line_of("NX-AI mmmm", lines)
    assert peer == ["454,560", "600", "(540–720)", "3", "6,827", "6.0", "3.5", "met"]
    assert "B 16, NH 4, T 256, DQK 32, DHV 32" in text
    assert "B 16, NH 4, T 256, DQK 32, DHV 32: within 3e-06 of somebody" in text
    assert f"machine: {limits}" in text
    # attention met at T 256, twice, missed at 4096; cell met and nn.LSTM missed at four shapes;
    # of training mmmm met, ssss missed
    assert text[-1] == "goals: 9 met, 6 missed, 0 not measured"


def test_missing_peers(outcomes: Outcomes, limits: Limits, where: dict[str, Any]) -> None:
    lines = printed(outcomes(peers=False), limits, where | {"peers": {}})
    for who in ("NX-AI parallel", "NX-AI cell", "NX-AI mmmm", "Hugging Face 4 × large"):
        assert line_of(who, lines) == ["not", "installed"], who
    assert sum(line[-2:] == ["not", "installed"] for line in lines) == 4 * 2 + 4 * 2 + 3 + 1
    assert " ".join(lines[-1]) == "goals: 2 met, 5 missed, 8 not measured"
    assert " ".join(lines[0]).endswith("openxlstm 1.2.3, torch 4.5.6+cpu")


def test_what_was_wrong(outcomes: Outcomes, limits: Limits, where: dict[str, Any]) -> None:
    right = outcomes()[0]
    untimed = tuple(replace(entry, timing=None) for entry in right.entries)
    verdict = Verdict(False, "differs from [somebody]: native by 1.0e+00", 1.0)
    wrong = replace(right, entries=untimed, verdict=verdict)
    lines = printed([wrong, *outcomes()[1:]], limits, where)
    assert line_of("openxlstm native", lines) == ["not", "timed"]
    text = [" ".join(line) for line in lines]
    assert f"{wrong.shape}: differs from [somebody]: native by 1.0e+00" in text
    assert goals_line([wrong]) == "goals: 0 met, 0 missed, 1 not measured"


def test_a_terminal_without_unicode(
    outcomes: Outcomes, limits: Limits, where: dict[str, Any]
) -> None:
    """As the command line opens it: figures stay readable."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, "ascii", errors="backslashreplace", newline="")
    print_comparisons(outcomes(), limits, where, file)
    file.flush()
    text = raw.getvalue().decode("ascii").replace("|", " ")  # rich draws the lines with it then
    lines = [line.split() for line in text.splitlines()]
    assert line_of("openxlstm native", lines)[0] == "9.00"
    assert line_of("nn.LSTM", lines)[-2:] == ["4", "missed"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0123, "0.012"),
        (0.756, "0.76"),
        (1.04, "1.0"),
        (99.4, "99.4"),
        (99.6, "100"),
        (566, "566"),
    ],
)
def test_digits(number: float, text: str) -> None:
    assert in_digits(number) == text
