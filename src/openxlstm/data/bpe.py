"""Pieces of words as tokens, by the package `tokenizers`, in its own files."""

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
"""Million characters that are learned from, if nothing else is said."""

_PIECE = 1 << 18
"""Characters that are encoded at a time, about."""

_REMEMBERED = 1 << 17
"""Words whose tokens are remembered, at most."""

_S, _N = r"[^\S\x1c-\x1f]", r"[\S\x1c-\x1f]"
"""A space, and no space, as tokenizers has them."""

_WORDS = re.compile(
    # A word, before a space or a sign; not an apostrophe, nor a letter that is not ASCII.
    r" ?[A-Za-z]+(?=[\s!-&(-@\[-`{-~]|\Z)"
    # All spaces but the last, which belongs to the word; a word of any kind, perhaps after spaces
    # that do not; the spaces at the end.
    rf"|{_S}+(?= {_N})| ?{_N}+|{_S}+{_N}+|{_S}+"
)
"""What a text may be cut into before GPT-2's regular expression sees it, without a difference."""


class BPETokenizer:
    """Byte-pair encoding: what often stands together is one token; any text can be encoded.

    It may also be any other tokenizer that `tokenizers` reads.
    """

    def __init__(self, tokenizer: Any) -> None:
        """
        Args:
            tokenizer: a `tokenizers.Tokenizer`.
        """
        tokenizer.no_truncation()  # which a file can ask for
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._known: dict[str, bytearray] = {}  # the ids of words, as int32
        self.vocab_size: int = max(tokenizer.get_vocab().values(), default=-1) + 1
        spec = json.loads(tokenizer.to_str())
        # GPT-2's way of telling words apart.
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
        """Learns the tokens that are most use for some texts, in bounded memory.

        Args:
            texts: are read once; an iterator will do.
            vocab_size: number of different tokens, 256 of which are the bytes.
            sample_mb: million characters to learn from, at most, taken evenly from all over.

        Raises:
            UserError: if the package is missing, or something in the text is half a character.
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
        """The tokenizer in a tokenizer.json of `tokenizers`.

        Raises:
            UserError: if the package is missing, or cannot read it.
        """
        tokenizers = import_extra("tokenizers", "tokenizers")
        try:
            return cls(tokenizers.Tokenizer.from_str(text))
        except Exception as error:  # it raises nothing more particular
            raise UserError(f"the package tokenizers cannot read it ({error!s:.200})") from error

    def encode(self, text: str) -> np.ndarray:
        if not self._by_words:
            return np.frombuffer(self._encoded([text])[0], np.int32)
        pieces = (self._encoded_words(piece) for piece in _cut(text))
        return np.frombuffer(bytearray().join(pieces), np.int32)

    def _encoded_words(self, text: str) -> bytes:
        """Words come again and again: to look one up takes a fifth of the time to encode it."""
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
            raise UserError("the text has half a character in it: read it as UTF-8") from error
        except Exception as error:  # nothing more particular, for what has no token
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
    """A text in short pieces that each end where a word does."""
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
    """Every piece, or every 2nd, 4th, … : so many that they have at most `limit` characters.

    The first is always there.
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
