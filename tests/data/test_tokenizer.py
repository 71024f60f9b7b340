"""Text to ids and back, at once and through a file."""

import json
import sys
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openxlstm.data.tokenizer import (
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    encode_documents,
    find_tokenizer,
    load_tokenizer,
    make_tokenizer,
)
from openxlstm.data.tokenizer_json import (
    describe_bytes,
    describe_characters,
    described_characters,
    describes_bytes,
)
from openxlstm.errors import UserError

TEXT = "Größer als 1 €,\n\tsagt 😀.\0\u2028\ufeff\U0010ffff"
LONG = "First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 20_000
WELL_FORMED = st.text(st.characters(exclude_categories=["Cs"]))
"""Any text without lone surrogates."""

kinds = pytest.mark.parametrize("kind", ["char", "byte"])


@given(WELL_FORMED.filter(bool), st.data())
@kinds
def test_decode_undoes_encode(kind: str, text: str, data: st.DataObject):
    tokenizer = make_tokenizer(kind, [text])
    ids = tokenizer.encode(text)
    assert ids.ndim == 1
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == text
    part = data.draw(st.text(st.sampled_from(text)))
    assert tokenizer.decode(tokenizer.encode(part)) == part


@kinds
@given(text=WELL_FORMED.filter(bool))
def test_file_keeps_the_tokenizer(tmp_path_factory: pytest.TempPathFactory, kind: str, text: str):
    folder = tmp_path_factory.getbasetemp() / "run" / kind
    tokenizer = make_tokenizer(kind, [text])
    tokenizer.save(folder)
    again = load_tokenizer(folder)
    assert type(again) is type(tokenizer)
    assert again.vocab_size == tokenizer.vocab_size
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert {file.name for file in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


def test_characters_are_sorted():
    tokenizer = CharTokenizer.from_texts(["to be,", " or not"])
    assert tokenizer.characters == " ,benort"
    assert tokenizer.vocab_size == 8
    assert tokenizer.encode("bento").tolist() == [2, 3, 4, 7, 5]


def test_bytes_are_utf8():
    assert ByteTokenizer().encode("a€").tolist() == [0x61, 0xE2, 0x82, 0xAC]
    assert ByteTokenizer().decode([0x61, 0xE2, 0x82]) == "a\ufffd"
    assert ByteTokenizer().vocab_size == 256


@pytest.mark.parametrize(("size", "dtype"), [(256, np.uint8), (257, np.int32), (70_000, np.int32)])
def test_ids_are_as_small_as_they_can_be(size: int, dtype: type):
    text = "".join(map(chr, range(0xE000, 0xE000 + size)))
    ids = CharTokenizer(text).encode(text)
    assert ids.dtype == dtype
    assert ids.tolist() == list(range(size))


@kinds
def test_ids_can_be_written_to(kind: str):
    ids = torch.from_numpy(make_tokenizer(kind, [TEXT]).encode(TEXT))  # warns if they are read-only
    ids[0] = 1


@kinds
def test_decode_takes_any_sequence(kind: str):
    tokenizer = make_tokenizer(kind, [TEXT])
    ids = tokenizer.encode(TEXT)
    for same in (ids.tolist(), iter(ids.tolist()), tuple(ids), ids.astype(np.int64)):
        assert tokenizer.decode(same) == TEXT
    for tensor in (torch.from_numpy(ids), torch.from_numpy(ids).long()):
        assert tokenizer.decode(tensor) == TEXT  # pyright: ignore[reportArgumentType]
    for nothing in ([], np.array([], np.int64), torch.tensor([])):
        assert tokenizer.decode(nothing) == ""  # pyright: ignore[reportArgumentType]
    assert tokenizer.encode("").tolist() == []


@kinds
@pytest.mark.parametrize(
    "ids", [[-1], [0, 256], [10**9], [10**30], [0.5], ["a"], [True], np.zeros((1, 1), np.int64)]
)
def test_decode_refuses_what_is_no_id(kind: str, ids: list[int]):
    with pytest.raises(UserError, match=r"not a token id|one-dimensional integers"):
        make_tokenizer(kind, [TEXT]).decode(ids)


@pytest.mark.parametrize("place", [0, 1000, 200_000])
@pytest.mark.parametrize(
    ("character", "name"),
    [("€", "'€' (U+20AC)"), ("\x07", r"'\x07' (U+0007)"), ("😀", "'😀' (U+1F600)"),
     ("\udce9", r"'\udce9' (U+DCE9)"), ("\U0010ffff", r"'\U0010ffff' (U+10FFFF)")],
)  # fmt: skip
def test_unknown_character(character: str, name: str, place: int):
    tokenizer = CharTokenizer.from_texts([LONG])
    with pytest.raises(UserError) as caught:
        tokenizer.encode(LONG[:place] + character + LONG[place:])
    assert f"has never seen {name}: remove it" in str(caught.value)


@kinds
@pytest.mark.parametrize("text", ["a\ud800", chr(0xD83D) + chr(0xDE00)])
def test_half_characters_are_refused(kind: str, text: str):
    with pytest.raises(UserError, match=r"contains U\+D8(00|3D), which is half a character"):
        make_tokenizer(kind, [text]).encode(text)


def test_nothing_to_make_it_from():
    with pytest.raises(UserError, match="at least one character"):
        make_tokenizer("char", [])


def test_unknown_kind():
    with pytest.raises(
        UserError, match="no tokenizer 'word': choose char, byte or bpe, or give the path"
    ):
        make_tokenizer("word", [TEXT])


def test_a_file_of_before(tmp_path: Path):
    """When tokenizers of ours had a format of their own."""
    before = {"format": "openxlstm-tokenizer", "version": 1, "kind": "char", "characters": "ba€"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(before))
    characters = load_tokenizer(tmp_path)
    assert isinstance(characters, CharTokenizer)
    assert characters.to_json() == CharTokenizer("ba€").to_json()
    (tmp_path / "tokenizer.json").write_text(json.dumps({**before, "kind": "byte"}))
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)


