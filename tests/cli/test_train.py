"""`openxlstm train`: what a run leaves, what it says, and how it stops and goes on."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_cases import TINY, cli, tree
from jobs import started
from safetensors.torch import load_file
from torch import Tensor

import openxlstm
from openxlstm import __version__
from openxlstm.cli.train_options import short
from openxlstm.lm.presets import PRESETS
from openxlstm.runs.run_folder import free_folder
from openxlstm.train.checkpoint import newest
from openxlstm.train.metrics import MetricsFile
from openxlstm.train.records import read_metrics

Train = Callable[..., Any]

STEPS = 6
SHARD = "shard-00001-model-00001-of-00001.safetensors"
FILES = {
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "train.json",
    "metrics.jsonl", "loss.png",
    *(
        f"checkpoints/step-{step:08}/{name}"
        for step in (0, 3, 6) for name in ("checkpoint.json", SHARD)
    ),
}  # fmt: skip


def last_checkpoint(folder: Path) -> dict[str, Tensor]:
    """The tensors of a run's newest checkpoint."""
    path = newest(folder)
    assert path is not None
    return load_file(path / SHARD)


@pytest.fixture(scope="module")
def train(text_file: Path) -> Train:
    """Trains a tiny model for some steps into a folder."""

    def command(out: Path, *options: object, steps: int = STEPS) -> Any:
        return cli("train", "--data", text_file, "--out", out, "--steps", steps, *TINY, *options)

    return command


