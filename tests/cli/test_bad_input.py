"""Every mistake that a person can make ends in one line that says what to do."""

import functools
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cli_cases import TINY, cli, tree
from safetensors.torch import load_file, save_file

from openxlstm.data import corpora
from openxlstm.data.tinyshakespeare import tinyshakespeare
from openxlstm.train.checkpoint import checkpoints

SHARD = "shard-00001-model-00001-of-00001.safetensors"


@dataclass(frozen=True)
class World:
    """A text, a finished run, and a place for what is new."""

    text: Path
    run: Path
    new: Path


@pytest.fixture
def world(text_file: Path, trained_copy: Path, tmp_path: Path) -> World:
    return World(text_file, trained_copy, tmp_path / "new")


def assert_refused(result: Any, *words: str) -> None:
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("openxlstm: ")
    assert result.err.count("\n") == 1
    assert result.err.endswith("\n")
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err


# ---- texts ------------------------------------------------------------------------------------

TEXTS = {
    "empty": (b"", "nothing to read"),
    "blank": (b" \n\n \t\n", "nothing to read"),
    "short": (b"the cat sat", "window of 8"),
    "short held-out part": (b"the cat sat on the mat. " * 2, "the held-out part"),
    "one character": (b"x", "leaves nothing to"),
    "latin-1": ("Zähne ".encode("latin-1") * 100, "is not UTF-8"),
    "utf-16": ("text ".encode("utf-16") * 100, "is not"),
    "zip": (b"PK\x03\x04\x00\x00" + bytes(100), "is not plain text"),
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("sampling", ["windows", "streams"])
def test_a_text_that_does_not_do(kind: str, sampling: str, world: World, tmp_path: Path) -> None:
    content, words = TEXTS[kind]
    (tmp_path / "text.txt").write_bytes(content)
    result = cli(
        "train", "--data", tmp_path / "text.txt", "--out", world.new, "--steps", 2,
        "--sampling", sampling, *TINY,
    )  # fmt: skip
    assert_refused(result, words)
    assert not world.new.exists(), "nothing is begun"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.txt", "there is no file, folder or corpus 'nowhere.txt'"),
        ("nowhere/*.txt", "there is no file that matches"),
        ("", "there is no file, folder or corpus"),
        ("shakespear", "did you mean 'shakespeare'?"),
        (".", "there is no .md, .txt, .jsonl, .parquet file in '.'"),
        ("a\nb", "there is no file"),
    ],
)
def test_no_text_at_all(source: str, words: str, world: World) -> None:
    assert_refused(cli("train", "--data", source, "--out", world.new), words)
    assert_refused(cli("eval", world.run, "--data", source), words)
    assert not world.new.exists()


def test_a_character_that_the_model_has_never_seen(world: World, tmp_path: Path) -> None:
    before = tree(world.run)
    words = "has never seen 'Ж' (U+0416)"
    assert_refused(cli("generate", world.run, "--prompt", "the Ж"), words)
    (tmp_path / "text.txt").write_text("the Ж sat on the mat.\n" * 10)
    assert_refused(cli("eval", world.run, "--data", tmp_path / "text.txt"), words)
    assert tree(world.run) == before


def test_tinyshakespeare_without_a_network(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that nobody listens on stands for it."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/input.txt"
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    offline = functools.partial(tinyshakespeare, url=url)
    monkeypatch.setattr(corpora, "tinyshakespeare", offline)
    result = cli("train", "--data", "tinyshakespeare", "--out", world.new)
    assert_refused(result, f"the download of {url} failed", "OPENXLSTM_DATA")
    assert_refused(cli("eval", world.run, "--data", "tinyshakespeare"), "failed")
    assert not world.new.exists()


# ---- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--preset dmeo", "there is no preset 'dmeo'; choose one of: demo, fast, best, article"),
        ("--layers mx", "unknown letter 'x'"),
        ("--layers=", "layers is empty"),
        ("--embedding-dim 18 --num-heads 4", "embedding_dim=18 is not a multiple of num_heads=4"),
        ("--layers m --num-heads 3", "not a multiple of num_heads=3"),
        ("--embedding-dim 0", "embedding_dim must be positive"),
        ("--num-heads -2", "num_heads must be positive"),
        ("--steps 0", "steps must be positive, not 0"),
        ("--steps -3", "steps must be positive, not -3"),
        ("--minutes 0", "minutes must be positive"),
        ("--minutes -1", "minutes must be positive"),
        ("--minutes inf", "minutes must be positive"),
        ("--minutes nan", "minutes must be positive"),
        ("--seed -1", "seed must be between 0 and"),
        ("--seed 4294967296", "seed must be between 0 and"),
        ("--threads 0", "threads must be at least 1, not 0"),
        ("--threads -2", "threads must be at least 1, not -2"),
        ("--device tpu", "the device 'tpu' cannot be used here"),
        ("--device cuda:99", "the device 'cuda:99' cannot be used here"),
        ("--dropout 1", "dropout must be in [0, 1)"),
        ("--val-fraction 0", "val_fraction must be in (0, 1)"),
        ("--val-fraction 1.5", "val_fraction must be in (0, 1)"),
        ("--batch-size 0", "batch_size must be positive"),
        ("--window 0", "window must be positive"),
        ("--window 100000", "but a window of 100000 needs 100001"),
        ("--weights 1 2", "there are 2 weights for 1 sources"),
        ("--weights 0", "weights must be positive"),
        ("--bpe-vocab-size 256", "bpe_vocab_size must be more than 256"),
        ("--tokenizer word", "there is no tokenizer 'word'"),
        ("--learning-rate 0", "learning_rate must be positive"),
        ("--learning-rate inf", "learning_rate must be positive"),
        ("--weight-decay -1", "weight_decay must be 0 or more"),
        ("--eval-every 0", "eval_every must be positive"),
        ("--eval-batches -1", "eval_batches must be positive"),
    ],
)
def test_an_option_that_makes_no_sense(options: str, words: str, world: World) -> None:
    result = cli("train", "--data", world.text, "--out", world.new, *options.split())
    assert_refused(result, words)
    assert not world.new.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--max-tokens -2", "max_tokens must be 0 or more, not -2"),
        ("--temperature -1", "temperature=-1.0"),
        ("--temperature nan", "temperature=nan"),
        ("--top-k 0", "top_k=0"),
        ("--top-p 0", "top_p=0.0"),
        ("--top-p 1.5", "top_p=1.5"),
        ("--stop=", "stop is empty"),
        ("--threads 0", "threads must be at least 1"),
        ("--device tpu", "the device 'tpu' cannot be used here"),
    ],
)
def test_a_wish_that_no_model_grants(options: str, words: str, world: World) -> None:
    assert_refused(cli("generate", world.run, *options.split()), words)


