"""A row in pieces reads like one in memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openxlstm.data.corpora import split
from openxlstm.data.tokens import Tokens
from openxlstm.errors import UserError

PIECES = st.lists(st.lists(st.tuples(st.integers(0, 255), st.booleans()), max_size=9), max_size=6)
"""Ids, and whether each begins a document."""


def read(tokens: Tokens, place: int, length: int) -> tuple[list[int], list[bool]]:
    ids, begins = np.zeros(length, np.int64), np.zeros(length, np.bool_)
    tokens.read(place, ids, begins)
    return ids.tolist(), begins.tolist()


@given(PIECES, st.sampled_from([np.uint8, np.uint16, np.uint32, np.int64]), st.data())
def test_any_span_is_that_of_the_whole(
    pieces: list[list[tuple[int, bool]]], dtype: type, data: st.DataObject
):
    tokens = Tokens(
        *(np.array([i for i, _ in piece], dtype) for piece in pieces),
        starts=[np.flatnonzero([b for _, b in piece]) for piece in pieces],
    )
    whole = [both for piece in pieces for both in piece]
    assert len(tokens) == len(whole)
    for _ in range(2):  # the whole, then a view of a part, then a view of that
        place = data.draw(st.integers(0, len(whole)))
        length = data.draw(st.integers(0, len(whole) - place))
        ids, begins = read(tokens, place, length)
        assert list(zip(ids, begins, strict=True)) == whole[place : place + length]
        assert read(tokens.as_one_document(), place, length) == (ids, [False] * length)
        first = data.draw(st.integers(-len(whole), len(whole)))
        stop = data.draw(st.none() | st.integers(-len(whole), len(whole)))
        tokens, whole = tokens[first:stop], whole[first:stop]
        assert len(tokens) == len(whole)
    with pytest.raises(IndexError):
        read(tokens, len(whole), 1)
    with pytest.raises(IndexError):
        read(tokens, -1, 1)


def test_memory_is_mapped_and_shared(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.arange(10, dtype=np.uint16))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    train, val = split(Tokens(mapped, torch.arange(10, 15)), 0.2)
    assert (len(train), len(val)) == (12, 3)
    assert read(val, 0, 3)[0] == [12, 13, 14]
    written = np.arange(10)
    tokens = Tokens(written)[2:]
    written[2] = 77
    assert read(tokens, 0, 2)[0] == [77, 3]


@pytest.mark.parametrize("piece", [np.zeros((2, 2), np.int64), [0.5], [True]])
def test_what_is_no_row_of_ids(piece: object):
    with pytest.raises(UserError, match="one-dimensional integers"):
        Tokens(np.arange(3), piece)


def test_steps_are_refused():
    with pytest.raises(ValueError, match="steps of one"):
        Tokens(np.arange(9))[::2]
