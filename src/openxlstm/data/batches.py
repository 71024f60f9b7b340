"""Batches of token ids to train on and to evaluate with.

An iterator is resumable: its state is a few whole numbers, and what comes after `load_state_dict`
is bit for bit what would have come without a break.

Several processes share a batch: each reads its own rows, and no others, of the batch that one
process would have read. The state knows nothing of that, so that another number can go on.

B batch · T window · N tokens in a part of a corpus
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from openxlstm.data.tokens import Tokens
from openxlstm.errors import UserError


class Batch(NamedTuple):
    """What goes into a model, and what should come out."""

    x: Tensor
    """Token ids, (B, T) int64."""
    y: Tensor
    """The token after each one in `x`, (B, T) int64."""
    reset: Tensor | None = None
    """Where the state must be emptied before a token is read, (B, T) bool; None for nowhere."""


class _Batches:
    """What random windows and streams have in common: corpora, and the sizes of a batch."""

    def __init__(
        self,
        tokens: Tokens | Sequence[Tokens],
        batch_size: int,
        window: int,
        *,
        weights: Sequence[float] = (),
        first_window: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        part: str = "the training part",
    ) -> None:
        """
        Args:
            tokens: a corpus, or several to be mixed.
            batch_size: sequences in a batch, B, of all processes together.
            window: tokens of each of them in a batch, T; the last one has a target too.
            weights: the share of each corpus, on any scale; none for shares by size.
            first_window: T when the run starts, to be doubled by `advance`; None for `window`.
            rank: which of the processes this is.
            world_size: processes that share a batch: each has B / world_size of the rows.
            part: what error messages call `tokens`.

        Raises:
            UserError: if a corpus is shorter than T + 1, a size or a weight is not positive, there
                are more or fewer weights than corpora, or B cannot be shared equally.
        """
        _check_sizes(batch_size, window)
        self.corpora = _as_corpora(tokens)
        for number, corpus in enumerate(self.corpora, 1):
            if len(corpus) < window + 1:
                which = f" of corpus {number}" if len(self.corpora) > 1 else ""
                raise UserError(
                    f"{part}{which} has {len(corpus)} tokens, but a window of {window} needs "
                    f"{window + 1}: give more text or a smaller --window"
                )
        if weights and (len(weights) != len(self.corpora) or min(weights) <= 0):
            raise UserError(
                f"there are {len(self.corpora)} corpora, and the weights {list(weights)}: "
                "give each corpus one that is positive"
            )
        if batch_size % world_size:
            raise UserError(
                f"a batch of {batch_size} cannot be shared equally by {world_size} processes: "
                f"make --batch-size a multiple of {world_size}"
            )
        self.weights = tuple(weights or map(len, self.corpora))
        self.batch_size = batch_size
        self.window = self._last_window = window
        self._first_window = first_window or window
        self._rank, self._world_size = rank, world_size
        self.advance(0.0)

    def __iter__(self) -> Self:
        return self

    def advance(self, share: float) -> None:
        """Sets T for the batches to come, from the share of the run that is done, in [0, 1].

        Each of T = first_window, twice that, and so on up to `window` has an equal share.
        """
        doublings = math.ceil(math.log2(self._last_window / self._first_window))
        self.window = min(self._first_window << int(share * (doublings + 1)), self._last_window)

    def _own(self, rows: int) -> slice:
        """Which of a batch's rows are this process's."""
        each = rows // self._world_size
        return slice(self._rank * each, (self._rank + 1) * each)


class RandomWindows(_Batches):
    """Batches of windows at random places, without end.

    The places depend on the seed and on the number of the batch alone. While windows are shorter
    than they will be there are more of them: as many times B as fit into the last window. Of
    several corpora, each window picks one by weight, and then a place in it.
    """

    def __init__(
        self,
        tokens: Tokens | Sequence[Tokens],
        batch_size: int,
        window: int,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """
        Args:
            seed: what the places are drawn with.
            options: and all others as for every kind of batches.
        """
        super().__init__(tokens, batch_size, window, **options)
        self.seed = seed
        self.step = 0

    def __next__(self) -> Batch:
        # Philox makes a stream of its own out of each (seed, step). torch.Generator would not do:
        # it heeds 32 bits of a seed, so that of 100,000 steps some two would draw the same places.
        key = np.array([self.seed % 2**64, self.step], np.uint64)
        random = np.random.Generator(np.random.Philox(key=key))
        self.step += 1
        rows = self.batch_size * (self._last_window // self.window)
        own = self._own(rows)
        # The last target of the last place is token N - 1.
        if len(self.corpora) == 1:
            (corpus,) = self.corpora
            places = random.integers(len(corpus) - self.window, size=rows)
            return _gather_at_once(corpus, places[own], self.window)
        shares = np.cumsum(self.weights)
        which = (shares / shares[-1]).searchsorted(random.random(rows), side="right")
        num_places = np.array([len(corpus) - self.window for corpus in self.corpora])
        places = random.integers(num_places[which])
        chosen = zip(which[own], places[own].tolist(), strict=True)
        return _gather([(self.corpora[int(k)], place) for k, place in chosen], self.window)

    def state_dict(self) -> dict[str, int]:
        """Where the iterator is."""
        return {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to where the iterator was that gave `state`, which had the same tokens and sizes."""
        self.seed, self.step = int(state["seed"]), int(state["step"])


