"""Runs opened, trained, stopped and resumed from Python."""

import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

import openxlstm
from openxlstm.errors import UserError
from openxlstm.lm.model import LanguageModel
from openxlstm.runs.run import open_run
from openxlstm.runs.training import prepare_resumed_run, train_run
from openxlstm.train.processes import ALONE


def test_a_run_has_all_its_parts(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = openxlstm.open_run(str(trained))
    assert run.config == run.model.config
    assert run.config.vocab_size == run.tokenizer.vocab_size
    assert run.record.preset == "small"
    assert run.record.result["best_loss"] == pytest.approx(
        min(record["val_loss"] for record in run.metrics if record["kind"] == "evaluation")
    )
    text = (trained.parent / "animals.txt").read_text()
    (tokens,) = run.corpus.whole.tokens
    assert len(tokens) == len(text)
    assert run.corpus.train.characters + run.corpus.val.characters == len(text)
    generated = openxlstm.generate(run.model, run.tokenizer, "the ", max_tokens=5, seed=0)
    assert len("".join(generated)) == 5
    assert capfd.readouterr() == ("", "")  # a notebook or a server stays quiet


def test_nothing_is_loaded_before_it_is_asked_for(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    for name in ("model.safetensors", "tokenizer.json", "train.json", "metrics.jsonl"):
        (folder / name).write_text("no such thing")
    run = open_run(folder)
    assert run.config.layers == "ms"
    assert run.metrics == []
    for part in ("model", "tokenizer", "record", "corpus"):
        with pytest.raises(UserError):
            getattr(run, part)


@pytest.mark.parametrize("content", [None, "{}", "no JSON"])
def test_a_folder_without_a_model_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=str(tmp_path)):
        open_run(tmp_path)


def test_a_model_without_a_record(trained: Path, tmp_path: Path) -> None:
    LanguageModel.from_pretrained(trained).save_pretrained(tmp_path / "model")
    run = open_run(tmp_path / "model")
    assert not run.was_trained_here
    assert run.model.config == open_run(trained).config
    with pytest.raises(UserError, match="is not a run: it has no train"):
        _ = run.corpus


def test_a_vocabulary_that_does_not_fit(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    small = open_run(folder).config.replace(vocab_size=2)
    LanguageModel(small).save_pretrained(folder)
    with pytest.raises(UserError, match="tokens and the model 2; use the tokenizer that the model"):
        _ = open_run(folder).tokenizer


def test_resumed_from_python_after_a_damaged_checkpoint(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    next(newest.glob("*.safetensors")).write_bytes(b"damaged")
    run, said = open_run(folder), list[str]()
    longer = run.record.train_config.replace(steps=6)
    prepared = prepare_resumed_run(run, train=longer, processes=ALONE)
    asked = iter([False, True, True])  # at step 3, step 4, and when it is over
    result, stopped = train_run(
        prepared, ALONE, stop=nullcontext(lambda: next(asked)), say=said.append
    )
    assert (result.step, stopped) == (4, True)
    assert [line for line in said if "is damaged" in line and newest.name in line] == said != []


def test_a_text_that_changed_since(trained: Path, tmp_path: Path) -> None:
    run = open_run(shutil.copytree(trained, tmp_path / "run"))
    source = tmp_path / "other.txt"
    source.write_text("something else, long enough to be split.\n" * 9)
    run.record.replace(data={**run.record.data, "sources": [str(source)]}).save(run.folder)
    with pytest.raises(UserError, match="has changed since the run"):
        prepare_resumed_run(open_run(run.folder), train=run.record.train_config, processes=ALONE)
