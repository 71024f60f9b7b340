"""Each example runs, and its networks have learned something in a few seconds."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(script: str, tmp_path: Path) -> Any:
    """What a script writes as JSON if it is quick; what it prints is not empty."""
    results = tmp_path / "results.json"
    command = [
        sys.executable, "-W", "error", str(ROOT / "examples" / script),
        "--quick", "--threads", "1", "--json", str(results),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "nn.LSTM" in ended.stdout
    assert "XLSTM" in ended.stdout
    return json.loads(results.read_text())


def networks(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those results that are not of a guess without a network, nn.LSTM's and ours among them."""
    found = [result for result in results if "parameters" in result]
    assert [result["model"] for result in found][:2] == ["nn.LSTM", "XLSTM"]
    assert all(result["parameters"] > 0 and result["rate"] > 0 for result in found)
    return found


def test_forecast(tmp_path: Path) -> None:
    results = run("forecast.py", tmp_path)
    today, year, regression, *_ = (result["errors"] for result in results)
    for result in networks(results):
        assert result["seconds"] > 0
        for error, *others in zip(result["errors"], today, year, regression, strict=True):
            assert 0 < error < min(others) * 1.1  # 60 steps do as well as the regression


def test_classify(tmp_path: Path) -> None:
    endings, *_ = results = run("classify.py", tmp_path)
    assert 0.4 < endings["accuracy"] < 0.8
    for result in networks(results):
        assert 0.3 < result["accuracy"] < 1  # of 14 languages, a guess is right in one of 14 cases


def test_stream(tmp_path: Path) -> None:
    said = run("stream.py", tmp_path)
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
