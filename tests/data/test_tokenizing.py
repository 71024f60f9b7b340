"""A text of files becomes the same shards, however many work on it and however often they stop."""

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs import started

from openxlstm.data import shards, tokenizing
from openxlstm.data.corpora import load_documents
from openxlstm.data.shards import open_token_folder
from openxlstm.data.sources import Span
from openxlstm.data.tokenizer import encode_documents
from openxlstm.data.tokenizing import Input, TokenizingJob, plan_units, tokenize
from openxlstm.errors import UserError

SHARD = 0.002  # million bytes


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def read(tokens: Any) -> tuple[list[int], list[bool]]:
    ids, begins = np.zeros(len(tokens), np.int64), np.zeros(len(tokens), np.bool_)
    tokens.read(0, ids, begins)
    return ids.tolist(), begins.tolist()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of everything that is text, large files and small ones."""
    folder = tmp_path_factory.mktemp("texts")
    lines = [f"Line {n} of größerer text, and it's {n % 7} times as long." for n in range(300)]
    (folder / "a.txt").write_text("\n".join(lines) + "\n\n\n")
    (folder / "b.md").write_text("\n\nsmall\n")
    (folder / "blank.txt").write_text("\n \n".strip(" "))
    records = "".join(json.dumps({"text": f"{line}\n{line}"}) + "\n" for line in lines[:60])
    (folder / "c.jsonl").write_text(records)
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(records.encode(), mtime=0))
    return folder


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
@pytest.mark.parametrize("source", ["", "a.txt"])
def test_tokens_are_those_of_the_text_in_memory(
    tokenizer: str, source: str, texts: Path, tmp_path: Path
):
    """Up to the last line end: on disk, each of several documents ends in a blank line."""
    if tokenizer == "bpe":
        pytest.importorskip("tokenizers")
    job = TokenizingJob(
        sources=(str(texts / source),), tokenizer=tokenizer, bpe_vocab_size=300, shard_mb=SHARD
    )
    manifest = tokenize(job, tmp_path / "out")
    assert len(manifest["shards"]) > 5
    opened = open_token_folder(tmp_path / "out")
    documents = load_documents(str(texts / source))
    if not source:
        documents[-1] += "\n"
    assert read(opened.tokens) == read(encode_documents(opened.tokenizer, documents))
    assert manifest["documents"] == len(documents)
    assert manifest["characters"] == sum(map(len, documents))
    assert manifest["bytes"] == len("".join(documents).encode())
    assert [source["bytes"] for source in manifest["sources"]] == [
        path.stat().st_size for path in sorted(texts.glob(source or "*"))
    ]
    left = {path.name.partition(".")[2] for path in (tmp_path / "out").iterdir()}
    assert left == {"json", "ids.npy", "starts.npy"}
    assert not (tmp_path / "out" / "unfinished.json").exists()


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_two_workers_make_the_same_bytes(tokenizer: str, texts: Path, tmp_path: Path):
    if tokenizer == "bpe":
        pytest.importorskip("tokenizers")
    job = TokenizingJob(
        sources=(str(texts),), tokenizer=tokenizer, bpe_vocab_size=300, shard_mb=SHARD
    )
    heard = []
    tokenize(job, tmp_path / "one", workers=1)
    tokenize(job, tmp_path / "two", workers=2, progress=lambda *now: heard.append(now))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    total = sum(path.stat().st_size for path in texts.iterdir())
    assert heard[-1] == ("tokens", total, total)


@given(st.lists(st.integers(0, 100), max_size=12), st.integers(1, 60))
def test_units_have_everything_once(sizes: list[int], size: int):
    inputs = [Input(Span(f"{n}{'.gz' * (n % 2)}"), bytes_) for n, bytes_ in enumerate(sizes)]
    units = plan_units(inputs, "text", size)
    spans = [span for unit in units for span in unit.spans]
    for found in inputs:
        parts = [span for span in spans if span.path == found.span.path]
        assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
        assert parts[-1].stop is None
        assert len(parts) == 1 or found.span.can_be_cut
    assert list(dict.fromkeys(span.path for span in spans)) == [i.span.path for i in inputs]
    assert sum(unit.bytes for unit in units) == sum(sizes)
    assert all(unit.bytes <= size or not unit.spans[0].can_be_cut for unit in units)


def test_a_corpus_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for place in ("tokenizing", "corpora"):
        monkeypatch.setattr(
            f"openxlstm.data.{place}.load_documents", lambda *_: ["a play\n\n", "another\n"]
        )
    manifest = tokenize(TokenizingJob(sources=("shakespeare",)), tmp_path / "out")
    assert (manifest["documents"], manifest["characters"]) == (2, 16)
    assert manifest["sources"] == [{"path": "shakespeare", "bytes": 16}]


def test_a_path_may_be_any_bytes(tmp_path: Path):
    path = tmp_path / os.fsdecode(b"gr\xf6\xdfe.txt")
    path.write_text("some text")
    manifest = tokenize(TokenizingJob(sources=(str(path),)), tmp_path / "out")
    assert manifest["sources"][0]["path"].endswith("gr\ufffd\ufffde.txt")
    assert tokenize(TokenizingJob(sources=(str(path),)), tmp_path / "out") == manifest


def test_a_link_is_what_its_name_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As those into a cache are, whose files have no suffix."""
    (tmp_path / "d41d8cd9").write_text('{"text": "hello"}')
    (tmp_path / "a.jsonl").symlink_to("d41d8cd9")
    monkeypatch.chdir(tmp_path)
    assert tokenize(TokenizingJob(sources=("a.jsonl",)), tmp_path / "out")["characters"] == 7


