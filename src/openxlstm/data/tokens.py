"""A sequence of token ids, in memory or memory-mapped, and the starts of its documents."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Self

import numpy as np

from openxlstm.errors import UserError


class Tokens:
    """A sequence of N ids. Reading a span copies that span only.

    The sequence may consist of several pieces, arrays in memory or memory-mapped files. A slice is
    a view.
    """

    def __init__(self, *pieces: Any, starts: Sequence[Any] = ()) -> None:
        """
        Args:
            pieces: arrays or tensors of ids, each 1-D and of any integer dtype.
            starts: for each piece, the positions in it at which a document begins, 1-D, int64,
                ascending. Empty if all tokens are one document, so that the state is never reset.

        Raises:
            UserError: if a piece is not one-dimensional or not of an integer dtype.
        """
        # Plain arrays: slicing takes a third of the time of an np.memmap.
        self._pieces = tuple(np.asarray(piece) for piece in pieces)
        self._starts = tuple(np.asarray(places, np.int64) for places in starts)
        assert len(starts) in (0, len(pieces))
        for piece in self._pieces:
            if piece.ndim != 1 or piece.dtype.kind not in "iu":
                raise UserError(
                    f"tokens must be one-dimensional integers, not {piece.dtype} "
                    f"of shape {piece.shape}"
                )
        self._ends = tuple(accumulate(map(len, self._pieces)))
        self._span = range(self._ends[-1] if self._ends else 0)  # of all pieces

    def __len__(self) -> int:
        return len(self._span)

    def __getitem__(self, part: slice) -> Self:
        """A view of a range of tokens."""
        span = self._span[part]
        if span.step != 1:
            raise ValueError("tokens are sliced in steps of one")
        return self._like(_span=span)

    def as_one_document(self) -> Self:
        """The same tokens without starts of documents."""
        return self._like(_starts=())

    def read(self, place: int, ids: np.ndarray, begins: np.ndarray | None = None) -> None:
        """Copies T tokens from position `place` on.

        Args:
            place: position of the first token, from 0.
            ids: (T,), is filled with the tokens.
            begins: (T,) bool, is set to true where a document begins; other elements are unchanged.
        """
        if not 0 <= place <= len(self) - len(ids):
            raise IndexError(f"{place} to {place + len(ids)} is not within {len(self)} tokens")
        place += self._span.start
        number, done = bisect_right(self._ends, place), 0
        while done < len(ids):
            piece = self._pieces[number]
            inside = place + done - (self._ends[number] - len(piece))
            found = piece[inside : inside + len(ids) - done]
            ids[done : done + len(found)] = found
            if begins is not None and self._starts:
                starts = self._starts[number]
                first, stop = starts.searchsorted((inside, inside + len(found)))
                begins[starts[first:stop] + (done - inside)] = True
            done += len(found)
            number += 1

    def read_rows(self, places: np.ndarray, ids: np.ndarray, begins: np.ndarray) -> None:
        """`read` for many places (R,) at once, into ids (R, T) and begins (R, T).

        Tokens in a single piece, the common case, are read without a loop.
        """
        if len(self._pieces) != 1:
            for place, row, begin in zip(places.tolist(), ids, begins, strict=True):
                self.read(place, row, begin)
            return
        T = ids.shape[1]
        if not 0 <= places.min() <= places.max() <= len(self) - T:
            raise IndexError(f"{places} and {T} more are not within {len(self)} tokens")
        places = places + self._span.start
        ids[:] = self._pieces[0][places[:, None] + np.arange(T)]
        if self._starts:
            (starts,) = self._starts
            spans = starts.searchsorted([places, places + T])
            for row in np.flatnonzero(spans[1] > spans[0]).tolist():
                begins[row, starts[slice(*spans[:, row])] - places[row]] = True

    def _like(self, **changes: Any) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, **changes)
        return other


def checked_ids(ids: Any, vocab_size: int) -> np.ndarray:
    """Converts ids (a list, an iterator, an array or a tensor) to a 1-D array.

    Raises:
        UserError: if they are not integers from 0 to vocab_size - 1.
    """
    if not isinstance(ids, np.ndarray):
        # A tensor has tolist, which needs no torch here and works on any device.
        ids = np.asarray(ids.tolist() if hasattr(ids, "tolist") else list(ids))
    if ids.size == 0:
        return ids.astype(np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UserError(
            f"decode takes one-dimensional integers, not {ids.dtype} of shape {ids.shape}"
        )
    if ids.min() < 0 or ids.max() >= vocab_size:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise UserError(f"{wrong} is not a token id: ids are 0 to {vocab_size - 1}")
    return ids