def test_a_folder_that_cannot_be_written(world: World) -> None:
    """Below a file, where even root makes no folder."""
    out = world.text / "run"
    result = cli("train", "--data", world.text, "--out", out, "--steps", 1, *TINY)
    assert_refused(result, str(world.text))


def test_an_output_folder_that_is_a_file(world: World) -> None:
    before = world.text.read_bytes()
    assert_refused(cli("train", "--data", world.text, "--out", world.text), "is in use")
    assert world.text.read_bytes() == before


# ---- runs -------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def reshape(path: Path) -> None:
    """A tensor of another shape, everything else as it was."""
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("stack.norm.weight"))
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, path, metadata=metadata(path))


def metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def write(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


def remove(path: Path) -> None:
    path.unlink()


BROKEN: dict[str, tuple[Path, Callable[[Path], object], str]] = {
    "model truncated": (Path("model.safetensors"), truncate, "is damaged"),
    "model of another shape": (Path("model.safetensors"), reshape, "the model needs (16,)"),
    "model missing": (Path("model.safetensors"), remove, "has no weights"),
    "model is text": (Path("model.safetensors"), write("hello"), "is damaged"),
    "config truncated": (Path("config.json"), truncate, "is damaged"),
    "config of another model": (
        Path("config.json"),
        write('{"format": "openxlstm", "model": {"vocab_size": 16, "layers": "m"}}'),
        "model.safetensors",
    ),
    "config missing": (Path("config.json"), remove, "has no config.json"),
    "tokenizer truncated": (Path("tokenizer.json"), truncate, "is damaged"),
    "tokenizer missing": (Path("tokenizer.json"), remove, "tokenizer.json"),
    "tokenizer too large": (
        Path("tokenizer.json"),
        write('{"format": "openxlstm-tokenizer", "version": 1, "kind": "byte"}'),
        "use the tokenizer that the model was trained with",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_model(how: str, world: World) -> None:
    file, break_it, words = BROKEN[how]
    break_it(world.run / file)
    before = tree(world.run)
    assert_refused(cli("generate", world.run), words)
    assert_refused(cli("eval", world.run), words)
    assert tree(world.run) == before


def test_a_broken_checkpoint(world: World) -> None:
    """It is said, and the one before is used; without one, the run cannot go on."""
    saved = checkpoints(world.run)
    truncate(saved[0] / SHARD)
    result = cli("generate", world.run, "--checkpoint", "last", "--max-tokens", 1)
    assert (result.code, result.err.count("\n")) == (0, 1)
    assert f"the checkpoint {saved[0]} is damaged" in result.err
    for path in saved[1:]:
        truncate(path / SHARD)
    before = tree(world.run)
    result = cli("train", "--resume", "--out", world.run, "--quiet")
    assert result.code == 2
    assert result.err.count("is damaged") == len(saved)
    assert "has no checkpoint to resume" in result.err
    result = cli("generate", world.run, "--checkpoint", "last")
    assert (result.code, result.out) == (2, "")
    assert "no intact checkpoint" in result.err
    assert tree(world.run) == before
    assert cli("generate", world.run, "--max-tokens", 1).code == 0, "the best model still works"


def test_a_checkpoint_of_another_model(world: World) -> None:
    """Whole, but for a model that the run's configuration does not describe."""
    config = json.loads((world.run / "config.json").read_text())
    config["model"]["embedding_dim"] = 32
    (world.run / "config.json").write_text(json.dumps(config))
    before = tree(world.run)
    assert_refused(cli("train", "--resume", "--out", world.run, "--quiet"), "the model needs")
    assert_refused(cli("generate", world.run, "--checkpoint", "last"), "the model needs")
    assert tree(world.run) == before


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data": {"sources": ["x"], "depth": 3}}, "DataConfig has no option 'depth'"),
        ({"train": {}}, "how long to train"),
        ({"train": []}, "must be dict"),
        ({"mood": "good"}, "RunRecord has no option 'mood'"),
        ({"data": {"window": "8"}}, "window must be int"),
    ],
)
def test_a_broken_record(values: dict[str, Any], words: str, world: World) -> None:
    path = world.run / "train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    for command in (["train", "--resume", "--out", world.run], ["eval", world.run]):
        assert_refused(cli(*command), words, "train.json")


@pytest.mark.parametrize("command", ["generate", "eval"])
def test_no_run_at_all(command: str, world: World, tmp_path: Path) -> None:
    assert_refused(cli(command, tmp_path / "nowhere"), "it does not exist")
    assert_refused(cli(command, tmp_path), "it has no config.json")
    assert_refused(cli(command, world.text), "is not a model's folder")
