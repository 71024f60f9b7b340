"""Batches of token ids for training and evaluation.

Iterators are resumable: their state is a few integers, and after `load_state_dict` they yield the
same batches, bit for bit, as without the interruption.

Several processes share a batch: each reads its own rows of the batch that a single process would
have read. The state does not depend on the processes, so a run can resume on another number.

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
    """Inputs and targets of a model."""

    x: Tensor
    """Token ids, (B, T) int64."""
    y: Tensor
    """Targets: the token after each one in `x`, (B, T) int64."""
    reset: Tensor | None = None
    """True where the state is emptied before the token is read, (B, T) bool; None for nowhere."""


class _Batches:
    """Base of random windows and streams: the corpora and the sizes of a batch."""

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
            batch_size: sequences in a batch, B, over all processes.
            window: tokens per sequence, T; the last one has a target, too.
            weights: the share of each corpus, on any scale; empty for shares by size.
            first_window: T at the start of the run, doubled by `advance`; None for `window`.
            rank: index of this process.
            world_size: number of processes that share a batch; each has B / world_size rows.
            part: name of `tokens` in error messages.

        Raises:
            UserError: if a corpus is shorter than T + 1, a size or a weight is not positive, the
                numbers of weights and corpora differ, or B is not a multiple of world_size.
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
                f"there are {len(self.corpora)} corpora and the weights are {list(weights)}: "
                "give one positive weight per corpus"
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
        """Sets T for the next batches, from the completed share of the run, in [0, 1].

        T = first_window, twice that, and so on up to `window` each have an equal share.
        """
        doublings = math.ceil(math.log2(self._last_window / self._first_window))
        self.window = min(self._first_window << int(share * (doublings + 1)), self._last_window)

    def _own(self, rows: int) -> slice:
        """The rows of a batch that this process reads."""
        each = rows // self._world_size
        return slice(self._rank * each, (self._rank + 1) * each)


class RandomWindows(_Batches):
    """Infinite batches of windows at random places.

    The places depend only on the seed and the number of the batch. While windows are shorter than
    the last ones, a batch has more of them: B times the number that fits into the last window. With
    several corpora, each window picks one by weight and then a place in it.
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
            seed: seed of the random places.
            options: those of `_Batches`.
        """
        super().__init__(tokens, batch_size, window, **options)
        self.seed = seed
        self.step = 0

    def __next__(self) -> Batch:
        # Philox has a separate stream for each (seed, step). torch.Generator uses only 32 bits of a
        # seed, so that among 100,000 steps about two would draw the same places.
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
        """The position of the iterator."""
        return {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a position; the tokens and sizes must be the same."""
        self.seed, self.step = int(state["seed"]), int(state["step"])


class Streams(_Batches):
    """Batches in which each row continues where it stopped, so that the state can be carried.

    The rows are divided among the corpora by weight. Row r of a corpus's R rows starts at token
    r × (N - 1) / R. At the end, a row continues with the first token, and `reset` is true there. In
    one pass, a row reads every token, with every target, once.
    """

    read = 0

    def __init__(
        self, tokens: Tokens | Sequence[Tokens], batch_size: int, window: int, **options: Any
    ) -> None:
        """
        Args:
            options: those of `_Batches`.

        Raises:
            UserError: as `_Batches`, and if there are more corpora than rows.
        """
        super().__init__(tokens, batch_size, window, **options)
        places: list[tuple[Tokens, int]] = [
            (corpus, row * (len(corpus) - 1) // rows)
            for corpus, rows in zip(self.corpora, deal(batch_size, self.weights), strict=True)
            for row in range(rows)
        ]
        self._first = places[self._own(batch_size)]

    def __next__(self) -> Batch:
        # The last token of a corpus is only a target.
        rows = [(corpus, (first + self.read) % (len(corpus) - 1)) for corpus, first in self._first]
        self.read += self.window
        return _gather(rows, self.window, laps=True)

    def state_dict(self) -> dict[str, int]:
        """The position of the iterator: tokens that each row has read."""
        return {"read": self.read}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a position; the tokens and rows must be the same."""
        self.read = int(state["read"])


def deal(rows: int, weights: Sequence[float]) -> list[int]:
    """Divides rows among corpora by weight and largest remainder, with at least one row each.

    Raises:
        UserError: if there are fewer rows than corpora.
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
    """A corpus as adjacent windows, for evaluation. Each token but the first is a target once.

    The last batch may have fewer rows. The tokens after the last complete window form a batch of
    shape (1, less than T). Several corpora follow one another, each from an empty state.

    Args:
        tokens: a corpus, or several.
        window: tokens per window, T.
        batch_size: windows per batch, B.

    Raises:
        UserError: if a corpus has fewer than two tokens, or a size is not positive.
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
    """The batch of `window` tokens from each row's corpus and place on.

    `reset` is true where a document begins. After the last token, which is only a target, a row
    continues with the first token; with `laps`, `reset` is true there as well.
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
    """`_gather` for many places (R,) in one corpus, none of which reaches its end."""
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