class TestResuming:
    @pytest.fixture
    def job(self, texts: Path, tmp_path: Path) -> TokenizingJob:
        folder = shutil.copytree(texts, tmp_path / "texts")
        return TokenizingJob(sources=(str(folder),), shard_mb=SHARD)

    @pytest.fixture
    def begun(self, job: TokenizingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder of which three shards are finished."""
        write_shard = shards.write_shard

        def stop_at_the_fourth(folder: Path, number: int, *arguments: Any) -> Any:
            if number == 3:
                raise OSError(28, "No space left on device")
            return write_shard(folder, number, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(tokenizing, "write_shard", stop_at_the_fourth)
            with pytest.raises(OSError, match="No space left"):
                tokenize(job, tmp_path / "out")
        return tmp_path / "out"

    def test_what_is_finished_is_kept(
        self, job: TokenizingJob, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        written = []
        write_shard = shards.write_shard

        def hear(folder: Path, number: int, *arguments: Any) -> Any:
            written.append(number)
            return write_shard(folder, number, *arguments)

        monkeypatch.setattr(tokenizing, "write_shard", hear)
        (begun / ".00003.ids.npy.1234.tmp").touch()  # of a process that was killed
        heard = []
        tokenize(job, begun, progress=lambda *now: heard.append(now))
        assert written == list(range(3, max(written) + 1))
        assert heard[0][1] > 0.8 * 3 * 1e6 * SHARD
        tokenize(job, tmp_path / "whole")
        assert contents(begun) == contents(tmp_path / "whole")
        before = contents(begun)
        written.clear()
        tokenize(job, begun)
        assert (contents(begun), written) == (before, []), "once more does nothing"

    def test_another_job_is_refused(self, job: TokenizingJob, begun: Path, texts: Path):
        for finished in (False, True):
            if finished:
                tokenize(job, begun)
            before = contents(begun)
            for change, name in {
                "tokenizer": "byte", "shard_mb": 0.001, "field": "body", "bpe_vocab_size": 300,
                "sources": (str(texts / "a.txt"),),
            }.items():  # fmt: skip
                other = TokenizingJob(**{**vars(job), change: name})
                option = f"--{change.replace('_', '-')}"
                with pytest.raises(UserError, match=f"{option} has changed"):
                    tokenize(other, begun)
            assert contents(begun) == before

    def test_a_text_that_has_changed_is_refused(self, job: TokenizingJob, begun: Path):
        file = Path(job.sources[0], "b.md")
        file.touch()
        with pytest.raises(UserError, match="has changed"):
            tokenize(job, begun)
        file.write_text("longer than it was")
        with pytest.raises(UserError, match=r"b\.md has changed"):
            tokenize(job, begun)

    def test_a_tokenizer_that_has_changed_is_refused(
        self, job: TokenizingJob, begun: Path, tmp_path: Path
    ):
        path = shutil.copy(begun / "tokenizer.json", tmp_path / "tokenizer.json")
        job = TokenizingJob(**{**vars(job), "tokenizer": str(path)})
        out = shutil.copytree(begun, tmp_path / "other")
        plan = json.loads((out / "unfinished.json").read_text())
        plan["options"]["tokenizer"] = str(path)
        (out / "unfinished.json").write_text(json.dumps(plan))
        Path(path).write_text(Path(path).read_text().replace('"L"', '"Ł"'))
        with pytest.raises(UserError, match=r"the tokenizer .* has changed"):
            tokenize(job, out)

    @pytest.mark.parametrize("workers", [1, 2])
    def test_killed_in_the_middle(self, job: TokenizingJob, tmp_path: Path, workers: int):
        """By a signal that no program hears; its workers end too."""
        out, slow = tmp_path / "out", tmp_path / "slow.py"
        slow.write_text(TWO_SHARDS)
        command = [sys.executable, str(slow), job.sources[0], str(out), str(SHARD), str(workers)]
        with started(*command, stdout=subprocess.PIPE) as process:
            while len(list(out.glob("0*.json"))) < 2:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            assert process.stdout is not None
            workers_seen = set(process.stdout.read().split())  # to the end: when all are gone
        assert 1 <= len(workers_seen) <= workers
        assert not (out / "manifest.json").exists()
        tokenize(job, out)
        tokenize(job, tmp_path / "whole")
        assert contents(out) == contents(tmp_path / "whole")


TWO_SHARDS = """
import os, sys, time
from pathlib import Path
from openxlstm.data import tokenizing
write_shard = tokenizing.write_shard
parent, written = os.getppid(), []
def at_most_two(*arguments):
    # No more as long as the process that started this one lives.
    print(os.getpid(), flush=True)
    while len(written) == 2 and os.getppid() == parent:
        time.sleep(0.01)
    written.append(write_shard(*arguments))
    return written[-1]
tokenizing.write_shard = at_most_two
if __name__ == "__main__":
    source, out, size, workers = sys.argv[1:]
    job = tokenizing.TokenizingJob(sources=(source,), shard_mb=float(size))
    tokenizing.tokenize(job, Path(out), workers=int(workers))
"""


class TestMistakes:
    def test_a_folder_in_use(self, texts: Path, tmp_path: Path):
        (tmp_path / "photo.jpg").touch()
        for out in (tmp_path, tmp_path / "photo.jpg"):
            with pytest.raises(UserError, match="is in use: choose another --out"):
                tokenize(TokenizingJob(sources=(str(texts),)), out)

    @pytest.mark.parametrize("tokenizer", ["char", "byte"])
    def test_nothing_to_read(self, tokenizer: str, tmp_path: Path):
        (tmp_path / "a.txt").write_text("\n\n")
        (tmp_path / "b.txt").touch()
        job = TokenizingJob(sources=(str(tmp_path / "*.txt"),), tokenizer=tokenizer)
        with pytest.raises(UserError, match="give some text"):
            tokenize(job, tmp_path / "out")

    @pytest.mark.parametrize("source", ["nowhere", "", "shakespear", "~nobody-is-called-this/x"])
    def test_no_such_source(self, source: str, tmp_path: Path):
        with pytest.raises(UserError, match=r"there is no file|cannot read"):
            tokenize(TokenizingJob(sources=(source,)), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_mistake_in_a_worker_is_told(self, texts: Path, tmp_path: Path):
        job = TokenizingJob(sources=(str(texts),), field="body", tokenizer="byte", shard_mb=SHARD)
        with pytest.raises(UserError, match=r"c\.jsonl line \d+ has no field 'body'"):
            tokenize(job, tmp_path / "out", workers=2)

    def test_a_worker_that_is_killed(
        self, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(tokenizing, "_write_unit", _die)
        job = TokenizingJob(sources=(str(texts),), tokenizer="byte", shard_mb=SHARD)
        with pytest.raises(UserError, match="a worker process was killed"):
            tokenize(job, tmp_path / "out", workers=2)


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