@pytest.fixture(scope="module")
def finished(train: Train, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run, and what it said."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, train(folder)


# ---- a run ------------------------------------------------------------------------------------


def test_what_a_run_leaves(finished: tuple[Path, Any]) -> None:
    folder, result = finished
    assert result.code == 0
    assert set(tree(folder)) == FILES
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    model = openxlstm.LanguageModel.from_pretrained(folder)
    assert (model.config.layers, model.config.embedding_dim, model.config.num_heads) == (
        "ms", 16, 2,
    )  # fmt: skip
    assert openxlstm.load_tokenizer(folder).vocab_size == model.config.vocab_size


def test_its_record(finished: tuple[Path, Any], text_file: Path) -> None:
    folder, _ = finished
    record = json.loads((folder / "train.json").read_text())
    assert record["openxlstm"] == __version__
    assert record["preset"] == "demo"
    assert record["data"] == {
        "sources": [str(text_file)], "weights": [], "field": "text", "tokenizer": "char",
        "bpe_vocab_size": 4096, "val_fraction": 0.1, "val_split": "last",
        "sampling": "windows", "batch_size": 2, "window": 8, "first_window": None,
        "eval_window": None, "reset_at_documents": True,
    }  # fmt: skip
    assert record["train"]["steps"] == STEPS
    assert record["train"]["minutes"] is None, "steps take the place of the preset's minutes"
    assert record["train"]["learning_rate"] == PRESETS["demo"].train.learning_rate
    assert record["text_sha256"] == hashlib.sha256(text_file.read_bytes()).hexdigest()
    evaluations = list(read_metrics(folder))
    best = min(evaluations, key=lambda record: record["val_loss"])
    result = record["result"]
    assert (result["best_loss"], result["best_step"]) == (best["val_loss"], best["step"])
    assert (result["step"], result["tokens"]) == (STEPS, STEPS * 16)


def test_its_metrics(finished: tuple[Path, Any]) -> None:
    folder, _ = finished
    records = list(read_metrics(folder))
    assert [(r["kind"], r["step"], r["tokens"]) for r in records] == [
        ("evaluation", 0, 0), ("evaluation", 3, 48), ("evaluation", 6, 96),
    ]  # fmt: skip
    assert records[-1]["val_loss"] < records[0]["val_loss"]


def test_the_sample_goes_to_standard_output_and_progress_does_not(
    finished: tuple[Path, Any],
) -> None:
    folder, result = finished
    model = openxlstm.LanguageModel.from_pretrained(folder)
    tokenizer = openxlstm.load_tokenizer(folder)
    sample = "".join(openxlstm.generate(model, tokenizer, max_tokens=500, seed=0))
    assert result.out == sample + "\n"
    for step in (0, 3, 6):
        assert re.search(rf"^step +{step} .*train \d\.\d+ +val \d\.\d+", result.err, re.MULTILINE)
    assert f"run    {folder}\n" in result.err
    parameters = sum(p.numel() for p in model.parameters())
    assert f"{parameters:,} parameters" in result.err
    assert f"openxlstm generate {folder}" in result.err


def test_quiet_is_silent(train: Train, tmp_path: Path) -> None:
    result = train(tmp_path / "run", "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert set(tree(tmp_path / "run")) == FILES - {"loss.png"}, "which is not drawn here"


def test_a_seed_repeats_a_run(finished: tuple[Path, Any], train: Train, tmp_path: Path) -> None:
    train(tmp_path / "same", "--quiet", "--seed", 0)
    train(tmp_path / "other", "--quiet", "--seed", 1)
    first, same, other = (tree(f) for f in (finished[0], tmp_path / "same", tmp_path / "other"))
    assert first["model.safetensors"] == same["model.safetensors"]
    assert first["model.safetensors"] != other["model.safetensors"]


def test_watching_changes_nothing(finished: tuple[Path, Any], train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "watched"
    watching = ("--gates", "--sample-every", 2, "--sample-prompt", "the", "--tensorboard")
    result = train(folder, *watching, "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")
    weights = "model.safetensors"
    assert (folder / weights).read_bytes() == (finished[0] / weights).read_bytes()
    samples = (folder / "samples.txt").read_text()
    assert re.fullmatch(r"step 6, val loss \d\.\d{4}\n    the.*\n\n", samples, re.DOTALL)
    *_, last = read_metrics(folder)
    assert set(last["gates"]) == {"block 0 (mLSTM)", "block 1 (sLSTM)"}
    assert "block 1 (sLSTM)" in cli("runs", folder, "--gates").out
    assert "--sample-every must be 1 or more" in cli("train", "--sample-every", 0).err
    other = train(tmp_path / "other", "--sample-every", 1, "--sample-prompt", "é")
    assert (other.code, other.err.count("\n")) == (2, 1)
    assert not (tmp_path / "other").exists(), "what cannot be written is seen before the start"


def test_options_reach_the_run(train: Train, tmp_path: Path) -> None:
    """Those that the model, the text and the training take, each with what was said."""
    folder = tmp_path / "run"
    result = train(
        folder, "--quiet", "--preset", "article", "--dropout", 0.25, "--tie-weights", True,
        "--tokenizer", "byte", "--val-split", "last", "--val-fraction", 0.2, "--sampling",
        "streams", "--learning-rate", 0.5, "--schedule", "constant", "--weight-decay", 0.5,
        "--seed", 7, "--tensorboard", "--dropout-kind", "channels", "--first-window", 2,
        "--eval-window", 5, "--reset-at-documents", False, "--ema-decay", 0.5, "--beta2", 0.5,
        "--mlstm-conv-kernel-size", 2,
    )  # fmt: skip
    assert (result.code, result.err) == (0, "")
    model = json.loads((folder / "config.json").read_text())["model"]
    assert model["dropout"] == model["embedding_dropout"] == 0.25
    assert model["tie_weights"] is True
    assert model["dropout_kind"] == "channels"
    assert model["block"]["mlstm_conv_kernel_size"] == 2
    assert model["num_positions"] == 124, "from the preset"
    assert model["vocab_size"] == 256
    record = json.loads((folder / "train.json").read_text())
    assert record["preset"] == "article"
    assert record["data"]["tokenizer"] == "byte"
    assert record["data"]["val_split"] == "last"
    assert record["data"]["val_fraction"] == 0.2
    assert record["data"]["sampling"] == "streams"
    assert (record["data"]["first_window"], record["data"]["eval_window"]) == (2, 5)
    assert record["data"]["reset_at_documents"] is False
    assert (record["train"]["ema_decay"], record["train"]["beta2"]) == (0.5, 0.5)
    assert record["train"]["learning_rate"] == 0.5
    assert record["train"]["schedule"] == "constant"
    assert record["train"]["weight_decay"] == 0.5
    assert record["train"]["seed"] == 7
    assert record["train"]["clip_norm"] == 0, "from the preset"
    assert [path.name for path in (folder / "tensorboard").glob("*tfevents*")]


def test_the_held_out_end_is_not_trained_on(tmp_path: Path) -> None:
    """The article says one end and takes the other; here what is said is what is held out."""
    text = tmp_path / "text.txt"
    text.write_text("a" * 50 + "b" * 450)
    for end, loss_is_low in (("first", False), ("last", True)):
        out = tmp_path / end
        options = ("--data", text, "--out", out, "--val-split", end, "--steps", 12, "--quiet")
        assert cli("train", *options, *TINY, "--learning-rate", 0.05).code == 0
        *_, last = read_metrics(out)
        assert (last["val_loss"] < 0.5) == loss_is_low


def test_a_mixture(text_file: Path, tmp_path: Path) -> None:
    """Two texts, each with a held-out end of its own, and one alphabet for both."""
    other = tmp_path / "other.txt"
    other.write_text("ABCD " * 100)
    folder = tmp_path / "run"
    both = ("--data", text_file, other)
    options = ("--weights", 1, 3, "--out", folder, "--steps", 3, "--sampling", "streams")
    result = cli("train", *both, *options, *TINY)
    assert result.code == 0
    assert f"text   {text_file}, {other}: " in result.err
    characters = openxlstm.load_tokenizer(folder).characters  # pyright: ignore[reportAttributeAccessIssue]
    assert set(characters) == set(text_file.read_text() + "ABCD")
    record = json.loads((folder / "train.json").read_text())
    assert (record["data"]["sources"], record["data"]["weights"]) == ([*map(str, both[1:])], [1, 3])
    figures = json.loads(cli("eval", folder, "--json").out)
    assert figures["tokens"] == len(text_file.read_text()) // 10 - 1 + 50 - 1
    assert json.loads(cli("eval", folder, "--json", "--data", other).out)["tokens"] == 49
    assert cli("train", "--resume", "--out", folder, "--steps", 4, "--quiet").code == 0
    other.write_text("ABCE " * 100)
    result = cli("train", "--resume", "--out", folder, "--steps", 5, "--quiet")
    assert (result.code, "has changed since" in result.err) == (2, True)


def test_a_tokenizer_can_be_used_again(trained: Path, text_file: Path, tmp_path: Path) -> None:
    folder, text = tmp_path / "run", tmp_path / "text.txt"
    text.write_text(text_file.read_text()[:900].replace("c", "d"))
    options = ("--data", text, "--tokenizer", trained, "--out", folder, "--steps", 1, "--quiet")
    assert cli("train", *options, *TINY).code == 0
    assert (folder / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()


def test_minutes_end_a_run(text_file: Path, tmp_path: Path) -> None:
    options = ("--data", text_file, "--out", tmp_path / "run", "--minutes", 0.003, "--quiet")
    assert cli("train", *options, *TINY).code == 0
    record = json.loads((tmp_path / "run" / "train.json").read_text())
    assert (record["train"]["steps"], record["train"]["minutes"]) == (None, 0.003)
    assert record["result"]["seconds"] >= 0.18


def test_tokens_end_a_run(text_file: Path, tmp_path: Path) -> None:
    options = ("--data", text_file, "--out", tmp_path / "run", "--tokens", 60, "--quiet")
    assert cli("train", *options, *TINY).code == 0
    record = json.loads((tmp_path / "run" / "train.json").read_text())
    assert (record["train"]["steps"], record["train"]["tokens"]) == (None, 60)
    assert record["result"]["tokens"] == 64, "the step that reaches it is the last"


def test_how_to_read_on_fits_the_text(finished: tuple[Path, Any], text_file: Path) -> None:
    folder, result = finished
    first_line = text_file.read_text().partition("\n")[0]
    assert f"openxlstm generate {folder} --prompt '{first_line}'" in result.err


def test_a_path_may_have_anything_in_it(tmp_path: Path, text_file: Path) -> None:
    """Brackets are mark-up to rich, which breaks long lines; to matplotlib dollars are formulas."""
    odd = tmp_path / "dir[" / "b].txt"
    folder = tmp_path / "a very long name of a folder" / ("x" * 80) / "$x^$ [/bold]"
    odd.parent.mkdir()
    shutil.copy(text_file, odd)
    result = cli("train", "--data", odd, "--out", folder, "--steps", 2, *TINY)
    assert result.code == 0
    assert f"text   {odd}: " in result.err
    assert f"run    {folder}\n" in result.err


def test_presets_are_listed(tmp_path: Path) -> None:
    result = cli("train", "--list-presets")
    assert (result.code, result.err) == (0, "")
    for name, preset in PRESETS.items():
        model, measured = preset.model, preset.measured
        loss = "–" if measured is None else f"{measured.windows_of_256:.3f}"
        line = rf"^ *{name} +{short(model.layers)} +{model.embedding_dim} .* {loss} "
        assert re.search(line, result.out, re.MULTILINE), "what it is, and what it reached"
        assert f"{preset.about}\n" in result.out
    assert not list(Path.cwd().iterdir())


# ---- where it goes ----------------------------------------------------------------------------


def test_without_a_name_a_run_gets_the_first_free_one(text_file: Path) -> None:
    for expected in ("demo", "demo-2"):
        assert free_folder("demo") == Path("runs", expected)
        result = cli("train", "--data", text_file, "--steps", 1, "--quiet", *TINY)
        assert result.code == 0
        assert (Path("runs") / expected / "model.safetensors").exists()


def test_an_empty_folder_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path("runs") / "demo").mkdir(parents=True)
    assert free_folder("demo") == Path("runs/demo")
    (Path("runs") / "demo" / "x").touch()
    (Path("runs") / "demo-2").touch()
    assert free_folder("demo") == Path("runs/demo-3")


def test_a_run_is_never_overwritten(trained_copy: Path, train: Train, tmp_path: Path) -> None:
    before = tree(trained_copy)
    result = train(trained_copy)
    assert (result.code, result.out) == (2, "")
    assert f"{trained_copy} is in use: resume it with --resume, or" in result.err
    assert tree(trained_copy) == before

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    result = train(tmp_path / "photos")
    assert result.code == 2
    assert "is in use: choose another --out" in result.err
    assert set(tree(tmp_path / "photos")) == {"cat.jpg"}


# ---- stopping and going on --------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(train: Train, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole run for each way to sample, with dropout, which draws random numbers too."""
    folders = {name: tmp_path_factory.mktemp(name) / "run" for name in ("windows", "streams")}
    for sampling, folder in folders.items():
        options = ("--quiet", "--dropout", 0.1, "--sampling", sampling)
        assert train(folder, *options).code == 0
        carried = [name for name in last_checkpoint(folder) if name.startswith("state.")]
        assert bool(carried) == (sampling == "streams")
    return folders


def assert_same_run(actual: Path, expected: Path) -> None:
    """Bit for bit, but for the time."""
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        assert (actual / name).read_bytes() == (expected / name).read_bytes(), name
    ours, theirs = last_checkpoint(actual), last_checkpoint(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name

    def without_time(folder: Path) -> Iterator[Any]:
        for metrics in read_metrics(folder):
            yield {**metrics, "seconds": None}
        record = json.loads((folder / "train.json").read_text())
        record["result"]["seconds"] = None
        yield record

    assert list(without_time(actual)) == list(without_time(expected))


SEND_ITSELF_A_SIGNAL = """
import os, sys
from openxlstm.cli import main
from openxlstm.train.checkpoint import newest
from openxlstm.train.metrics import MetricsFile

on_step = MetricsFile.on_step

def then_kill(self, step):
    on_step(self, step)
    if step.step == 4:
        os.kill(os.getpid(), int(sys.argv[1]))

MetricsFile.on_step = then_kill
main(sys.argv[2:])
"""
"""Deterministic, and yet a true signal to a true process."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    number: signal.Signals, uninterrupted: dict[str, Path], text_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = ["--data", text_file, "--out", folder, "--steps", STEPS, "--dropout", 0.1, *TINY]
    done = subprocess.run(
        [sys.executable, "-c", SEND_ITSELF_A_SIGNAL, *map(str, [int(number), "train", *options])],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    if number == signal.SIGKILL:
        assert done.returncode == -number
    else:
        assert done.returncode == 130
        assert "stopping after this step" in done.stderr
        assert "stopped at step 4, and everything is saved" in done.stderr
        assert f"openxlstm train --resume --out {folder}" in done.stderr
        assert json.loads((folder / "train.json").read_text())["result"]["step"] == 4
    result = cli("train", "--resume", "--out", folder, "--threads", 1, "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert_same_run(folder, uninterrupted["windows"])


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Presses Ctrl-C some times after a step, in this process, or sends another signal."""
    on_step = MetricsFile.on_step

    def at(step: int, times: int = 1, number: int = signal.SIGINT) -> None:
        def then_interrupt(self: MetricsFile, told: Any) -> None:
            on_step(self, told)
            for _ in range(times if told.step == step else 0):
                os.kill(os.getpid(), number)

        monkeypatch.setattr(MetricsFile, "on_step", then_interrupt)

    return at


@pytest.mark.parametrize("step", [1, 3, 5, 6])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_streams_go_on_too(
    step: int,
    number: int,
    uninterrupted: dict[str, Path],
    train: Train,
    tmp_path: Path,
    interrupt: Callable[..., None],
) -> None:
    """With the state that is carried; on an evaluation step, and on the last one, as well."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    interrupt(step, number=number)
    folder = tmp_path / "run"
    options = ("--quiet", "--dropout", 0.1, "--sampling", "streams")
    assert train(folder, *options).code == 130
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    interrupt(0)
    assert cli("train", "--resume", "--out", folder, "--threads", 1, "--quiet").code == 0
    assert_same_run(folder, uninterrupted["streams"])


def test_the_second_ctrl_c_stops_at_once(
    train: Train, tmp_path: Path, interrupt: Callable[..., None], uninterrupted: dict[str, Path]
) -> None:
    """Nothing more is saved, and nothing that was is lost."""
    interrupt(5, times=2)
    folder = tmp_path / "run"
    result = train(folder, "--dropout", 0.1)
    assert (result.code, result.out) == (130, "")
    assert "everything is saved" not in result.err
    interrupt(0)
    assert cli("train", "--resume", "--out", folder, "--threads", 1, "--quiet").code == 0
    assert_same_run(folder, uninterrupted["windows"])


def test_a_signal_from_outside(text_file: Path, tmp_path: Path) -> None:
    """As a person or a scheduler sends it, to a run that would last for hours."""
    folder = tmp_path / "run"
    options = ["train", "--data", text_file, "--out", folder, "--minutes", 600, *TINY]
    command = [sys.executable, "-c", "from openxlstm.cli import main; main()", *map(str, options)]
    with started(*command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if re.match(r"step +3 ", line):
                break
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait() == 130
    step = int(re.search(r"stopped at step ([\d,]+)", rest)[1].replace(",", ""))  # pyright: ignore
    assert step >= 3
    assert last_checkpoint(folder)
    assert json.loads((folder / "train.json").read_text())["result"]["step"] == step


def test_a_run_can_be_made_longer(train: Train, tmp_path: Path) -> None:
    """With a constant rate, three steps and then three more are six."""
    options = ("--quiet", "--schedule", "constant")
    train(tmp_path / "whole", *options)
    train(tmp_path / "parts", *options, steps=3)
    resume = ("train", "--resume", "--out", tmp_path / "parts", "--threads", 1, "--quiet")
    assert cli(*resume, "--steps", 6).code == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    assert cli(*resume, "--minutes", 0.0001).code == 0, "which are over"
    record = json.loads((tmp_path / "parts" / "train.json").read_text())
    assert (record["train"]["steps"], record["train"]["minutes"]) == (None, 0.0001)
    assert record["result"]["step"] == 6


def test_resuming_a_finished_run_changes_nothing(trained_copy: Path) -> None:
    before = tree(trained_copy)
    before.pop("loss.png")  # is drawn again
    result = cli("train", "--resume", "--out", trained_copy, "--threads", 1, "--quiet")
    assert result.code == 0
    after = tree(trained_copy)
    after.pop("loss.png")
    assert after == before


@pytest.mark.parametrize(
    "options",
    [
        ["--layers", "m"],
        ["--embedding-dim", 32],
        ["--data", "other.txt"],
        ["--seed", 1],
        ["--preset", "article"],
        ["--dropout", 0.1],
        ["--tie-weights", True],
        ["--window", 9],
        ["--val-split", "first"],
        ["--learning-rate", 0.1],
        ["--eval-every", 1],
    ],
    ids=str,
)
def test_a_resumed_run_keeps_its_options(options: list[object], trained_copy: Path) -> None:
    before = tree(trained_copy)
    result = cli("train", "--resume", "--out", trained_copy, *options)
    assert (result.code, result.out) == (2, "")
    assert f"{options[0]} cannot change in a run that is resumed" in result.err
    assert result.err.count("\n") == 1
    assert tree(trained_copy) == before


def test_what_cannot_be_resumed(trained_copy: Path, tmp_path: Path) -> None:
    assert "add --out RUN" in cli("train", "--resume").err
    result = cli("train", "--resume", "--out", tmp_path / "nowhere")
    assert (result.code, result.out) == (2, "")
    assert "is not a run: it has no train.json" in result.err
    shutil.rmtree(trained_copy / "checkpoints")
    result = cli("train", "--resume", "--out", trained_copy)
    assert result.code == 2
    assert "has no checkpoint to resume" in result.err


def test_a_text_that_has_changed_is_noticed(text_file: Path, tmp_path: Path) -> None:
    text, folder = tmp_path / "text.txt", tmp_path / "run"
    shutil.copy(text_file, text)
    cli("train", "--data", text, "--out", folder, "--steps", 3, "--quiet", *TINY)
    before = tree(folder)
    text.write_text(text_file.read_text().replace("cat", "hat", 1))
    result = cli("train", "--resume", "--out", folder, "--steps", 6)
    assert (result.code, result.out) == (2, "")
    assert f"the text of {text} has changed since the run" in result.err
    assert tree(folder) == before


def test_divergence_ends_in_one_line_and_a_run_to_resume(train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = train(folder, "--quiet", "--learning-rate", 1e30)
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(r"openxlstm: .* stopped being finite .* lower .*\n", result.err)
    model = openxlstm.LanguageModel.from_pretrained(folder)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