def test_no_package_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for tokenizer in (CharTokenizer("ba€"), ByteTokenizer()):
        tokenizer.save(tmp_path)
        assert type(load_tokenizer(tmp_path)) is type(tokenizer)


@pytest.mark.parametrize("change", [
    {"normalizer": {"type": "Lowercase"}}, {"added_tokens": [{"content": "€"}]},
    {"model": {"type": "WordLevel", "vocab": {"b": 0, "a": 2}, "unk_token": ""}},
    {"model": {"type": "WordLevel", "vocab": {"b": 0, "aa": 1}, "unk_token": ""}},
    {"model": {"type": "WordLevel", "vocab": {"b": 0, "a": "1"}, "unk_token": ""}},
    {"model": {"type": "WordLevel", "vocab": {"b": 0, "a": 1}, "unk_token": "b"}},
])  # fmt: skip
def test_what_is_not_quite_ours(change: dict[str, Any]):
    """Goes to the package, which knows what it means."""
    assert described_characters(describe_characters("ba€")) == "ba€"
    assert described_characters({**describe_characters("ba€"), **change}) is None
    assert not describes_bytes({**describe_bytes(), **change})


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fill(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    CharTokenizer("old").save(tmp_path)
    monkeypatch.setattr("os.fsync", fill)
    with pytest.raises(OSError, match="No space"):
        CharTokenizer("new").save(tmp_path)
    assert load_tokenizer(tmp_path).decode([0, 1, 2]) == "old"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ("", "damaged"),
        ('{"format": "openxlstm-tok', "damaged"),
        ("[" * 100_000, "damaged"),
        ("\x80\xff", "damaged"),
        ("[]", "not a tokenizer of openxlstm"),
        ({"format": "other"}, "not a tokenizer of openxlstm"),
        ({"version": 2}, "install a newer openxlstm"),
        ({"version": None}, "install a newer openxlstm"),
        ({"kind": "word"}, "no tokenizer 'word'"),
        ({"kind": ["char"]}, "no tokenizer"),
        ({"kind": "char"}, "'characters' is not a string"),
        ({"kind": "char", "characters": ["a"]}, "'characters' is not a string"),
        ({"kind": "char", "characters": ""}, "at least one character"),
        ({"kind": "char", "characters": "aba"}, "occurs twice"),
        ({"kind": "char", "characters": "a\ud800"}, "half a character"),
    ],
)
def test_bad_file(tmp_path: Path, content: str | dict[str, object] | None, reason: str):
    path = tmp_path / "tokenizer.json"
    if isinstance(content, dict):
        content = json.dumps({"format": "openxlstm-tokenizer", "version": 1, **content})
    if content is not None:
        path.write_text(content, encoding="latin-1")
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@kinds
def test_is_fast(kind: str):
    tokenizer: Tokenizer = make_tokenizer(kind, [LONG])
    seconds = []
    for _ in range(5):
        start = process_time()
        tokenizer.encode(LONG)
        seconds.append(process_time() - start)
    assert len(LONG) / min(seconds) > 50e6


@kinds
def test_documents_make_one_row(kind: str):
    documents = ["ab", "ä", "bba"]
    tokenizer = make_tokenizer(kind, documents)
    tokens = encode_documents(tokenizer, documents)
    ids, begins = np.zeros(len(tokens), np.int64), np.zeros(len(tokens), np.bool_)
    tokens.read(0, ids, begins)
    assert np.array_equal(ids, tokenizer.encode("abäbba"))
    places = [len(tokenizer.encode(text)) for text in ("", "ab", "abä")]
    assert np.flatnonzero(begins).tolist() == places
    begins[:] = False
    encode_documents(tokenizer, documents[:1]).read(0, ids[:2], begins)
    assert not begins.any(), "a document that is alone"


@kinds
def test_a_configuration_names_a_kind_or_a_path(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / kind).mkdir()
    assert find_tokenizer(kind, ["ab"]).vocab_size == (2 if kind == "char" else 256)
    CharTokenizer("xyz").save(tmp_path / "run")
    for path in ("run", "run/tokenizer.json"):
        assert find_tokenizer(path, ["ab"]).decode([0, 1, 2]) == "xyz"
    with pytest.raises(UserError, match="no tokenizer 'nowhere'"):
        find_tokenizer("nowhere", ["ab"])
