"""Batches of token ids to train on and to evaluate with.

An iterator is resumable: its state is a few whole numbers, and what comes after `load_state_dict`
is bit for bit what would have come without a break.

B batch · T window · N tokens in a part of the text
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

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
    """What random windows and streams have in common: a text, and the sizes of a batch."""

    def __init__(
        self,
        tokens: Tensor,
        batch_size: int,
        window: int,
        *,
        first_window: int | None = None,
        starts: Tensor | None = None,
        part: str = "the training part",
    ) -> None:
        """
        Args:
            tokens: one row of ids, (N,), of any integer dtype, on any device.
            batch_size: sequences in a batch, B.
            window: tokens of each of them in a batch, T; the last one has a target too.
            first_window: T when the run starts, to be doubled by `advance`; None for `window`.
            starts: (N,) bool, the tokens that begin a document; None where there is only one.
            part: what error messages call `tokens`.

        Raises:
            UserError: if the text is shorter than T + 1, or a size is not positive.
        """
        _check(tokens, batch_size, window)
        if len(tokens) < window + 1:
            raise UserError(
                f"{part} has {len(tokens)} tokens, but a window of {window} needs {window + 1}: "
                "give more text or a smaller --window"
            )
        self.tokens = tokens
        self.starts = starts
        self.batch_size = batch_size
        self.window = self._last_window = window
        self._first_window = first_window or window
        self.advance(0.0)

    def __iter__(self) -> Self:
        return self

    def advance(self, share: float) -> None:
        """Sets T for the batches to come, from the share of the run that is done, in [0, 1].

        Each of T = first_window, twice that, and so on up to `window` has an equal share.
        """
        doublings = math.ceil(math.log2(self._last_window / self._first_window))
        self.window = min(self._first_window << int(share * (doublings + 1)), self._last_window)


class RandomWindows(_Batches):
    """Batches of windows at random places, without end.

    The places depend on the seed and on the number of the batch alone. While windows are shorter
    than they will be, there are more of them: a batch has B × `window` tokens from the start.
    """

    def __init__(
        self, tokens: Tensor, batch_size: int, window: int, seed: int = 0, **options: Any
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
        num_places = len(self.tokens) - self.window  # the last target of the last one is N - 1
        rows = self.batch_size * self._last_window // self.window
        start = torch.from_numpy(random.integers(num_places, size=(rows, 1)))
        return _gather(self.tokens, self.starts, start + torch.arange(self.window))

    def state_dict(self) -> dict[str, int]:
        """Where the iterator is."""
        return {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to where the iterator was that gave `state`, which had the same tokens and sizes."""
        self.seed, self.step = int(state["seed"]), int(state["step"])


class Streams(_Batches):
    """Batches in which each row reads on where it stopped, so that the state can be carried.

    Row b starts at token b × (N - 1) / B. At the end of the text a row goes on with the first token
    again, and `reset` is true there: in a lap it has read every token, with every target, once.
    """

    read = 0

    def __next__(self) -> Batch:
        num_inputs = len(self.tokens) - 1  # the last token is a target alone
        first = torch.arange(self.batch_size) * num_inputs // self.batch_size
        places = (first[:, None] + self.read + torch.arange(self.window)) % num_inputs
        self.read += self.window
        return _gather(self.tokens, self.starts, places, begins=places == 0)

    def state_dict(self) -> dict[str, int]:
        """Where the iterator is: tokens that each row has read."""
        return {"read": self.read}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to where the iterator was that gave `state`, which had the same tokens and rows."""
        self.read = int(state["read"])


def windows_in_order(
    tokens: Tensor, window: int, batch_size: int, *, starts: Tensor | None = None
) -> Iterator[Batch]:
    """The whole text as windows side by side: each token but the first is a target exactly once.

    The last batch may have fewer rows. What is left after the last whole window comes as a batch of
    its own, of shape (1, less than T). For evaluation.

    Args:
        tokens: one row of ids, (N,), of any integer dtype, on any device.
        window: tokens in a window, T.
        batch_size: windows in a batch, B.
        starts: (N,) bool, the tokens that begin a document; None where there is only one.

    Raises:
        UserError: if there are fewer than two tokens, or a size is not positive.
    """
    _check(tokens, batch_size, window)
    if len(tokens) < 2:
        raise UserError("the text to evaluate needs at least two tokens: give more text")
    return _in_order(tokens, window, batch_size, starts)


def _in_order(
    tokens: Tensor, window: int, batch_size: int, starts: Tensor | None
) -> Iterator[Batch]:
    places = torch.arange(len(tokens) - 1)
    rest = len(places) % window
    whole = places[: len(places) - rest].view(-1, window)
    for first in range(0, len(whole), batch_size):
        yield _gather(tokens, starts, whole[first : first + batch_size])
    if rest:
        yield _gather(tokens, starts, places[None, -rest:])


def _gather(
    tokens: Tensor, starts: Tensor | None, places: Tensor, begins: Tensor | None = None
) -> Batch:
    """The batch that reads the tokens at `places` (B, T), and is told the one after each.

    The state is emptied where a document starts, and where `begins` (B, T) is true.
    """
    places = places.to(tokens.device)
    reset = None if begins is None else begins.to(tokens.device)
    if starts is not None:
        reset = starts[places] if reset is None else reset | starts[places]
    if reset is not None and not reset.any():
        reset = None
    return Batch(tokens[places].long(), tokens[places + 1].long(), reset)


def _check(tokens: Tensor, batch_size: int, window: int) -> None:
    if tokens.dim() != 1 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise UserError(
            f"tokens must be one row of whole numbers, not {tokens.dtype} "
            f"of shape {tuple(tokens.shape)}"
        )
    for name, size in (("batch_size", batch_size), ("window", window)):
        if size < 1:
            raise UserError(f"{name} must be positive, not {size}")
