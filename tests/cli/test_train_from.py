"""`openxlstm train --init-from`: on from the weights of another model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_cases import cli, tree

import openxlstm
from openxlstm.train.records import read_metrics

OPTIONS = (
    "--batch-size", "2", "--window", "8", "--eval-every", "3", "--eval-batches", "1",
    "--steps", "3", "--threads", "1",
)  # fmt: skip


@pytest.fixture
def train(text_file: Path, trained: Path, tmp_path: Path) -> Callable[..., Any]:
    """Trains on from a run for three steps, into tmp_path / "new"."""

    def command(*options: object) -> Any:
        out = ("--out", tmp_path / "new", "--data", text_file)
        return cli("train", "--init-from", trained, *out, *OPTIONS, *options)

    return command


def test_it_starts_where_the_other_ended(
    train: Callable[..., Any], trained: Path, text_file: Path, tmp_path: Path
) -> None:
    result = train("--dropout", "0.25")
    assert result.code == 0
    assert f"run    {tmp_path / 'new'}, from {trained}" in result.err
    before, after = (
        openxlstm.LanguageModel.from_pretrained(folder) for folder in (trained, tmp_path / "new")
    )
    assert after.config == before.config.replace(dropout=0.25, embedding_dropout=0.25)
    files = [folder / "tokenizer.json" for folder in (trained, tmp_path / "new")]
    assert files[0].read_bytes() == files[1].read_bytes()
    first = next(iter(read_metrics(tmp_path / "new")))
    fresh = cli("train", "--data", text_file, "--out", tmp_path / "fresh", *OPTIONS, "--layers",
                "ms", "--embedding-dim", "16", "--num-heads", "2")  # fmt: skip
    assert fresh.code == 0
    assert first["step"] == 0
    assert first["val_loss"] < next(iter(read_metrics(tmp_path / "fresh")))["val_loss"] - 0.1
    assert json.loads((tmp_path / "new" / "train.json").read_text())["init_from"] == str(trained)


def test_the_source_is_left_alone(train: Callable[..., Any], trained: Path) -> None:
    before = tree(trained)
    assert train().code == 0
    assert tree(trained) == before


def test_a_run_from_another_goes_on(
    train: Callable[..., Any], trained_copy: Path, tmp_path: Path
) -> None:
    """Also one that was killed before it saved anything: not from random weights."""
    assert train().code == 0
    resume = ("train", "--out", tmp_path / "new", "--resume")
    whole = openxlstm.LanguageModel.from_pretrained(tmp_path / "new").state_dict()
    for name in ("metrics.jsonl", "model.safetensors"):
        (tmp_path / "new" / name).unlink()
    shutil.rmtree(tmp_path / "new" / "checkpoints")
    assert cli(*resume).code == 0
    again = openxlstm.LanguageModel.from_pretrained(tmp_path / "new").state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert cli(*resume, "--steps", 6).code == 0
    refused = cli(*resume, "--steps", 9, "--init-from", trained_copy)
    assert refused.code == 2
    assert "--init-from cannot change" in refused.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layers", "m"), "--layers cannot change with --init-from, whose model and tokenizer"),
        (("--tokenizer", "byte"), "--tokenizer cannot change with --init-from"),
        (("--embedding-dim", "32"), "it is 16"),
        (("--tie-weights", "True"), "it is False"),
    ],
)
def test_the_model_is_settled(
    train: Callable[..., Any], tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = train(*options)
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "new").exists()


def test_a_text_that_the_tokenizer_does_not_know(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("Ω" * 1000)
    options = ("--init-from", trained, "--data", tmp_path / "text", "--out", tmp_path / "new")
    result = cli("train", *options, *OPTIONS)
    assert result.code == 2
    assert "has never seen 'Ω'" in result.err


def test_no_model_there(text_file: Path, tmp_path: Path) -> None:
    result = cli("train", "--init-from", tmp_path / "no", "--data", text_file, *OPTIONS)
    assert result.code == 2
    assert "does not exist" in result.err
