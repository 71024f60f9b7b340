"""Pieces of text join to the text of all tokens, whole characters only, up to the stop string."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openxlstm.errors import UserError
from openxlstm.generation.text import generate, until, whole_characters


class Bytes:
    vocab_size = 256

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8)

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


class Pairs:
    """Tokens of one byte or two, as in byte-pair encodings: 256·a + b is the bytes a, b."""

    vocab_size = 2**16

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        parts = [divmod(i, 256) if i > 255 else (i,) for i in ids]
        return b"".join(map(bytes, parts)).decode(errors="replace")


class Letters:
    """Characters, like a tokenizer made from a text."""

    def __init__(self, letters: str) -> None:
        self.letters = letters
        self.vocab_size = len(letters)

    def encode(self, text: str) -> list[int]:
        return [self.letters.index(letter) for letter in text]  # ValueError for one it has not

    def decode(self, ids: list[int]) -> str:
        return "".join(self.letters[i] for i in ids)


class Marked:
    """Words with a mark for the space before them, which the first of a text leaves out."""

    vocab_size = 4

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        words = [["▁the", "▁cat", "s", ""][i] for i in ids]
        return "".join(words).replace("▁", " ").removeprefix(" ")


LETTERS = Letters("abcdefghijklmno \n")  # 17, like the model
BYTE = st.one_of(st.integers(0, 255), st.sampled_from([*"é€😀\ufffdA".encode(), 0xF0, 0x80]))


@given(st.lists(BYTE, max_size=40))
def test_pieces_join_to_the_text_of_all_bytes(ids: list[int]):
    assert "".join(whole_characters(Bytes(), ids)) == Bytes().decode(ids)


@given(st.lists(st.one_of(BYTE, st.tuples(BYTE, BYTE).map(lambda p: 256 * p[0] + p[1]))))
def test_pieces_join_to_the_text_of_all_pairs(ids: list[int]):
    assert "".join(whole_characters(Pairs(), ids)) == Pairs().decode(ids)


@given(st.lists(st.integers(0, 3), max_size=12))
def test_pieces_join_to_the_text_of_all_words(ids: list[int]):
    assert "".join(whole_characters(Marked(), ids)) == Marked().decode(ids)


@given(st.text(max_size=20))
def test_pieces_are_whole_characters(text: str):
    pieces = list(whole_characters(Bytes(), text.encode()))
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert pieces == list(text)


def test_invalid_bytes_do_not_pile_up():
    """Each token is decoded with the one or two before it, not with all that came before."""

    class Counting(Bytes):
        longest = 0

        def decode(self, ids: list[int]) -> str:
            self.longest = max(self.longest, len(ids))
            return super().decode(ids)

    tokenizer = Counting()
    assert "".join(whole_characters(tokenizer, [0x80] * 500 + [0xE2] * 500)) == "\ufffd" * 1000
    assert tokenizer.longest <= 4


PIECES = st.lists(st.text("ab", max_size=3), max_size=12)


@given(PIECES, st.text("ab", min_size=1, max_size=5))
def test_text_ends_before_the_first_stop(pieces: list[str], stop: str):
    found = list(until(pieces, stop))
    assert "".join(found) == "".join(pieces).partition(stop)[0]
    assert "" not in found


@given(PIECES, st.text("ab", min_size=1, max_size=5))
def test_only_a_possible_start_of_stop_is_held_back(pieces: list[str], stop: str):
    out = ""
    read = ""

    def reading():
        nonlocal read
        for piece in pieces:
            # Each next piece is asked for only when all that is certain is out.
            assert stop not in read
            assert read.startswith(out)
            assert stop.startswith(read[len(out) :])
            read += piece
            yield piece

    for piece in until(reading(), stop):
        out += piece


def test_generate_stops_at_a_string_split_over_tokens(script: Any):
    model = script(list(b"So said he. END of it"))
    pieces = list(generate(model, Bytes(), "x", temperature=0, stop=" END"))
    assert "".join(pieces) == "So said he."
    assert pieces[2] == " s"  # the space might have begun the stop string
    model = script(list(b"A B"))
    assert "".join(generate(model, Bytes(), "x", temperature=0, stop="BC", max_tokens=3)) == "A B"


def test_generate_holds_back_parts_of_characters(script: Any):
    ids = list("né €😀!".encode())
    pieces = list(generate(script(ids), Bytes(), "x", temperature=0, max_tokens=len(ids)))
    assert pieces == list("né €😀!")
    cut = list(generate(script(ids), Bytes(), "x", temperature=0, max_tokens=6))
    assert cut == ["n", "é", " ", "\ufffd"]  # what is held is flushed at the end


def test_the_seed_decides_the_text(model: Any):
    first, again, other = (
        "".join(generate(model, LETTERS, "abc", max_tokens=60, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(first) == 60
    assert "".join(generate(model, LETTERS, "abc", max_tokens=60)) != "".join(
        generate(model, LETTERS, "abc", max_tokens=60)
    )


def test_the_prompt_is_read(toy: Any):
    list(generate(toy, LETTERS, "abcde", max_tokens=2))
    assert toy.calls == [(1, 5), (1, 1)]


def test_an_empty_prompt_starts_from_a_newline(script: Any):
    model = script([1], vocab_size=17)
    assert "".join(generate(model, LETTERS, "", max_tokens=2)) == "bb"
    assert model.prompt == [16]


class Empty(Letters):
    def encode(self, text: str) -> list[int]:
        return []


@pytest.mark.parametrize("tokenizer", [Letters("abc"), Empty("abc")])
def test_an_empty_prompt_without_a_newline_starts_from_token_0(script: Any, tokenizer: Letters):
    model = script([1], vocab_size=3)
    assert "".join(generate(model, tokenizer, "", max_tokens=2, temperature=0)) == "bb"
    assert model.prompt == [0]


def test_tokens_that_the_tokenizer_has_not_are_never_picked(toy: Any):
    few = Letters("abc")
    text = "".join(generate(toy, few, "a", max_tokens=300, temperature=3.0, seed=0))
    assert set(text) == set("abc")


def test_no_tokens_is_no_text(toy: Any):
    assert list(generate(toy, LETTERS, max_tokens=0)) == []
    assert toy.calls == []


def test_without_max_tokens_it_is_endless(toy: Any):
    assert len(list(islice(generate(toy, LETTERS, max_tokens=None), 300))) == 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": -1}, "max_tokens must be 0 or more"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 2.0}, "top_p=2.0"),
        ({"stop": ""}, "stop is empty"),
    ],
)
def test_mistakes_are_errors_when_called(toy: Any, options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        generate(toy, LETTERS, "abc", **options)


def test_a_tokenizer_that_does_not_fit_is_an_error(toy: Any):
    with pytest.raises(UserError, match="the tokenizer has 256 tokens and the model 17"):
        generate(toy, Bytes(), "abc")
