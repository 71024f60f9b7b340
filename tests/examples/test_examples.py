"""Each example runs, and its networks have learned something in a few seconds."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], Any]:
    """What a script writes as JSON if it is quick; what it prints is not empty."""
    results = tmp_path / "results.json"

    def script(name: str) -> Any:
        options = ["--quick", "--threads", "1", "--json", str(results)]
        monkeypatch.setattr(sys, "argv", [name, *options])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        printed = capsys.readouterr().out
        assert "nn.LSTM" in printed
        assert "XLSTM" in printed
        return json.loads(results.read_text())

    return script


def networks(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those results that are not of a guess without a network, nn.LSTM's and ours among them."""
    found = [result for result in results if "parameters" in result]
    assert [result["model"] for result in found][:2] == ["nn.LSTM", "XLSTM"]
    assert all(result["parameters"] > 0 and result["rate"] > 0 for result in found)
    return found


def test_forecast(run: Callable[[str], Any]) -> None:
    results = run("forecast.py")
    today, year, regression, *_ = (result["errors"] for result in results)
    for result in networks(results):
        assert result["seconds"] > 0
        for error, *others in zip(result["errors"], today, year, regression, strict=True):
            assert 0 < error < min(others) * 1.1  # 60 steps do as well as the regression


@pytest.mark.slow
def test_classify(run: Callable[[str], Any]) -> None:
    endings, *_ = results = run("classify.py")
    assert 0.4 < endings["accuracy"] < 0.8
    for result in networks(results):
        assert 0.3 < result["accuracy"] < 1  # of 14 languages, a guess is right in one of 14 cases


def test_stream(run: Callable[[str], Any]) -> None:
    said = run("stream.py")
    now, _, *_ = said["results"]
    for result in networks(said["results"]):
        assert 0 < result["error"] < now["error"]
    apart = said["differences"]
    assert apart.pop("saved in the middle and not") == 0
    assert len(apart) == 3
    for name, difference in apart.items():
        assert difference == pytest.approx(0, abs=1e-3), name


def test_names_are_padded_and_of_one_language_each() -> None:
    parts = runpy.run_path(str(ROOT / "examples" / "classify.py"))["read_names"]()
    names = []
    for letters, lengths, languages in parts:
        assert torch.equal(letters > 0, torch.arange(letters.shape[1]) < lengths[:, None])
        assert torch.equal(languages.unique(), torch.arange(14))
        names += [tuple(n for n in row if n) for row in letters.tolist()]
    assert len(set(names)) == len(names) > 5000
