"""Batches of token ids to train on and to evaluate with.

An iterator is resumable: its state is a few whole numbers, and what comes after `load_state_dict`
is bit for bit what would have come without a break.

B batch · T window · N tokens in a part of the text
"""

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


class RandomWindows:
    """Batches of windows at random places, without end.

    The places depend on the seed and on the number of the batch alone.
    """

    def __init__(
        self,
        tokens: Tensor,
        batch_size: int,
        window: int,
        seed: int = 0,
        part: str = "the training part",
    ) -> None:
        """
        Args:
            tokens: one row of ids, (N,), of any integer dtype, on any device.
            batch_size: windows in a batch, B.
            window: tokens in a window, T; each needs one more as its last target.
            seed: what the places are drawn with.
            part: what error messages call `tokens`.

        Raises:
            UserError: if the text is shorter than T + 1, or a size is not positive.
        """
        _check(tokens, batch_size, window)
        _check_length(tokens, window, part)
        self.tokens = tokens
        self.batch_size = batch_size
        self.window = window
        self.seed = seed
        self.step = 0
        self._offsets = torch.arange(window + 1)

    @property
    def tokens_per_batch(self) -> int:
        """B × T."""
        return self.batch_size * self.window

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        # Philox makes a stream of its own out of each (seed, step). torch.Generator would not do:
        # it heeds 32 bits of a seed, so that of 100,000 steps some two would draw the same places.
        key = np.array([self.seed % 2**64, self.step], np.uint64)
        random = np.random.Generator(np.random.Philox(key=key))
        self.step += 1
        num_starts = len(self.tokens) - self.window  # the last target of the last one is N - 1
        start = torch.from_numpy(random.integers(num_starts, size=(self.batch_size, 1)))
        return _gather(self.tokens, start + self._offsets)

    def state_dict(self) -> dict[str, int]:
        """Where the iterator is."""
        return {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to where the iterator was that gave `state`, which had the same tokens and sizes."""
        self.seed, self.step = int(state["seed"]), int(state["step"])


class Streams:
    """Batches in which each row reads on where it stopped, so that the state can be carried.

    Row b starts at token b × N / B. A row that has no whole window before it any more jumps to the
    start of the text, and `reset` says so at the first token of that window.
    """

    def __init__(
        self, tokens: Tensor, batch_size: int, window: int, part: str = "the training part"
    ) -> None:
        """
        Args:
            tokens: one row of ids, (N,), of any integer dtype, on any device.
            batch_size: rows, B.
            window: tokens that each of them reads in a batch, T.
            part: what error messages call `tokens`.

        Raises:
            UserError: if a row would not have a single window, or a size is not positive.
        """
        _check(tokens, batch_size, window)
        _check_length(tokens, window, part)
        start = torch.arange(batch_size) * len(tokens) // batch_size
        if len(tokens) - int(start[-1]) < window + 1:
            raise UserError(
                f"{part} has {len(tokens)} tokens, too few for {batch_size} streams with a window "
                f"of {window}: give more text, a smaller --window or a smaller --batch-size"
            )
        self.tokens = tokens
        self.batch_size = batch_size
        self.window = window
        self.step = 0
        self._start = start
        self._windows_before_jump = (len(tokens) - 1 - start) // window
        self._windows_in_lap = (len(tokens) - 1) // window
        self._offsets = torch.arange(window + 1)

    @property
    def tokens_per_batch(self) -> int:
        """B × T."""
        return self.batch_size * self.window

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        since_jump = self.step - self._windows_before_jump  # in windows; negative until the first
        in_lap = since_jump % self._windows_in_lap
        start = torch.where(
            since_jump < 0, self._start + self.step * self.window, in_lap * self.window
        )
        jumped = (since_jump >= 0) & (in_lap == 0)
        self.step += 1
        batch = _gather(self.tokens, start[:, None] + self._offsets)
        if not jumped.any():
            return batch
        reset = torch.zeros(self.batch_size, self.window, dtype=torch.bool)
        reset[:, 0] = jumped
        return batch._replace(reset=reset.to(self.tokens.device))

    def state_dict(self) -> dict[str, int]:
        """Where the iterator is."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to where the iterator was that gave `state`, which had the same tokens and sizes."""
        self.step = int(state["step"])


def windows_in_order(tokens: Tensor, window: int, batch_size: int) -> Iterator[Batch]:
    """The whole text as windows side by side: each token but the first is a target exactly once.

    The last batch may have fewer rows. What is left after the last whole window comes as a batch of
    its own, of shape (1, less than T). For evaluation.

    Args:
        tokens: one row of ids, (N,), of any integer dtype, on any device.
        window: tokens in a window, T.
        batch_size: windows in a batch, B.

    Raises:
        UserError: if there are fewer than two tokens, or a size is not positive.
    """
    _check(tokens, batch_size, window)
    if len(tokens) < 2:
        raise UserError("the text to evaluate needs at least two tokens: give more text")
    return _in_order(tokens, window, batch_size)


def _in_order(tokens: Tensor, window: int, batch_size: int) -> Iterator[Batch]:
    inputs, targets = tokens[:-1], tokens[1:]
    num_windows = len(inputs) // window
    for first in range(0, num_windows, batch_size):
        rows = min(batch_size, num_windows - first)
        span = slice(first * window, (first + rows) * window)
        x, y = inputs[span].reshape(rows, window), targets[span].reshape(rows, window)
        yield Batch(x.long(), y.long())
    if len(inputs) % window:
        rest = slice(num_windows * window, None)
        yield Batch(inputs[rest].long()[None], targets[rest].long()[None])


def _gather(tokens: Tensor, places: Tensor) -> Batch:
    """The batch whose row b holds the tokens at `places[b]`, (B, T + 1)."""
    both = tokens[places.to(tokens.device)].long()
    return Batch(both[:, :-1].contiguous(), both[:, 1:].contiguous())


def _check(tokens: Tensor, batch_size: int, window: int) -> None:
    if tokens.dim() != 1 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise UserError(
            f"tokens must be one row of whole numbers, not {tokens.dtype} "
            f"of shape {tuple(tokens.shape)}"
        )
    for name, size in (("batch_size", batch_size), ("window", window)):
        if size < 1:
            raise UserError(f"{name} must be positive, not {size}")


def _check_length(tokens: Tensor, window: int, part: str) -> None:
    if len(tokens) < window + 1:
        raise UserError(
            f"{part} has {len(tokens)} tokens, but a window of {window} needs {window + 1}: "
            "give more text or a smaller --window"
        )
