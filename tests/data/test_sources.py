"""Files in pieces are the files; what is wrong with one is said with its name and place."""

import bz2
import gzip
import json
import lzma
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openxlstm.data import sources
from openxlstm.data.corpora import load_documents
from openxlstm.data.sources import Piece, Span, find_files, read_pieces, set_apart
from openxlstm.errors import UserError

DOCUMENTS = ["one\ntwo\r\nthree\n", "größer als 1 €, 😀", "\n\n", "\n\nlast\n\n\n"]
SET_APART = ["one\ntwo\nthree\n\n", "größer als 1 €, 😀\n\n", "last\n"]


def zstd(content: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    return zstandard.ZstdCompressor().compress(content)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}
each_way = pytest.mark.parametrize("suffix", COMPRESS)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small files are read in many blocks."""
    monkeypatch.setattr(sources, "BLOCK", 7)


def texts(pieces: Iterable[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def message(span: Span, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        list(read_pieces(span, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def json_lines(documents: Iterable[object], field: str = "text") -> bytes:
    return "".join(json.dumps({"id": 3, field: d}) + "\n" for d in documents).encode()


@each_way
@pytest.mark.usefixtures("small_blocks")
class TestFormats:
    def test_text(self, tmp_path: Path, suffix: str):
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(COMPRESS[suffix]("\ufeffone\r\n\ntwö 😀\rend ".encode()))
        read = []
        pieces = list(read_pieces(Span(str(path)), report=read.append))
        assert texts(pieces) == "one\n\ntwö 😀\nend "
        assert [p.begins for p in pieces] == [True] + [False] * (len(pieces) - 1)
        assert [p.ends for p in pieces] == [False] * (len(pieces) - 1) + [True]
        assert sum(read) == path.stat().st_size
        assert load_documents(str(path)) == ["one\n\ntwö 😀\nend "], "as it is"

    def test_json_lines(self, tmp_path: Path, suffix: str):
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_bytes(COMPRESS[suffix](json_lines([*DOCUMENTS, None]) + b"\n"))
        assert load_documents(str(path)) == SET_APART
        assert load_documents(str(tmp_path)) == SET_APART, "as part of a folder"
        path.write_bytes(COMPRESS[suffix](json_lines(DOCUMENTS, "body")))
        assert load_documents(str(path), field="body") == SET_APART
        assert f"{path} line 1 has no field 'text'; choose one with --field: id, body" in message(
            Span(str(path))
        )

    def test_damaged(self, tmp_path: Path, suffix: str):
        if not suffix:
            return
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(b"this is no compressed file, and long enough to see")
        assert f"{path} is damaged" in message(Span(str(path)))
        content = COMPRESS[suffix](b"word " * 10_000)
        path.write_bytes(content[:-9])
        assert f"{path} is damaged" in message(Span(str(path)))
        path.write_bytes(content + content)
        whole = texts(read_pieces(Span(str(path))))
        assert whole == "word " * 20_000, "several after one another are one"

    def test_not_utf8(self, tmp_path: Path, suffix: str):
        path = tmp_path / f"a.md{suffix}"
        path.write_bytes(COMPRESS[suffix](b"well then, gr\xf6\xdfer"))
        assert f"{path} is not UTF-8 (byte 0xf6 at offset 13)" in message(Span(str(path)))
        path.write_bytes(COMPRESS[suffix]("a word and half a €".encode()[:-1]))
        assert "is not UTF-8 (byte 0xe2 at offset 18)" in message(Span(str(path)))
        path.write_bytes(COMPRESS[suffix](b"well then, \0"))
        assert "byte 0 at offset 11" in message(Span(str(path)))


class TestParquet:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        rows = {"text": [*DOCUMENTS, None], "number": [1, 2, 3, 4, 5]}
        parquet.write_table(arrow.table(rows), tmp_path / "a.parquet")
        return tmp_path / "a.parquet"

    def test_rows(self, path: Path):
        assert load_documents(str(path)) == SET_APART
        read = []
        assert len(list(read_pieces(Span(str(path)), report=read.append))) == len(DOCUMENTS)
        assert sum(read) == path.stat().st_size

    def test_mistakes(self, path: Path):
        wrong = "has no field 'body'; choose one with --field: text, number"
        assert f"{path} {wrong}" in message(Span(str(path)), field="body")
        assert f"{path} holds int64 in 'number', not text" in message(
            Span(str(path)), field="number"
        )
        path.write_bytes(path.read_bytes()[:-20])
        assert f"{path} is damaged or not a Parquet file" in message(Span(str(path)))


class TestJsonLines:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("{", "is not JSON"),
            ('{"text": "a"} x', "is not JSON"),
            ("[" * 100_000, "is not JSON"),
            ("3", "is not a JSON object: 3"),
            ('{"text": 3}', "has no text in 'text': 3"),
        ],
    )
    def test_a_bad_line_is_named(self, tmp_path: Path, line: str, reason: str):
        path = tmp_path / "a.jsonl"
        good = json_lines(["good"] * 4)
        path.write_bytes(good + line.encode() + b"\n" + good)
        assert f"{path} line 5 {reason}" in message(Span(str(path)))
        middle = len(good) - 5
        assert f"{path} line 5 {reason}" in message(Span(str(path), middle)), "in a part as well"

    def test_not_utf8(self, tmp_path: Path):
        path = tmp_path / "a.jsonl"
        path.write_bytes(b'{"text": "gr\xf6\xdfer"}')
        assert f"{path} line 1 is not JSON" in message(Span(str(path)))


class TestParts:
    """A file that is cut anywhere has all its text in its parts."""

    @pytest.mark.usefixtures("small_blocks")
    @given(
        st.text(st.sampled_from("ab 😀\n\té\r"), max_size=60),
        st.lists(st.integers(0, 200), max_size=4),
    )
    def test_text(self, tmp_path_factory: pytest.TempPathFactory, text: str, places: list[int]):
        path = tmp_path_factory.getbasetemp() / "part.txt"
        path.write_bytes(text.encode())
        cuts = sorted({place % (len(text.encode()) + 1) for place in places} - {0})
        spans = [Span(str(path), a, b) for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
        whole = list(read_pieces(Span(str(path))))
        parts = [piece for span in spans for piece in read_pieces(span)]
        assert texts(parts) == texts(whole)
        for pieces in (whole, parts):
            assert sum(piece.begins for piece in pieces) == 1
            assert sum(piece.ends for piece in pieces) == 1
            assert pieces[0].begins
            assert pieces[-1].ends

    @given(
        st.lists(st.text(max_size=9), max_size=9),
        st.lists(st.integers(0, 500), max_size=4),
    )
    def test_json_lines(
        self, tmp_path_factory: pytest.TempPathFactory, documents: list[str], places: list[int]
    ):
        path = tmp_path_factory.getbasetemp() / "part.jsonl"
        path.write_bytes(content := json_lines(documents))
        cuts = sorted({place % (len(content) + 1) for place in places} - {0})
        spans = [Span(str(path), a, b) for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
        assert [p for span in spans for p in read_pieces(span)] == [*read_pieces(Span(str(path)))]

    def test_a_word_is_not_cut(self, tmp_path: Path):
        (tmp_path / "a.txt").write_text("word " * 100)
        for place in range(1, 490):
            pieces = read_pieces(Span(str(tmp_path / "a.txt"), place))
            assert texts(pieces).startswith(" word ")

    def test_what_cannot_be_cut(self):
        for name in ("a.txt", "b.jsonl", "b"):
            assert Span(name).can_be_cut
        for name in ("a.txt.gz", "b.jsonl.zst", "c.parquet"):
            assert not Span(name).can_be_cut
        assert [Span(name).kind for name in ("a.JSONL.gz", "a.gz", "a.parquet", "a.csv")] == [
            ".jsonl", "text", ".parquet", "text",
        ]  # fmt: skip


class TestSetApart:
    @given(st.lists(st.text("a\n", max_size=6), max_size=4), st.data())
    def test_however_documents_are_cut(self, documents: list[str], data: st.DataObject):
        def cut(text: str) -> Iterator[Piece]:
            cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
            parts = [text[a:b] for a, b in pairwise(cuts)] or [""]
            last = len(parts) - 1
            for number, part in enumerate(parts):
                yield Piece(part, begins=number == 0, ends=number == last)

        apart = list(set_apart(piece for text in documents for piece in cut(text)))
        stripped = [text.strip("\n") for text in documents if text.strip("\n")]
        assert texts(apart) == "".join(f"{text}\n\n" for text in stripped)
        assert sum(piece.begins for piece in apart) == len(stripped)
        assert all(piece.text for piece in apart)

    def test_a_part_goes_on(self):
        pieces = [Piece("\nb\n", False, False), Piece("\n", False, False)]
        assert texts(set_apart(pieces)) == "\nb\n\n"
        assert texts(set_apart([*pieces, Piece("", False, True)])) == "\nb\n\n"


def test_a_folder_has_all_kinds_of_text(tmp_path: Path):
    for name in ("b.md", "a.txt.gz", "c.jsonl.xz", "d.parquet", "e.gz", "f.csv", "g.csv.gz"):
        (tmp_path / name).touch()
    names = [path.name for path in find_files(str(tmp_path))]
    assert names == ["a.txt.gz", "b.md", "c.jsonl.xz", "d.parquet"]


def test_blocks_stay_small(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("some words " * 600_000)
    lengths = [len(piece.text) for piece in read_pieces(Span(str(path)))]
    assert sum(lengths) == 6_600_000
    assert max(lengths) <= sources.BLOCK + 10
    path.write_text("endless" * 1_000_000)
    lengths = [len(piece.text) for piece in read_pieces(Span(str(path)))]
    assert max(lengths) <= sources.LONGEST + sources.BLOCK


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("a.parquet", "pyarrow", "data"), ("a.txt.zst", "zstandard", "data")],
)
def test_a_missing_package_is_named(
    name: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / name).touch()
    for module in [*sys.modules, package]:
        if module.partition(".")[0] == package:
            monkeypatch.setitem(sys.modules, module, None)
    wanted = f"this needs the package {package}: pip install 'openxlstm[{extra}]'"
    assert message(Span(str(tmp_path / name))) == wanted
