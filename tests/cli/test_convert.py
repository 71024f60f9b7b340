"""`openxlstm convert`: a model out of a run, as a folder of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import openxlstm
from openxlstm.cli.loading import load_run

Cli = Callable[..., Any]
Tree = Callable[[Path], dict[str, str]]


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_folder_of_its_own(
    checkpoint: Any, trained: Path, cli: Cli, tree: Tree, tmp_path: Path
) -> None:
    before, out = tree(trained), tmp_path / "model"
    result = cli("convert", trained, "--checkpoint", checkpoint, "--out", out)
    assert (result.code, result.out) == (0, "")
    assert set(tree(out)) == {"config.json", "model.safetensors", "tokenizer.json"}
    expected, _ = load_run(trained, checkpoint)
    model = openxlstm.LanguageModel.from_pretrained(out)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in result.err
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name])
    assert cli("generate", out, "--max-tokens", 3, "--seed", 0).code == 0
    assert tree(trained) == before


def test_quiet(trained: Path, cli: Cli, tmp_path: Path) -> None:
    result = cli("convert", trained, "--out", tmp_path / "model", "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")


def test_a_folder_in_use(trained: Path, cli: Cli, tree: Tree) -> None:
    before = tree(trained)
    result = cli("convert", trained, "--out", trained)
    assert (result.code, result.out) == (2, "")
    assert "is in use: choose another --out" in result.err
    assert tree(trained) == before
    assert cli("convert", trained.parent / "nowhere", "--out", trained.parent / "x").code == 2
