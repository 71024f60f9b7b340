"""Prefill and decoding: reads a prompt, then generates one token after another.

Thanks to the state, a token costs the same time and memory after a million tokens as after one.
Gradient mode and the model's training flag are set for each step and restored after it, so that the
caller may train the model between two tokens and may drop an iterator at any time.

B batch · T time
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openxlstm.errors import UserError
from openxlstm.generation.sampling import Sampling, draw, row_generators
from openxlstm.lm.model import LanguageModel, any_weight, evaluation_mode
from openxlstm.states import select, stack

Ids = Sequence[int] | np.ndarray | Tensor
"""A sequence of token ids."""


def prefill(
    model: LanguageModel, ids: Tensor, state: Any = None, chunk: int = 1024
) -> tuple[Tensor, Any]:
    """Reads prompts of one length: ids (B, T), T ≥ 1 → logits after the last (B, vocab), state.

    Reads `chunk` tokens at a time, so that memory does not grow with T. `state` is the state of the
    B sequences before; None is empty. The results are inference tensors, for generation and not for
    training. Raises UserError if there is no token, or one outside the vocabulary.
    """
    check_ids(model, ids)
    with evaluation_mode(model), torch.inference_mode():
        logits = None
        for piece in ids.to(device_of(model)).split(chunk, dim=1):
            logits, state = model(piece, state)
        assert logits is not None
        return logits[:, -1].clone(), state  # a copy, or the whole chunk's logits stay in memory


def step(model: LanguageModel, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Reads one token per row: ids (B,) and the state → logits (B, vocab), the next state."""
    with evaluation_mode(model), torch.inference_mode():
        logits, state = model(ids.unsqueeze(1), state)
        return logits[:, -1], state


class Steps:
    """Steps of some sequences: by the decoder of a `LanguageModel`, by the forward of others."""

    def __init__(self, model: LanguageModel, state: Any) -> None:
        self._model = model
        self._decoder = model.decoder(state) if isinstance(model, LanguageModel) else None
        self._state = None if self._decoder else state

    def read(self, ids: Tensor) -> Tensor:
        """Reads one token per row: ids (B,) → logits (B, vocab), valid until the next call."""
        if self._decoder:
            return self._decoder.step(ids)
        logits, self._state = step(self._model, ids, self._state)
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps only some of the rows."""
        if self._decoder:
            self._decoder = self._decoder.select(rows)
        else:
            self._state = select(self._state, rows)


def stream_tokens(
    model: LanguageModel,
    prompt: Ids,
    *,
    max_tokens: int | None,
    sampling: Sampling,
    seed: int | None = None,
    stop: Collection[int] = (),
    state: Any = None,
) -> Iterator[int]:
    """Continues a prompt of at least one token, and yields each new token at once.

    Ends after `max_tokens` (None: never) or before a token of `stop`. `state` is the state of one
    sequence before the prompt; None is empty. With `seed` None, every call differs. Raises
    UserError when called with an empty prompt, a token outside the vocabulary or a negative
    `max_tokens`, and while running if logits are not finite.
    """
    check_max_tokens(max_tokens)
    ids = as_row(model, prompt)
    generators = row_generators(seed, 1)

    def tokens(state: Any) -> Iterator[int]:
        token = steps = None
        for _ in count() if max_tokens is None else range(max_tokens):
            if token is None or steps is None:
                logits, state = prefill(model, ids, state)
                steps = Steps(model, state)
            else:
                logits = steps.read(token)
            token = draw(logits, sampling, generators)
            value = int(token)
            if value in stop:
                return
            yield value

    return tokens(state)


def decode_batch(
    model: LanguageModel,
    prompts: Sequence[Ids],
    *,
    max_tokens: int,
    sampling: Sampling,
    seed: int | None = None,
    stop: Collection[int] = (),
) -> list[list[int]]:
    """Continues several prompts of any lengths as a batch; returns the new tokens of each.

    Repeat a prompt to get several samples; it is read once. The random numbers of a row depend only
    on the seed and the row. So the other prompts do not affect its tokens, apart from rounding, and
    the first row generates the tokens of `stream_tokens`. A row that reaches `stop` leaves the
    batch. Raises UserError like `stream_tokens`.
    """
    check_max_tokens(max_tokens)
    rows = [as_row(model, prompt) for prompt in prompts]
    texts: list[list[int]] = [[] for _ in rows]
    if not rows or max_tokens == 0:
        return texts

    # One by one, which bounds memory and keeps rounding independent of the other prompts.
    keys = [tuple(row[0].tolist()) for row in rows]
    different = dict(zip(keys, rows, strict=True))
    read = {key: prefill(model, row) for key, row in different.items()}
    logits = torch.cat([read[key][0] for key in keys])
    steps = Steps(model, stack([read[key][1] for key in keys]))

    running = list(range(len(rows)))  # the prompt that each row of logits and state belongs to
    generators = row_generators(seed, len(rows))
    for length in range(1, max_tokens + 1):
        ids = draw(logits, sampling, [generators[row] for row in running])
        values = ids.tolist()
        going = [place for place, value in enumerate(values) if value not in stop]
        for place in going:
            texts[running[place]].append(values[place])
        if not going or length == max_tokens:
            break
        if len(going) < len(running):
            running = [running[place] for place in going]
            ids = ids[going]
            steps.keep(going)
        logits = steps.read(ids)
    return texts


def device_of(model: LanguageModel) -> torch.device:
    """The device that the model computes on."""
    return any_weight(model).device


def as_row(model: LanguageModel, prompt: Ids) -> Tensor:
    """A prompt as ids (1, T) on the model's device. Raises UserError like `check_ids`."""
    ids = prompt if isinstance(prompt, Tensor) else torch.tensor(prompt, dtype=torch.long)
    ids = ids.to(device_of(model), torch.long).reshape(1, -1)
    check_ids(model, ids)
    return ids


def check_ids(model: LanguageModel, ids: Tensor) -> None:
    """Raises UserError if there is no token, or one outside the model's vocabulary."""
    if ids.numel() == 0:
        raise UserError("the prompt has no token; give at least one to start from")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= model.config.vocab_size:
        raise UserError(
            f"the prompt has the token {low if low < 0 else high}, but the model knows 0 to "
            f"{model.config.vocab_size - 1}; use the tokenizer that it was trained with"
        )


def check_max_tokens(max_tokens: int | None) -> None:
    """Raises UserError if it is negative."""
    if max_tokens is not None and max_tokens < 0:
        raise UserError(f"max_tokens must be 0 or more, not {max_tokens}")
