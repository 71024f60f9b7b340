"""Byte-pair encoding and any other tokenizer of the package `tokenizers`, in its file format."""

import json
import re
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np

from openxlstm.data.compression import import_extra
from openxlstm.data.sources import BREAK
from openxlstm.data.tokenizer_json import write_tokenizer
from openxlstm.data.tokens import checked_ids
from openxlstm.errors import UserError

SAMPLE_MB = 100
"""Millions of characters to learn from, by default."""

_PIECE = 1 << 18
"""Approximate number of characters per chunk of encoding."""

_REMEMBERED = 1 << 17
"""Most words whose tokens are cached."""

_S, _N = r"[^\S\x1c-\x1f]", r"[\S\x1c-\x1f]"
"""A whitespace and a non-whitespace character, as `tokenizers` defines them."""

_WORDS = re.compile(
    # An ASCII word before a space or a sign, but not before an apostrophe or a non-ASCII letter.
    r" ?[A-Za-z]+(?=[\s!-&(-@\[-`{-~]|\Z)"
    # Spaces before the one that belongs to a word; any other word, with a space or after other
    # whitespace; the spaces at the end.
    rf"|{_S}+(?= {_N})| ?{_N}+|{_S}+{_N}+|{_S}+"
)
"""Splits a text so that GPT-2's regular expression finds the same words in the parts."""


class BPETokenizer:
    """Byte-pair encoding, which can encode any text, or any other tokenizer of `tokenizers`."""

    def __init__(self, tokenizer: Any) -> None:
        """
        Args:
            tokenizer: a `tokenizers.Tokenizer`.
        """
        tokenizer.no_truncation()  # a file can enable both
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._known: dict[str, bytearray] = {}  # the ids of words, as int32
        self.vocab_size: int = max(tokenizer.get_vocab().values(), default=-1) + 1
        spec = json.loads(tokenizer.to_str())
        # Whether words are separated as in GPT-2.
        self._by_words = spec["normalizer"] is None and spec["pre_tokenizer"] in (
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": trim,
                "use_regex": True,
            }
            for trim in (True, False)
        )
        for token in spec["added_tokens"]:
            self._by_words &= not (re.search(r"\s", token["content"]) or token["lstrip"])
            self._by_words &= not token["rstrip"]

    @classmethod
    def from_texts(
        cls, texts: Iterable[str], vocab_size: int = 4096, sample_mb: float = SAMPLE_MB
    ) -> Self:
        """Learns a vocabulary from texts, in bounded memory.

        Args:
            texts: an iterable, read once.
            vocab_size: number of different tokens, 256 of which are the bytes.
            sample_mb: millions of characters to learn from at most, sampled evenly.

        Raises:
            UserError: if the package is missing, or the text contains half of a character.
        """
        tokenizers = import_extra("tokenizers", "tokenizers")
        learned = tokenizers.Tokenizer(tokenizers.models.BPE())
        by_words = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        learned.pre_tokenizer, learned.decoder = by_words, tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=by_words.alphabet(), show_progress=False
        )
        pieces = (piece for text in texts for piece in _cut(text))
        learned.train_from_iterator(sampled(pieces, int(sample_mb * 1e6)), trainer)
        return cls(learned)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The tokenizer in the content of a `tokenizer.json`.

        Raises:
            UserError: if the package is missing or cannot read it.
        """
        tokenizers = import_extra("tokenizers", "tokenizers")
        try:
            return cls(tokenizers.Tokenizer.from_str(text))
        except Exception as error:  # the package raises plain Exceptions
            raise UserError(f"the package tokenizers cannot read it ({error!s:.200})") from error

    def encode(self, text: str) -> np.ndarray:
        if not self._by_words:
            return np.frombuffer(self._encoded([text])[0], np.int32)
        pieces = (self._encoded_words(piece) for piece in _cut(text))
        return np.frombuffer(bytearray().join(pieces), np.int32)

    def _encoded_words(self, text: str) -> bytes:
        """The ids of a text, int32. Cached words take a fifth of the time of encoding them."""
        words = _WORDS.findall(text)
        new = list(set(words).difference(self._known))
        if len(new) + len(self._known) > _REMEMBERED:
            self._known, new = {}, list(set(words))
        known = self._known
        known.update(zip(new, self._encoded(new), strict=True))
        return b"".join(map(known.__getitem__, words))

    def _encoded(self, texts: list[str]) -> list[bytearray]:
        """The ids of each text, as int32."""
        try:
            found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise UserError("the text contains half a character: read it as UTF-8") from error
        except Exception as error:  # a plain Exception for text without a token
            raise UserError(f"the tokenizer cannot encode the text ({error!s:.200})") from error
        return [bytearray(array("i", one.ids)) for one in found]

    def decode(self, ids: Iterable[int]) -> str:
        numbers = checked_ids(ids, self.vocab_size).tolist()
        return self._tokenizer.decode(numbers, skip_special_tokens=False)

    def to_json(self) -> str:
        return self._tokenizer.to_str(pretty=True) + "\n"

    def save(self, folder: str | Path) -> None:
        write_tokenizer(folder, self.to_json())


def _cut(text: str) -> Iterable[str]:
    """Splits a text into short pieces that end where words end."""
    start = 0
    while len(text) - start > _PIECE:
        found = BREAK.search(text, start + _PIECE)
        if not found:
            break
        yield text[start : found.start()]
        start = found.start()
    if start < len(text):
        yield text[start:]


def sampled(pieces: Iterable[str], limit: int) -> list[str]:
    """Every piece, or every 2nd, 4th, …, so that at most `limit` characters remain.

    The first piece is always kept.
    """
    kept: list[str] = []
    size, stride = 0, 1
    for number, piece in enumerate(pieces):
        if number % stride == 0:
            kept.append(piece)
            size += len(piece)
        while size > limit and len(kept) > 1:
            kept, stride = kept[::2], 2 * stride
            size = sum(map(len, kept))
    return kept
