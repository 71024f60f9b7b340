"""The main job, end to end: a model that is trained for a while has learned something."""

import json
from pathlib import Path

import pytest

from openxlstm.cli.main import run


@pytest.mark.slow
def test_the_demo_learns_shakespeare(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A tenth of the demo's steps, counted in steps so that no machine is too slow for it."""
    folder = tmp_path / "demo"
    assert run(["train", "--preset", "demo", "--steps", "400", "--out", str(folder), "-q"]) == 0
    assert run(["eval", str(folder), "--window", "64", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["loss"] < 2.0  # 4.2 is a guess, 3.3 knows how often each character occurs
    assert run(["generate", str(folder), "--max-tokens", "1500", "--seed", "0", "-q"]) == 0
    text = capfd.readouterr().out
    assert text.count(":\n") >= 2, "people speak in turn, as in a play"
