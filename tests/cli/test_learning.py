"""The main job, end to end: a model that is trained for a while has learned something."""

import json
from pathlib import Path

import pytest

from openxlstm.cli.main import run


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "limit"), [("demo", 1.9), ("fast", 1.75), ("best", 1.75)])
def test_presets_learn_shakespeare(
    preset: str, limit: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A part of their steps, counted in steps so that no machine is too slow for it."""
    folder = tmp_path / preset
    options = [
        "--preset",
        preset,
        "--data",
        "shakespeare",
        "--steps",
        "600",
        "--out",
        str(folder),
        "--threads",
        "2",
    ]
    assert run(["train", *options, "--quiet"]) == 0
    assert run(["eval", str(folder), "--window", "64", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["loss"] < limit  # 4.2 is a guess, 3.3 knows how often each character occurs
    assert run(["generate", str(folder), "--max-tokens", "1500", "--seed", "0", "-q"]) == 0
    text = capfd.readouterr().out
    assert text.count(":\n") >= 2, "people speak in turn, as in a play"
