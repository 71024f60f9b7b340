"""Loading models: what is said of their memory first, dtypes, and checkpoints."""

from pathlib import Path

import pytest
import torch

from openxlstm import device
from openxlstm.errors import UserError
from openxlstm.runs import loading
from openxlstm.runs.loading import Checkpoint, load_model, size_in_words


@pytest.mark.parametrize(
    ("free", "words"),
    [
        (None, ""),
        (8e9, "; 8 GB of memory are free"),
        (1000, "; 1 kB of memory are free, so parts of it will be read again and again, which is "),
    ],
)
def test_a_large_model_is_announced(
    trained: Path, monkeypatch: pytest.MonkeyPatch, free: float | None, words: str
) -> None:
    said = list[str]()
    load_model(trained, say=said.append)
    assert said == []  # a small one is not
    monkeypatch.setattr(loading, "LARGE", 1000)
    monkeypatch.setattr(device, "free_memory_bytes", lambda: free)
    load_model(trained, say=said.append)
    assert said[0].startswith(f"{trained} takes 0.00 GB for ")
    assert " weights in float32, mapped from its files, and 0.0 MB for the state of a" in said[0]
    assert words in said[0]


def test_a_model_that_would_not_fit_is_not_loaded(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But a mapped one runs, slowly."""
    monkeypatch.setattr(loading, "LARGE", 1000)
    monkeypatch.setattr(device, "free_memory_bytes", lambda: 1000)
    with pytest.raises(UserError, match=r"weights in bfloat16, and .* are free: omit --dtype"):
        load_model(trained, dtype="bfloat16")
    load_model(trained)


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_weights_in_another_dtype(trained: Path, checkpoint: Checkpoint) -> None:
    model = load_model(trained, checkpoint, dtype="bfloat16")
    assert {x.dtype for x in model.parameters()} == {torch.bfloat16}


def test_sizes_in_words() -> None:
    sizes = [0, 999, 1e3, 13_740_000_000, 2e15]
    assert [size_in_words(s) for s in sizes] == ["0 B", "999 B", "1 kB", "13.74 GB", "2,000 TB"]
