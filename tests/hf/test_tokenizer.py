"""Tokenizers of runs in transformers: the same ids, the same text."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from openxlstm.data.tokenizer import (
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
    make_tokenizer,
)
from openxlstm.lm.model import LanguageModel

ALPHABET = "\0\t\n\r \"\\'.,aeExÄß€\u0301\u0308\u200d\u2028\u3000\ufeff😀👩\U0010ffff"
KINDS = ["char", "byte", "bpe"]

each_kind = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def opened(kind: str) -> tuple[Tokenizer, Any]:
    """A tokenizer of ours, and what transformers makes of its folder."""
    pytest.importorskip("tokenizers")
    options = {"vocab_size": 300} if kind == "bpe" else {}
    ours = make_tokenizer(kind, [ALPHABET + " the the axe"], **options)
    with tempfile.TemporaryDirectory() as folder:
        ours.save(folder)
        return ours, AutoTokenizer.from_pretrained(folder)


@each_kind
@given(text=st.text(ALPHABET))
def test_the_same_ids(kind: str, text: str) -> None:
    ours, theirs = opened(kind)
    ids = ours.encode(text).tolist()
    assert theirs(text)["input_ids"] == theirs.encode(text) == ids
    assert theirs.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("kind", ["byte", "bpe"])
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text(kind: str, text: str) -> None:
    ours, theirs = opened(kind)
    assert theirs.encode(text) == ours.encode(text).tolist()


@each_kind
@given(data=st.data())
def test_any_ids(kind: str, data: st.DataObject) -> None:
    """Bytes that are no UTF-8 as well."""
    ours, theirs = opened(kind)
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1)))
    assert theirs.decode(ids) == ours.decode(ids)


@pytest.mark.parametrize("character", ["y", "é", "😁", "▁", "\x01"])
def test_an_unknown_character_is_an_error(character: str) -> None:
    _, theirs = opened("char")
    with pytest.raises(Exception, match=r"Missing \[UNK\] token"):
        theirs.encode(f"a{character}")


@each_kind
def test_what_they_save_opens_here(kind: str, tmp_path: Path) -> None:
    ours, theirs = opened(kind)
    theirs.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert type(again) is type(ours)
    assert again.vocab_size == ours.vocab_size == len(theirs)
    assert again.encode("axe").tolist() == ours.encode("axe").tolist()


@each_kind
def test_padding(kind: str, tmp_path: Path) -> None:
    """No token is special until somebody says so; it then has an id that the model needs not have.

    A tokenizer with more tokens than ours is one of the package `tokenizers`."""
    ours, _ = opened(kind)
    ours.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert not theirs.all_special_tokens
    theirs.add_special_tokens({"pad_token": "<pad>"})
    assert theirs.pad_token_id == ours.vocab_size
    found = theirs(["axe", "x"], padding=True, return_tensors="pt")
    ids, mask = found["input_ids"], found["attention_mask"]
    assert set(found) == {"input_ids", "attention_mask"}
    assert mask[0].all()
    assert mask[1].tolist() == [0] * (len(mask[1]) - 1) + [1]
    assert ids[1, -1:].tolist() == ours.encode("x").tolist()
    theirs.save_pretrained(tmp_path / "padded")
    again = load_tokenizer(tmp_path / "padded")
    assert again.vocab_size == ours.vocab_size + 1
    assert not isinstance(again, CharTokenizer | ByteTokenizer)
    assert again.encode("axe").tolist() == ours.encode("axe").tolist()


@each_kind
def test_beside_a_model(kind: str, tmp_path: Path, language: LanguageModel) -> None:
    ours, _ = opened(kind)
    ours.save(tmp_path)
    language.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).encode("axe") == ours.encode("axe").tolist()
    (tmp_path / "tokenizer_config.json").unlink()
    assert AutoTokenizer.from_pretrained(tmp_path).encode("axe") == ours.encode("axe").tolist()
