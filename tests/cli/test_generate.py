"""`openxlstm generate`: the text and nothing but the text."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cli_cases import cli, tree
from safetensors.torch import load_file, save_file

import openxlstm


def test_a_seed_writes_the_same_text(trained: Path) -> None:
    texts = [cli("generate", trained, "--seed", seed, "--max-tokens", 60).out for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert len(texts[0]) == 60


def test_standard_output_is_the_text_alone(trained: Path) -> None:
    """The prompt is for whoever looks; a file or a pipe gets what is new."""
    result = cli("generate", trained, "--prompt", "\nthe cat", "--max-tokens", 30, "--seed", 3)
    assert result.code == 0
    assert result.err == "the cat"
    assert len(result.out) == 30
    quiet = cli(
        "generate", trained, "--prompt", "\nthe cat", "--max-tokens", 30, "--seed", 3, "--quiet"
    )
    assert (quiet.out, quiet.err) == (result.out, "")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 2.0, "top_k": 3},
        {"top_p": 0.5},
        {"stop": "t"},
    ],
    ids=str,
)
def test_it_writes_what_the_library_writes(trained: Path, options: dict[str, Any]) -> None:
    cli("generate", trained, "--max-tokens", 0)  # the command imports the room of that name
    model = openxlstm.LanguageModel.from_pretrained(trained)
    tokenizer = openxlstm.load_tokenizer(trained)
    pieces = openxlstm.generate(model, tokenizer, "the ", max_tokens=40, seed=5, **options)
    words = [w for name, value in options.items() for w in (f"--{name.replace('_', '-')}", value)]
    result = cli("generate", trained, "--prompt", "the ", "--max-tokens", 40, "--seed", 5, *words)
    assert result.out == "".join(pieces)


def test_the_default_prompt_is_a_new_line(trained: Path) -> None:
    options = ("--seed", 1, "--max-tokens", 20)
    result = cli("generate", trained, *options)
    assert (result.code, result.err) == (0, "")
    assert result.out == cli("generate", trained, "--prompt", "\n", *options).out
    assert result.out == cli("generate", trained, "--prompt", "", *options).out


def test_no_tokens_is_no_text(trained: Path) -> None:
    result = cli("generate", trained, "--max-tokens", 0, "--prompt", "the")
    assert (result.code, result.out, result.err) == (0, "", "the")


def test_best_and_last_are_different_weights(trained_copy: Path) -> None:
    """Whatever the model's file holds, `last` is what the checkpoint holds."""
    options = ("--temperature", 0, "--max-tokens", 30)
    last = cli("generate", trained_copy, "--checkpoint", "last", *options).out
    weights = load_file(trained_copy / "model.safetensors")
    weights["head.weight"] = torch.randn(weights["head.weight"].shape)
    save_file(weights, trained_copy / "model.safetensors")
    best = cli("generate", trained_copy, *options).out
    assert best == cli("generate", trained_copy, "--checkpoint", "best", *options).out
    assert best != last
    assert cli("generate", trained_copy, "--checkpoint", "last", *options).out == last


def test_a_folder_of_the_library_does(trained: Path, tmp_path: Path) -> None:
    """What generates is a model and a tokenizer; the record of a run is not needed."""
    folder = tmp_path / "plain"
    openxlstm.LanguageModel.from_pretrained(trained).save_pretrained(folder)
    openxlstm.load_tokenizer(trained).save(folder)
    options = ("--seed", 1, "--max-tokens", 20)
    assert cli("generate", folder, *options) == cli("generate", trained, *options)


def test_generating_changes_nothing(trained: Path) -> None:
    before = tree(trained)
    cli("generate", trained, "--max-tokens", 5)
    assert tree(trained) == before
