"""Pieces of words: any text and back, in files that `tokenizers` reads and writes."""

import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openxlstm.data import bpe
from openxlstm.data.bpe import BPETokenizer, sampled
from openxlstm.data.tokenizer import load_tokenizer, make_tokenizer
from openxlstm.errors import UserError
from openxlstm.generation.text import whole_characters

tokenizers = pytest.importorskip("tokenizers")

TEXT = "the cat sat on the mat, and then the hen sat on the fox.\n\n  Größer! " * 20
TEXT += "Before we proceed any further, hear me speak. " * 20
BPE = BPETokenizer.from_texts([TEXT], vocab_size=300)
WELL_FORMED = st.text(st.characters(exclude_categories=["Cs"]))


def metaspace() -> BPETokenizer:
    """Words with a mark for the space before them, as in SentencePiece."""
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"▁the": 0, "▁cat": 1, "s": 2, "?": 3}, unk_token="?")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    words.decoder = tokenizers.decoders.Metaspace()
    return BPETokenizer(words)


@given(WELL_FORMED)
def test_decode_undoes_encode(text: str):
    ids = BPE.encode(text)
    assert ids.dtype == np.int32
    assert BPE.decode(ids) == BPE.decode(ids.tolist()) == text


def test_what_is_frequent_is_one_token():
    assert BPE.vocab_size == 300
    assert len(BPE.encode(" the the the")) == 3
    assert len(BPE.encode(TEXT)) < len(TEXT) / 2
    assert len(BPE.encode("xyzzy")) == 5


@given(st.text(st.sampled_from("the 's  \n\t\r!1é€\u3000\x1c\x85\xa0.-_²"), max_size=60))
def test_a_text_is_read_in_pieces_as_in_one(text: str):
    whole = BPE._tokenizer.encode(text, add_special_tokens=False).ids
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "_PIECE", 3)
        assert BPE.encode(text).tolist() == whole


def test_learning_repeats():
    again = make_tokenizer("bpe", iter([TEXT]), vocab_size=300)
    assert again.to_json() == BPE.to_json()
    with pytest.raises(UserError, match="contains half a character"):
        BPE.encode("a\ud800")


def test_its_file_is_that_of_tokenizers(tmp_path: Path):
    BPE.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode("then the hen").ids == BPE.encode("then the hen").tolist()
    again = load_tokenizer(tmp_path)
    assert isinstance(again, BPETokenizer)
    assert again.to_json() == BPE.to_json()
    theirs.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).to_json() == BPE.to_json()


def test_transformers_opens_it(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    BPE.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert theirs.encode(TEXT) == BPE.encode(TEXT).tolist()


def test_another_kind_of_theirs(tmp_path: Path):
    words = metaspace()
    words.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.vocab_size == 4
    assert again.encode("the cat the").tolist() == [0, 1, 0]
    assert again.decode([0, 1, 0]) == "the cat the"


def test_nothing_is_cut_off_or_filled_up(tmp_path: Path):
    theirs = tokenizers.Tokenizer.from_str(BPE.to_json())
    theirs.enable_truncation(3)
    theirs.enable_padding(length=8)
    theirs.save(str(tmp_path / "tokenizer.json"))
    again = load_tokenizer(tmp_path)
    assert again.encode("hen").tolist() == BPE.encode("hen").tolist()
    assert again.encode(TEXT).tolist() == BPE.encode(TEXT).tolist()


def test_ids_with_gaps():
    gaps = BPETokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 9})))
    assert gaps.vocab_size == 10


@pytest.mark.parametrize("ids", [[-1], [300], [0.5]])
def test_decode_refuses_what_is_no_id(ids: list[int]):
    with pytest.raises(UserError, match=r"not a token id|one-dimensional integers"):
        BPE.decode(ids)


def test_a_damaged_file(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unheard"}, "version": "1.0"}')
    with pytest.raises(UserError, match="cannot be used: the package tokenizers cannot read it"):
        load_tokenizer(tmp_path)


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    BPE.save(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for make in (lambda: make_tokenizer("bpe", ["a"]), lambda: load_tokenizer(tmp_path)):
        with pytest.raises(UserError, match=r"tokenizers: pip install 'openxlstm\[tokenizers\]'"):
            make()


@given(st.lists(st.text("ab", max_size=5), max_size=40), st.integers(1, 50))
def test_a_sample_is_even_and_small(pieces: list[str], limit: int):
    kept = sampled(iter(pieces), limit)
    assert sum(map(len, kept)) <= max(limit, len(pieces[0]) if pieces else 0)
    strides = [pieces[:: 2**n] for n in range(7)]
    assert kept in strides
    assert kept == next(s for s in strides if sum(map(len, s)) <= limit or len(s) == 1 or not s)


def test_what_is_learned_from_is_bounded():
    endless = (f"words {number} and more " * 1000 for number in range(10**9))
    few = BPETokenizer.from_texts(islice(endless, 50), vocab_size=257, sample_mb=0.01)
    assert few.vocab_size == 257


@pytest.mark.parametrize("tokenizer", [BPE, metaspace()], ids=["bpe", "words"])
@given(data=st.data())
def test_it_can_be_read_piece_by_piece(tokenizer: BPETokenizer, data: st.DataObject):
    """As generation does, which shows no half of a character."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    assert "".join(whole_characters(tokenizer, ids)) == tokenizer.decode(ids)
    if tokenizer is BPE:
        text = data.draw(WELL_FORMED.filter(lambda text: "\ufffd" not in text))
        pieces = list(whole_characters(tokenizer, tokenizer.encode(text).tolist()))
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)
