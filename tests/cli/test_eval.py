"""`openxlstm eval`: the figures, in every way to ask for them."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_cases import TINY, cli, tree
from safetensors.torch import load_file, save_file

import openxlstm
from openxlstm.data.batches import windows_in_order
from openxlstm.data.corpora import split
from openxlstm.data.tokens import Tokens
from openxlstm.train.evaluate import evaluate


@pytest.fixture
def measure(trained: Path) -> Callable[..., dict[str, float]]:
    """The figures that `eval --json` prints for the run and some options."""

    def figures(*options: object) -> dict[str, float]:
        result = cli("eval", trained, "--json", *options)
        assert (result.code, result.err) == (0, "")
        assert result.out.count("\n") == 1
        return json.loads(result.out)

    return figures


@pytest.fixture
def expect(trained: Path, text_file: Path) -> Callable[..., float]:
    """The loss as the library measures it."""
    model = openxlstm.LanguageModel.from_pretrained(trained)
    tokenizer = openxlstm.load_tokenizer(trained)

    def loss(window: int, *, end: str = "last", part: int = 1, stream: bool = False) -> float:
        text = text_file.read_text()
        text = split(text, 0.1, end)[part]  # pyright: ignore[reportArgumentType]
        ids = Tokens(tokenizer.encode(text))
        batch_size = 1 if stream else 16
        return evaluate(
            model, windows_in_order(ids, window, batch_size), carry_state=stream
        ).loss  # fmt: skip

    return loss


Measure = Callable[..., dict[str, float]]
Expect = Callable[..., float]


def test_one_json_object(measure: Measure, text_file: Path) -> None:
    figures = measure()
    assert list(figures) == ["loss", "perplexity", "bits_per_character", "tokens"]
    characters = text_file.read_text()
    assert figures["tokens"] == len(characters) - int(0.9 * len(characters)) - 1
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    assert figures["bits_per_character"] == pytest.approx(figures["loss"] / math.log(2))


def test_windows_and_streams(measure: Measure, expect: Expect) -> None:
    assert measure()["loss"] == pytest.approx(expect(8)), "the run's window is 8"
    assert measure("--window", 8) == measure()
    assert measure("--window", 3)["loss"] == pytest.approx(expect(3))
    assert measure("--window", 10**6)["loss"] == pytest.approx(expect(10**6))
    assert measure("--stream")["loss"] == pytest.approx(expect(7, stream=True))
    assert len({measure(*o)["loss"] for o in ([], ["--window", 3], ["--stream"])}) == 3


def test_random_windows(measure: Measure, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openxlstm.cli.eval.RANDOM_WINDOWS", 40)
    figures = measure("--random")
    assert figures["tokens"] == 48 * 8, "whole batches of 16"
    assert figures["loss"] == pytest.approx(measure()["loss"], rel=0.1)
    assert figures != measure("--random", "--seed", 1)
    assert figures == measure("--random", "--seed", 0)
    assert "random windows of 3 " in cli("eval", trained, "--random", "--window", 3).out


def test_each_document_starts_from_an_empty_state(trained: Path, tmp_path: Path) -> None:
    """As if each had been read alone."""
    texts = ["the hen sat on the fox.\n", "the box sat on the mat.\n\nthe dog"]
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    options = ("eval", trained, "--part", "all", "--stream", "--json", "--data")
    both = json.loads(cli(*options, tmp_path / "texts").out)
    model = openxlstm.LanguageModel.from_pretrained(trained)
    tokenizer = openxlstm.load_tokenizer(trained)
    first, second = (f"{texts[0]}\n", f"{texts[1]}\n")
    ids = [torch.from_numpy(tokenizer.encode(text)).long()[None] for text in (first, second)]
    targets = torch.cat([ids[0][:, 1:], ids[1]], dim=1)[0]
    logits = torch.cat([model(ids[0])[0][0], model(ids[1][:, :-1])[0][0]])
    assert both["tokens"] == len(targets)
    expected = torch.nn.functional.cross_entropy(logits, targets).item()
    assert both["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_long_stream_is_read_in_pieces(
    measure: Measure, expect: Expect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openxlstm.cli.eval.STREAM_WINDOW", 10)
    assert measure("--stream")["loss"] == pytest.approx(expect(10**6))


def test_the_batch_changes_the_speed_only(measure: Measure) -> None:
    assert measure("--batch-size", 1)["loss"] == pytest.approx(measure()["loss"], rel=1e-5)


def test_either_end_of_the_text(measure: Measure, expect: Expect) -> None:
    assert measure("--val-split", "last") == measure()
    first = measure("--val-split", "first")
    assert first["loss"] == pytest.approx(expect(8, end="first"))
    assert first != measure()


def test_parts(measure: Measure, expect: Expect, text_file: Path) -> None:
    train, val, everything = (measure("--part", part) for part in ("train", "val", "all"))
    assert val == measure()
    assert train["loss"] == pytest.approx(expect(8, part=0))
    length = len(text_file.read_text())
    assert everything["tokens"] == length - 1
    assert train["tokens"] + val["tokens"] == length - 2
    half = measure("--val-fraction", 0.5)
    assert half["tokens"] == length / 2 - 1


def test_another_text(measure: Measure, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("the hen sat on the fox.\n" * 3)
    assert measure("--data", other, "--part", "all")["tokens"] == 3 * 24 - 1


def test_bytes_are_counted_as_characters(text_file: Path, tmp_path: Path) -> None:
    """Two tokens a character: the bits of a character are those of both."""
    text = tmp_path / "äöü.txt"
    text.write_text("äöüß" * 100, encoding="utf-8")
    folder = tmp_path / "bytes"
    options = ("--data", text, "--out", folder, "--steps", 2, "--tokenizer", "byte", "--quiet")
    assert cli("train", *options, *TINY).code == 0
    figures = json.loads(cli("eval", folder, "--json").out)
    assert figures["tokens"] == 2 * 40 - 1
    assert figures["bits_per_character"] == pytest.approx(2 * figures["loss"] / math.log(2))


def test_best_and_last_are_different_weights(trained_copy: Path) -> None:
    weights = load_file(trained_copy / "model.safetensors")
    weights["head.weight"] = torch.zeros(weights["head.weight"].shape)
    save_file(weights, trained_copy / "model.safetensors")
    best, last = (
        json.loads(cli("eval", trained_copy, "--json", "--checkpoint", which).out)
        for which in ("best", "last")
    )
    assert best["perplexity"] == pytest.approx(len(weights["head.weight"]), rel=1e-4)
    assert last["perplexity"] < best["perplexity"]


def test_the_table_has_both_ways(trained: Path, measure: Measure) -> None:
    result = cli("eval", trained)
    assert (result.code, result.err) == (0, "")
    head, windows, _, stream = result.out.splitlines()
    assert head.split() == ["loss", "perplexity", "bits", "per", "character", "tokens"]
    assert windows.split()[:4] == ["windows", "of", "8", f"{measure()['loss']:.4f}"]
    assert stream.split()[:3] == ["one", "stream", f"{measure('--stream')['loss']:.4f}"]
    everything = cli("eval", trained, "--part", "all").out.splitlines()
    names = [line.partition("  ")[0].strip() for line in everything[1:]]
    assert names == ["windows of 8", "windows of 64", "windows of 256", "one stream"]
    assert len(cli("eval", trained, "--stream").out.splitlines()) == 2
    assert len(cli("eval", trained, "--window", 3).out.splitlines()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stream", "--window", 8], "give either --stream, or --window or --random"),
        (["--stream", "--random"], "give either --stream, or --window or --random"),
        (["--random", "--window", 500], "the text to evaluate has "),
        (["--window", 0], "window must be positive, not 0"),
        (["--window", -3], "window must be positive, not -3"),
        (["--batch-size", 0], "batch_size must be positive, not 0"),
        (["--val-fraction", 1.5], "val_fraction must be in (0, 1)"),
        (["--data", "nowhere.txt"], "nowhere.txt"),
    ],
    ids=str,
)
def test_what_makes_no_sense(trained: Path, options: list[object], message: str) -> None:
    result = cli("eval", trained, *options)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert result.err.count("\n") == 1


def test_a_folder_that_is_no_run(trained_copy: Path, tmp_path: Path) -> None:
    result = cli("eval", tmp_path / "nowhere")
    assert result.code == 2
    assert "it does not exist" in result.err
    (trained_copy / "train.json").unlink()
    result = cli("eval", trained_copy)
    assert result.code == 2
    assert "has no record of its training data: give --data" in result.err


def test_a_model_without_a_record(trained: Path, trained_copy: Path, text_file: Path) -> None:
    """As one that was converted from elsewhere."""
    (trained_copy / "train.json").unlink()
    options = ("--data", text_file, "--window", 8, "--part", "all", "--json")
    assert cli("eval", trained_copy, *options).out == cli("eval", trained, *options).out


def test_evaluating_changes_nothing(trained: Path) -> None:
    before = tree(trained)
    cli("eval", trained)
    assert tree(trained) == before
