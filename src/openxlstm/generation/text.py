"""From a prompt to text, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from openxlstm.errors import UserError
from openxlstm.generation.engine import Ids, stream_tokens
from openxlstm.generation.sampling import Sampling

if TYPE_CHECKING:
    from openxlstm.lm.model import LanguageModel

REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are not, or not yet, a character."""


class TokenizerLike(Protocol):
    """What generation needs of a tokenizer."""

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
    """Continues `prompt`, and yields the new text in pieces as it comes.

    The pieces joined are the tokenizer's text of all the new tokens: a piece waits until its
    characters are whole. An empty prompt starts from a newline, or from token 0 if the tokenizer
    has none. Ends after `max_tokens` (None: never), or before the string `stop` first occurs in
    the new text. `seed` None differs every time; the other options are those of `Sampling`.
    Raises UserError, when called, for an argument that makes no sense or a tokenizer with more
    tokens than the model; while running, if the model's logits are not finite.
    """
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model "
            f"{model.config.vocab_size}; use the tokenizer that it was trained with"
        )
    if stop == "":
        raise UserError("stop is empty; give a string to stop at, or leave it out")
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, vocab_size=tokenizer.vocab_size
    )
    ids = tokenizer.encode(prompt) if prompt else first_token(tokenizer)
    tokens = stream_tokens(model, ids, max_tokens=max_tokens, sampling=sampling, seed=seed)
    pieces = whole_characters(tokenizer, tokens)
    return pieces if stop is None else until(pieces, stop)


def first_token(tokenizer: TokenizerLike) -> Ids:
    """What to start from without a prompt."""
    try:
        ids = tokenizer.encode("\n")
    except (KeyError, ValueError):
        return [0]
    return ids if len(ids) else [0]


def whole_characters(tokenizer: TokenizerLike, tokens: Iterable[int]) -> Iterator[str]:
    """The text of tokens, each of which may be a part of a character, such as a byte of UTF-8.

    Bytes at the end that are not yet a character read as one replacement character. It waits for
    the next token, and all before it is final. Joined, the pieces are the tokenizer's text of all
    the tokens, provided that how it reads a token depends on the bytes of a character that is not
    whole, and on which token, if any, is before it: some leave out a space at the start of a text.
    """
    before: list[int] = []  # the last tokens that are out, for those to come to be read after

    def read(ids: list[int]) -> str:
        return tokenizer.decode([*before, *ids])[len(before_text) :]

    before_text = ""
    held: list[int] = []  # tokens whose text ends in a replacement character
    held_text = ""  # their text; all but that last character is out
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
            # Where the parts read as the whole, no character spans them. Forgetting the first
            # keeps what is held short, however long a model babbles invalid bytes.
            if held_text + alone == text:
                held, held_text = [token], alone
            else:
                held, held_text = [*held, token], text
        if piece:
            yield piece
    if held_text:
        yield held_text[-1:]


def until(pieces: Iterable[str], stop: str) -> Iterator[str]:
    """The text before `stop` first occurs; an end that could be the start of it waits."""
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
    """Length of the longest end of `text` with which `stop` begins, short of all of it."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)
