"""Generates text from a prompt, in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from openxlstm.errors import UserError
from openxlstm.generation.engine import Ids, stream_tokens
from openxlstm.generation.sampling import Sampling

if TYPE_CHECKING:
    from pathlib import Path

    from openxlstm.config import ModelConfig
    from openxlstm.lm.model import LanguageModel

REPLACEMENT = "\ufffd"
"""The character that decoders write for incomplete or invalid bytes."""


class TokenizerLike(Protocol):
    """The part of a tokenizer that generation uses."""

    @property
    def vocab_size(self) -> int:
        """Number of different tokens."""
        ...

    def encode(self, text: str, /) -> Ids:
        """The tokens of a text."""
        ...

    def decode(self, ids: list[int], /) -> str:
        """The text of tokens."""
        ...


def generate(
    model: LanguageModel,
    tokenizer: TokenizerLike,
    prompt: str = "\n",
    *,
    max_tokens: int | None = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: str | None = None,
) -> Iterator[str]:
    """Continues `prompt` and yields the new text in pieces, each once its characters are complete.

    Joined, the pieces are the tokenizer's text of all new tokens. An empty prompt starts from a
    newline, or from token 0 if the tokenizer has none. Generation ends after `max_tokens` (None:
    never), or before the string `stop` first occurs in the new text. With `seed` None, every call
    differs. The other options are those of `Sampling`.

    Raises UserError when called with an invalid argument or with a tokenizer that has more tokens
    than the model, and while running if the model's logits are not finite.
    """
    check_vocabulary(tokenizer, model.config)
    if stop == "":
        raise UserError("stop is empty; give a string to stop at, or leave it out")
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, vocab_size=tokenizer.vocab_size
    )
    ids = tokenizer.encode(prompt) if prompt else first_token(tokenizer)
    tokens = stream_tokens(model, ids, max_tokens=max_tokens, sampling=sampling, seed=seed)
    pieces = whole_characters(tokenizer, tokens)
    return pieces if stop is None else until(pieces, stop)


def check_vocabulary(
    tokenizer: TokenizerLike, config: ModelConfig, place: str | Path | None = None
) -> None:
    """Raises UserError if a tokenizer, found in `place`, has tokens that a model does not have."""
    if tokenizer.vocab_size > config.vocab_size:
        where = "" if place is None else f" in {place}"
        raise UserError(
            f"the tokenizer{where} has {tokenizer.vocab_size} tokens and the model "
            f"{config.vocab_size}; use the tokenizer that the model was trained with"
        )


def first_token(tokenizer: TokenizerLike) -> Ids:
    """The tokens to start from without a prompt."""
    try:
        ids = tokenizer.encode("\n")
    except (KeyError, ValueError):
        return [0]
    return ids if len(ids) else [0]


def whole_characters(tokenizer: TokenizerLike, tokens: Iterable[int]) -> Iterator[str]:
    """The text of tokens, where a token may be a part of a character, such as a byte of UTF-8.

    Incomplete bytes at the end decode to one replacement character, which is held back until the
    next token; all text before it is final. Joined, the pieces are the tokenizer's text of all
    tokens. This holds for tokenizers whose decoding of a token depends only on the bytes of an
    incomplete character and on the token before it (some drop a space at the start of a text).
    """
    before: list[int] = []  # the last tokens that were yielded, as context for the next ones

    def read(ids: list[int]) -> str:
        return tokenizer.decode([*before, *ids])[len(before_text) :]

    before_text = ""
    held: list[int] = []  # tokens whose text ends in a replacement character
    held_text = ""  # their text; all but that last character was yielded
    for token in tokens:
        text = read([*held, token])
        out = max(len(held_text) - 1, 0)
        if not text.endswith(REPLACEMENT):
            piece = text[out:]
            if text:
                before, held, held_text = [*held, token], [], ""
                before_text = tokenizer.decode(before)
        else:
            piece = text[out:-1]
            alone = read([token])
            # If the parts decode to the same text as the whole, no character spans them. Dropping
            # the first part keeps `held` short when a model generates many invalid bytes.
            if held_text + alone == text:
                held, held_text = [token], alone
            else:
                held, held_text = [*held, token], text
        if piece:
            yield piece
    if held_text:
        yield held_text[-1:]


def until(pieces: Iterable[str], stop: str) -> Iterator[str]:
    """The text before the first `stop`. An end that could be the start of `stop` is held back."""
    held = ""
    for piece in pieces:
        held += piece
        before, found, _ = held.partition(stop)
        end = len(before) if found else len(held) - overlap(held, stop)
        if end:
            yield held[:end]
        if found:
            return
        held = held[end:]
    if held:
        yield held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper prefix of `stop`."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)