class Streams(_Batches):
    """Batches in which each row reads on where it stopped, so that the state can be carried.

    The rows are dealt out to the corpora by weight. Of a corpus's R rows, row r starts at token
    r × (N - 1) / R. At the end a row goes on with the first token again, and `reset` is true there:
    in a lap it has read every token, with every target, once.
    """

    read = 0

    def __init__(
        self, tokens: Tokens | Sequence[Tokens], batch_size: int, window: int, **options: Any
    ) -> None:
        """
        Args:
            options: as for every kind of batches.

        Raises:
            UserError: if there are more corpora than rows, besides.
        """
        super().__init__(tokens, batch_size, window, **options)
        places: list[tuple[Tokens, int]] = [
            (corpus, row * (len(corpus) - 1) // rows)
            for corpus, rows in zip(self.corpora, deal(batch_size, self.weights), strict=True)
            for row in range(rows)
        ]
        self._first = places[self._own(batch_size)]

    def __next__(self) -> Batch:
        # A corpus's last token is a target alone.
        rows = [(corpus, (first + self.read) % (len(corpus) - 1)) for corpus, first in self._first]
        self.read += self.window
        return _gather(rows, self.window, laps=True)

    def state_dict(self) -> dict[str, int]:
        """Where the iterator is: tokens that each row has read."""
        return {"read": self.read}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to where the iterator was that gave `state`, which had the same tokens and rows."""
        self.read = int(state["read"])


def deal(rows: int, weights: Sequence[float]) -> list[int]:
    """How many of `rows` each corpus gets: by weight and largest remainder, but at least one.

    Raises:
        UserError: if there are not enough for that.
    """
    if rows < len(weights):
        raise UserError(
            f"a batch of {rows} has no row for each of {len(weights)} corpora: "
            "raise --batch-size, or give fewer corpora"
        )
    wanted = [rows * weight / sum(weights) for weight in weights]
    dealt = [max(1, int(share)) for share in wanted]
    while sum(dealt) != rows:
        short = [share - given for share, given in zip(wanted, dealt, strict=True)]
        if sum(dealt) < rows:
            dealt[short.index(max(short))] += 1
        else:
            dealt[short.index(min(s for s, d in zip(short, dealt, strict=True) if d > 1))] -= 1
    return dealt


def windows_in_order(
    tokens: Tokens | Sequence[Tokens], window: int, batch_size: int
) -> Iterator[Batch]:
    """A whole corpus as windows side by side: each token but the first is a target exactly once.

    The last batch may have fewer rows. What is left after the last whole window comes as a batch of
    its own, of shape (1, less than T). Several corpora come one after another, each from an empty
    state. For evaluation.

    Args:
        tokens: a corpus, or several.
        window: tokens in a window, T.
        batch_size: windows in a batch, B.

    Raises:
        UserError: if there are fewer than two tokens in one, or a size is not positive.
    """
    _check_sizes(batch_size, window)
    corpora = _as_corpora(tokens)
    if min(map(len, corpora)) < 2:
        raise UserError("the text to evaluate needs at least two tokens: give more text")
    return _in_order(corpora, window, batch_size)


def _in_order(corpora: Sequence[Tokens], window: int, batch_size: int) -> Iterator[Batch]:
    several = len(corpora) > 1
    for corpus in corpora:
        rest = (len(corpus) - 1) % window
        places = range(0, len(corpus) - 1 - rest, window)
        for first in range(0, len(places), batch_size):
            rows = [(corpus, place) for place in places[first : first + batch_size]]
            yield _gather(rows, window, laps=several)
        if rest:
            yield _gather([(corpus, len(corpus) - 1 - rest)], rest, laps=several)


def _gather(rows: Sequence[tuple[Tokens, int]], window: int, *, laps: bool = False) -> Batch:
    """The batch that reads `window` tokens of each row's corpus, from the row's place on.

    The state is emptied where a document begins. Where only the last token is left, which is a
    target alone, a row goes on with the first; with `laps`, the state is emptied at that too.
    """
    ids = np.empty((2, len(rows), window), np.int64)
    reset = np.zeros((len(rows), window), np.bool_)
    for (corpus, place), x, y, begins in zip(rows, *ids, reset, strict=True):
        done = 0
        while done < window:
            stop = min(window, done + len(corpus) - 1 - place)
            corpus.read(place, x[done:stop], begins[done:stop])
            corpus.read(place + 1, y[done:stop])
            begins[done] |= laps and place == 0
            done, place = stop, 0
    return _batch(ids[0], ids[1], reset)


def _gather_at_once(corpus: Tokens, places: np.ndarray, window: int) -> Batch:
    """The same for many places in one corpus, (R,), none of which comes to its end."""
    ids = np.empty((len(places), window + 1), np.int64)
    reset = np.zeros(ids.shape, np.bool_)
    corpus.read_rows(places, ids, reset)
    return _batch(ids[:, :-1], ids[:, 1:], reset[:, :-1])


def _batch(x: np.ndarray, y: np.ndarray, reset: np.ndarray) -> Batch:
    x_, y_, reset_ = (torch.from_numpy(np.ascontiguousarray(part)) for part in (x, y, reset))
    return Batch(x_, y_, reset_ if reset.any() else None)


def _as_corpora(tokens: Tokens | Iterable[Tokens]) -> tuple[Tokens, ...]:
    return (tokens,) if isinstance(tokens, Tokens) else tuple(tokens)


def _check_sizes(batch_size: int, window: int) -> None:
    for name, size in (("batch_size", batch_size), ("window", window)):
        if size < 1:
            raise UserError(f"{name} must be positive, not {size}")
