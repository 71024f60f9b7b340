"""Text by path, what happens if there is none, and its two parts."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from openxlstm.data.corpora import CORPORA, load_documents, split, split_documents
from openxlstm.errors import UserError


def load_text(source: str) -> str:
    return "".join(load_documents(source))


def message(source: str) -> str:
    with pytest.raises(UserError) as caught:
        load_text(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_text_is_there_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from openxlstm.data.corpora import load_documents\n"
        "from openxlstm.data.tokenizer import make_tokenizer\n"
        "make_tokenizer('char', load_documents(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, __file__], check=True)


class TestPaths:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name, content in {
            "b.txt": "b\n",
            "a.md": "\na\n\n",
            "a/z.TXT": "z",
            "a/y.py": "print()",
            ".git/hidden.txt": "no",
            "a/.hidden.txt": "no",
            "empty/folder.txt/c.txt": "c",
        }.items():
            file = tmp_path / "texts" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        return tmp_path / "texts"

    def test_folder(self, folder: Path):
        assert load_text(str(folder)) == "z\n\na\n\nb\n\nc\n"

    def test_each_file_is_a_document(self, folder: Path):
        (folder / "blank.txt").write_text("\n\n")
        assert load_documents(str(folder)) == ["z\n\n", "a\n\n", "b\n\n", "c\n"]
        assert load_documents(str(folder / "a.md")) == ["\na\n\n"]

    def test_relative_and_below_a_hidden_folder(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.chdir(folder)
        assert load_text(".") == load_text(str(folder))
        assert load_text(".git") == "no"

    @pytest.mark.parametrize(
        ("pattern", "text"),
        [
            ("*.txt", "b\n"),
            ("**/*.txt", "b\n\nc\n"),
            ("a/*", "print()\n\nz\n"),
            ("[ab].*", "a\n\nb\n"),
            ("?.md", "\na\n\n"),
            ("*/.hidden.txt", "no"),
        ],
    )
    def test_pattern(self, folder: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, text: str):
        assert load_text(f"{folder}/{pattern}") == text
        monkeypatch.chdir(folder)
        assert load_text(pattern) == text

    def test_home(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HOME", str(folder))
        assert load_text("~/b.txt") == load_text("~/b.*") == "b\n"

    def test_file_whose_name_looks_like_a_pattern(self, folder: Path):
        (folder / "b[1].dat").write_text("me")
        assert load_text(f"{folder}/b[1].dat") == "me"

    def test_file_named_like_a_corpus(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        (tmp_path / "shakespeare").write_text("mine")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("openxlstm.data.corpora.shakespeare", lambda: ["the plays"])
        assert load_text("./shakespeare") == "mine"
        assert load_text("shakespeare") == "the plays"

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            (b"\xef\xbb\xbfa\r\nb\rc\n\r\n", "a\nb\nc\n\n"),
            ("größer als 1 €, 😀\n".encode(), "größer als 1 €, 😀\n"),
            (b"  as it is \t\n\n\n", "  as it is \t\n\n\n"),
            (b"\x0c\x1b a page, an escape", "\x0c\x1b a page, an escape"),
        ],
    )
    def test_content(self, tmp_path: Path, content: bytes, text: str):
        (tmp_path / "file").write_bytes(content)
        assert load_text(str(tmp_path / "file")) == text

    @pytest.mark.parametrize("content", [b"", b" \n\t\n", b"\xef\xbb\xbf"])
    def test_blank(self, tmp_path: Path, content: bytes):
        (tmp_path / "blank.txt").write_bytes(content)
        assert "nothing to read" in message(str(tmp_path / "blank.txt"))
        assert "nothing to read" in message(str(tmp_path))

    def test_not_utf8(self, folder: Path):
        (folder / "latin.txt").write_bytes("gr\xf6\xdfer".encode("latin-1"))
        error = message(str(folder))
        assert str(folder / "latin.txt") in error
        assert "byte 0xf6 at offset 2" in error
        assert "UTF-8" in error

    def test_binary(self, tmp_path: Path):
        (tmp_path / "model.txt").write_bytes(b"PK\x03\x00text")
        assert "not plain text (byte 0 at offset 3)" in message(str(tmp_path / "model.txt"))

    @pytest.mark.parametrize(
        "source", ["shakespear", "Shakespeare", "tiny-shakespeare", "tinyshakspere"]
    )
    def test_typing_error(self, source: str):
        close = "tinyshakespeare" if source.startswith("tiny") else "shakespeare"
        assert f"did you mean '{close}'" in message(source)

    @pytest.mark.parametrize("source", ["nowhere/at/all.txt", "", "line\nbreak", "x" * 5000, "\0"])
    def test_missing(self, source: str):
        error = message(source)
        assert len(error) < 500
        assert all(name in error for name in CORPORA) or "too long" in error

    def test_user_that_nobody_is(self):
        assert "nobody-is-called-this" in message("~nobody-is-called-this/file.txt")

    def test_pattern_without_a_match(self, folder: Path):
        assert "no file that matches" in message(f"{folder}/*.epub")

    def test_folder_without_text(self, tmp_path: Path):
        (tmp_path / "a.py").touch()
        assert "no .md, .txt, .jsonl, .parquet file in" in message(str(tmp_path))

    @pytest.mark.parametrize("what", ["open", "iterdir"])
    def test_permission_denied(self, folder: Path, monkeypatch: pytest.MonkeyPatch, what: str):
        def deny(path: Path, *_: object) -> bytes:  # root, whom tests may run as, is denied nothing
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, what, deny)
        assert "Permission denied" in message(str(folder))


class TestSplit:
    @pytest.mark.parametrize("make", [lambda n: "x" * n, np.arange, torch.arange])
    @pytest.mark.parametrize("end", ["first", "last"])
    def test_parts_make_the_whole(self, make: Callable[[int], str], end: str):
        whole = make(101)
        train, val = split(whole, 0.25, end)  # pyright: ignore[reportArgumentType]
        assert (len(train), len(val)) == ((76, 25) if end == "first" else (75, 26))
        parts = [*val, *train] if end == "first" else [*train, *val]
        assert parts == list(whole)

    @pytest.mark.parametrize("end", ["first", "last"])
    def test_nothing_left(self, end: str):
        with pytest.raises(UserError, match=r"leaves nothing to (train on|hold out)"):
            split("a", 0.1, end)  # pyright: ignore[reportArgumentType]

    def test_unknown_end(self):
        with pytest.raises(UserError, match="first or last, not 'middle'"):
            split("abc", 0.1, "middle")  # pyright: ignore[reportArgumentType]


class TestSplitDocuments:
    @given(
        st.lists(st.text("ab", min_size=1, max_size=9), min_size=1, max_size=6),
        st.floats(0.05, 0.95),
        st.sampled_from(["first", "last"]),
    )
    def test_cuts_where_split_cuts(self, documents: list[str], fraction: float, end: str):
        text = "".join(documents)
        assume(int(fraction * len(text)) > 0 and 0 < int((1 - fraction) * len(text)) < len(text))
        train, val = split_documents(documents, fraction, end)  # pyright: ignore[reportArgumentType]
        assert ("".join(train), "".join(val)) == split(text, fraction, end)  # pyright: ignore[reportArgumentType]
        assert all(train)
        assert all(val)
        first, second = (val, train) if end == "first" else (train, val)
        assert len(first) + len(second) - len(documents) in (0, 1), "one document is cut at most"
        whole = [*first, *second]
        if len(whole) > len(documents):
            whole[len(first) - 1 : len(first) + 1] = [first[-1] + second[0]]
        assert whole == documents
