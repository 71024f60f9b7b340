"""`openxlstm tokenize`, and what reads the folder that it makes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_cases import TINY, cli, tree
from jobs import started

import openxlstm


@pytest.fixture
def tokens(text_file: Path, tmp_path: Path) -> Path:
    """The text of the tests as tokens in four shards."""
    folder = tmp_path / "tokens"
    options = ("--out", folder, "--workers", 1, "--shard-mb", 0.0003, "--quiet")
    result = cli("tokenize", text_file, *options)
    assert (result.code, result.out, result.err) == (0, "", "")
    return folder


def test_what_it_says(text_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    result = cli("tokenize", text_file, "--out", folder, "--tokenizer", "byte", "--workers", 1)
    size = text_file.stat().st_size
    assert (result.code, result.out) == (0, "")
    assert (
        f"{size:,} tokens, vocabulary of 256, from {size:,} characters in 1 document; 1 shard in "
        in result.err
    )
    assert re.search(r"written in \d+\.\d s \(\d+\.\d MB/s\)\n", result.err)
    assert result.err.endswith(f"openxlstm train --data '{folder}'\n")
    assert set(tree(folder)) == {
        "00000.ids.npy", "00000.starts.npy", "manifest.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip


def test_a_run_is_the_same_from_text_or_tokens(
    text_file: Path, tokens: Path, tmp_path: Path
) -> None:
    """The text is cut at a character, and each is a token."""
    runs = {"of text": text_file, "of tokens": tokens}
    for name, data in runs.items():
        options = ("--data", data, "--out", tmp_path / name, "--steps", 4, "--quiet", *TINY)
        assert cli("train", *options).code == 0
    first, second = (tree(tmp_path / name) for name in runs)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert first[name] == second[name]
    figures = [json.loads(cli("eval", tmp_path / name, "--json").out) for name in runs]
    assert figures[0] == figures[1]
    on_tokens = json.loads(cli("eval", tmp_path / "of text", "--json", "--data", tokens).out)
    assert on_tokens == figures[0]
    record = json.loads((tmp_path / "of tokens" / "train.json").read_text())
    assert record["data"]["sources"] == [str(tokens)]


def test_a_run_on_tokens_goes_on(tokens: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--sampling", "streams", "--verify", "sizes")
    result = cli("train", "--data", tokens, "--out", run, "--steps", 3, *options, *TINY)
    assert result.code == 0
    assert "openxlstm generate" in result.err
    assert "--prompt 'the " in result.err
    assert cli("train", "--resume", "--out", run, "--steps", 5, "--quiet").code == 0
    path = tokens / "00001.ids.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    result = cli("train", "--resume", "--out", run, "--steps", 6, "--quiet")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"{path} has changed since manifest.json was written" in result.err
    again = ("train", "--resume", "--out", run, "--steps", 6, "--quiet", "--verify", "sizes")
    assert cli(*again).code == 0
    (tokens / "manifest.json").write_text((tokens / "manifest.json").read_text() + " ")
    result = cli(*again)
    assert (result.code, "has changed since the run" in result.err) == (2, True)


def test_mixed_with_text(tokens: Path, text_file: Path, tmp_path: Path) -> None:
    """The tokenizer of the tokens is that of the text too."""
    both = ("--data", text_file, tokens, "--weights", 1, 2)
    run = tmp_path / "run"
    assert cli("train", *both, "--out", run, "--steps", 2, "--quiet", *TINY).code == 0
    assert (run / "tokenizer.json").read_bytes() == (tokens / "tokenizer.json").read_bytes()


def test_tokens_that_do_not_fit(
    tokens: Path, text_file: Path, trained: Path, tmp_path: Path
) -> None:
    other, run = tmp_path / "other", tmp_path / "run"
    options = ("--tokenizer", "byte", "--workers", 1, "--quiet")
    assert cli("tokenize", text_file, "--out", other, *options).code == 0
    for command in (
        ["train", "--data", tokens, other, "--out", run, "--steps", 1, *TINY],
        ["eval", trained, "--data", other],
        ["train", "--data", tokens, "--tokenizer", other, "--out", run, "--steps", 1, *TINY],
    ):
        result = cli(*command)
        assert (result.code, result.out) == (2, "")
        assert "tokenized differently" in result.err
        assert result.err.count("\n") == 1
    options = ("--tokenizer", trained, "--workers", 1, "--quiet")
    assert cli("tokenize", text_file, "--out", tmp_path / "fits", *options).code == 0
    assert cli("eval", trained, "--data", tmp_path / "fits", "--json").code == 0


def test_bpe_from_end_to_end(text_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    run = tmp_path / "run"
    options = ("--tokenizer", "bpe", "--bpe-vocab-size", 280, "--window", 4)
    result = cli("train", "--data", text_file, "--out", run, "--steps", 2, *TINY, *options)
    assert result.code == 0
    assert "vocabulary of 280" in result.err
    tokenizer = openxlstm.load_tokenizer(run)
    text = text_file.read_text()
    val = text[int(0.9 * len(text)) :]
    figures = json.loads(cli("eval", run, "--json").out)
    ids = tokenizer.encode(val)
    assert figures["tokens"] == len(ids) - 1 < len(val) / 2
    bits = figures["loss"] / 0.6931471805599453
    assert figures["bits_per_character"] == pytest.approx(bits * len(ids) / len(val))
    assert cli("generate", run, "--prompt", "the größe", "--max-tokens", 5).code == 0


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines(name: str, tmp_path: Path) -> None:
    """A run reads them directly, by the field that is named."""
    import gzip

    lines = "".join(json.dumps({"body": f"the cat sat on mat {n}"}) + "\n" for n in range(50))
    content = lines.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    options = ("--data", tmp_path / name, "--out", tmp_path / "run", "--steps", 2, *TINY)
    result = cli("train", *options)
    assert (result.code, result.out) == (2, "")
    assert "line 1 has no field 'text'; choose one with --field: body" in result.err
    assert cli("train", *options, "--field", "body", "--quiet").code == 0
    assert cli("eval", tmp_path / "run", "--json").code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("TEXT", "--out"),
        ("--out new", "name at least one source"),
        ("nowhere --out new", "there is no file, folder or corpus 'nowhere'"),
        ("TEXT --out new --tokenizer word", "there is no tokenizer 'word'"),
        ("TEXT --out new --workers 0", "workers must be positive, not 0"),
        ("TEXT --out new --shard-mb 0", "shard_mb must be positive, not 0.0"),
        ("TEXT --out new --bpe-sample-mb -1", "bpe_sample_mb must be positive"),
        ("TEXT --out new --bpe-vocab-size 256", "bpe_vocab_size must be more than 256"),
        ("TEXT --out TEXT", "is in use: choose another --out"),
        ("TEXT --out TEXT/below", "directory"),
    ],
)
def test_what_makes_no_sense(text_file: Path, options: str, words: str) -> None:
    before = text_file.read_bytes()
    result = cli("tokenize", *options.replace("TEXT", str(text_file)).split())
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert result.err.startswith("openxlstm: ")
    assert result.err.count("\n") == 1
    assert not Path("new").exists()
    assert text_file.read_bytes() == before


def test_a_folder_that_is_not_finished(tokens: Path, tmp_path: Path) -> None:
    (tokens / "manifest.json").rename(tokens / "unfinished.json")
    result = cli("train", "--data", tokens, "--out", tmp_path / "run")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "is not finished: run the same openxlstm tokenize command again" in result.err


TWO_SHARDS = """
import os, time
from openxlstm.cli import main
from openxlstm.data import tokenizing
write_shard, written = tokenizing.write_shard, []
def at_most_two(*arguments):
    while len(written) == 2 and not os.path.exists(os.environ["GO"]):
        time.sleep(0.01)
    written.append(write_shard(*arguments))
    return written[-1]
tokenizing.write_shard = at_most_two
if __name__ == "__main__":
    main()
"""
"""Writes two shards in each process, and the others when it may."""


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_what_is_done(text_file: Path, tmp_path: Path, workers: int) -> None:
    text, script, out, go = (tmp_path / name for name in ("text.txt", "two.py", "out", "go"))
    text.write_text(text_file.read_text() * 100)
    script.write_text(TWO_SHARDS)
    options = ["tokenize", text, "--out", out, "--tokenizer", "byte", "--shard-mb", 0.003]
    options = [*map(str, options), "--workers", str(workers)]
    command = [sys.executable, script, *options]
    # In a session of its own, as a terminal sends Ctrl-C to all the processes of one.
    environment = {**os.environ, "GO": str(go)}
    with started(
        *command, stderr=subprocess.PIPE, start_new_session=True, env=environment
    ) as process:
        while len(list(out.glob("0*.json"))) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        go.touch()
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait() == 130
    assert said == "stopped; give the same command again to resume\n"
    assert not list(out.glob(".*"))
    assert cli(*options, "--quiet").code == 0
    options[options.index(str(out))] = str(tmp_path / "whole")
    assert cli(*options, "--quiet").code == 0
    assert tree(out) == tree(tmp_path / "whole")
