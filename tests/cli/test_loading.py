"""What is said of a model's memory before it is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from openxlstm import device
from openxlstm.errors import UserError
from openxlstm.runs import loading
from openxlstm.runs.loading import load_model, size_in_words

Cli = Callable[..., Any]


def test_a_small_model_is_loaded_without_a_word(trained: Path, cli: Cli) -> None:
    assert cli("generate", trained, "--max-tokens", 1).err == ""


@pytest.mark.parametrize(
    ("free", "words"),
    [
        (None, ""),
        (8e9, "; 8 GB of memory are free"),
        (1000, "; 1 kB of memory are free, so parts of it will be read again and again, which is "),
    ],
)
def test_a_large_model_is_announced(
    trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, free: float | None, words: str
) -> None:
    monkeypatch.setattr(loading, "LARGE", 1000)
    monkeypatch.setattr(device, "free_memory_bytes", lambda: free)
    result = cli("generate", trained, "--max-tokens", 1)
    assert result.code == 0
    assert f"openxlstm: {trained} takes 0.00 GB for " in result.err
    assert " weights in float32, mapped from its files, and 0.0 MB for the state of a" in result.err
    assert words in result.err
    assert cli("generate", trained, "--max-tokens", 1, "--quiet").err == ""


def test_a_model_that_would_not_fit_is_not_loaded(
    trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where it is mapped, it runs, slowly."""
    monkeypatch.setattr(loading, "LARGE", 1000)
    monkeypatch.setattr(device, "free_memory_bytes", lambda: 1000)
    result = cli("generate", trained, "--max-tokens", 1, "--dtype", "bfloat16")
    assert result.code == 2
    assert "1 kB of memory are free: leave out --dtype" in result.err
    with pytest.raises(UserError, match="weights in bfloat16, and"):
        load_model(trained, "best", dtype="bfloat16")


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_weights_in_another_dtype(trained: Path, checkpoint: Any, cli: Cli) -> None:
    model = load_model(trained, checkpoint, dtype="bfloat16")
    assert {x.dtype for x in model.parameters()} == {torch.bfloat16}
    options = ("--dtype", "bfloat16", "--checkpoint", checkpoint)
    assert len(cli("generate", trained, "--max-tokens", 9, *options).out) == 9
    assert cli("eval", trained, "--window", 8, "--json", *options).code == 0


def test_sizes_in_words() -> None:
    sizes = [0, 999, 1e3, 13_740_000_000, 2e15]
    assert [size_in_words(s) for s in sizes] == ["0 B", "999 B", "1 kB", "13.74 GB", "2,000 TB"]
