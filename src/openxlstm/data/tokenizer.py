"""Tokenizers: text to token ids and back. A tokenizer is saved as JSON with its model.

The character and byte tokenizers need no package; bpe.py handles everything else that the package
`tokenizers` reads. All of them use its file format.
"""

import json
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from openxlstm.data.bpe import BPETokenizer
from openxlstm.data.tokenizer_json import (
    FILE_NAME,
    describe_bytes,
    describe_characters,
    described_characters,
    describes_bytes,
    to_text,
    write_tokenizer,
)
from openxlstm.data.tokens import Tokens, checked_ids
from openxlstm.errors import UserError

FORMAT = "openxlstm-tokenizer"
"""The format of older files, before openxlstm used that of `tokenizers`; it can still be read."""
VERSION = 1

_CHUNK = 1 << 16
"""Characters per chunk of encoding, so that a chunk stays in the processor's cache."""


class Tokenizer(Protocol):
    """The interface of all tokenizers."""

    @property
    def vocab_size(self) -> int:
        """Number of different ids, which are 0 to vocab_size - 1."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, 1-D: uint8 if the vocabulary fits, else int32, to save memory.

        A model takes int64: `torch.from_numpy(ids).long()`.

        Raises:
            UserError: if a part of `text` has no id.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, given as a list, an iterator, a 1-D array or a tensor.

        Raises:
            UserError: if an element is not an id.
        """
        ...

    def to_json(self) -> str:
        """The content of the saved file. Two tokenizers are the same if it is equal."""
        ...

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json`, and `tokenizer_config.json` for transformers, to `folder`, which
        is created if it does not exist."""
        ...


class _Own:
    """Writes the file of the character and byte tokenizers."""

    def to_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def to_json(self) -> str:
        return to_text(self.to_dict())

    def save(self, folder: str | Path) -> None:
        write_tokenizer(folder, self.to_json())


class CharTokenizer(_Own):
    """One id per character, in the given order."""

    def __init__(self, characters: str) -> None:
        """
        Args:
            characters: the vocabulary without repetitions; the index of a character is its id.

        Raises:
            UserError: if it is empty, repeats a character, or has half of a surrogate pair.
        """
        if not characters:
            raise UserError("a tokenizer needs at least one character: give some text")
        if len(set(characters)) < len(characters):
            raise UserError("a character occurs twice in the tokenizer: give each one once")
        self.characters = characters
        try:
            self._codes = _code_points(characters, errors="strict")
        except UnicodeEncodeError as error:
            raise UserError(_lone_surrogate(error)) from error
        # Code point to id; -1 means no id, and the last entry covers all higher code points.
        self._ids = np.full(int(self._codes.max()) + 2, -1, np.int32)
        self._ids[self._codes] = np.arange(len(characters))

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> Self:
        """The characters that occur in `texts`, sorted."""
        return cls("".join(sorted(set().union(*texts))))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        ids = np.empty(len(text), _dtype(self.vocab_size))
        for start in range(0, len(text), _CHUNK):
            chunk = text[start : start + _CHUNK]
            codes = _code_points(chunk, errors="surrogatepass")
            found = self._ids[np.minimum(codes, len(self._ids) - 1)]
            if found.min() < 0:
                unknown = chunk[int(found.argmin())]
                raise UserError(
                    f"the tokenizer has never seen {unknown!r} (U+{ord(unknown):04X}): remove it "
                    "from the text, or train on text that has it, or with the byte tokenizer"
                )
            ids[start : start + _CHUNK] = found
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return self._codes[checked_ids(ids, self.vocab_size)].tobytes().decode("utf-32-le")

    def to_dict(self) -> dict[str, Any]:
        return describe_characters(self.characters)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The tokenizer in a file of the older format."""
        characters = values.get("characters")
        if not isinstance(characters, str):
            raise UserError("'characters' is not a string")
        return cls(characters)


class ByteTokenizer(_Own):
    """The 256 bytes of UTF-8: encodes any text; characters outside ASCII take several ids."""

    vocab_size = 256

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> Self:
        """The tokenizer for any text."""
        return cls()

    def encode(self, text: str) -> np.ndarray:
        try:
            return np.frombuffer(text.encode(), np.uint8).copy()  # the copy can be written to
        except UnicodeEncodeError as error:
            raise UserError(_lone_surrogate(error)) from error

    def decode(self, ids: Iterable[int]) -> str:
        """The text; bytes that are not valid UTF-8 become U+FFFD."""
        return checked_ids(ids, 256).astype(np.uint8).tobytes().decode(errors="replace")

    def to_dict(self) -> dict[str, Any]:
        return describe_bytes()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The tokenizer in a file of the older format."""
        return cls()


OWN: dict[str, type[CharTokenizer | ByteTokenizer]] = {"char": CharTokenizer, "byte": ByteTokenizer}
"""Tokenizers without a package, by their names in a configuration."""

KINDS = (*OWN, "bpe")
"""All names that create a new tokenizer."""


def make_tokenizer(kind: str, texts: Iterable[str], **options: Any) -> Tokenizer:
    """Makes a new tokenizer from texts.

    Args:
        options: those of `BPETokenizer.from_texts`; other kinds have none.

    Raises:
        UserError: if the kind is unknown, or the texts are not suitable.
    """
    if kind == "bpe":
        return BPETokenizer.from_texts(texts, **options)
    return _class(kind).from_texts(texts)


def find_tokenizer(name: str, texts: Iterable[str], **options: Any) -> Tokenizer:
    """The tokenizer that a configuration names: a new one by its kind, or an existing one by path.

    Raises:
        UserError: as `make_tokenizer` and `load_tokenizer`.
    """
    is_path = name not in KINDS and Path(name).exists()
    return load_tokenizer(name) if is_path else make_tokenizer(name, texts, **options)


def encode_documents(tokenizer: Tokenizer, documents: Sequence[str]) -> Tokens:
    """The tokens of all documents. A single document has no start, so the state is not reset.

    Raises:
        UserError: if a part of the text has no id.
    """
    pieces = [tokenizer.encode(document) for document in documents]
    starts = [0, *accumulate(map(len, pieces[:-1]))] if len(pieces) > 1 else None
    ids = np.concatenate(pieces) if len(pieces) != 1 else pieces[0]
    return Tokens(ids, starts=[] if starts is None else [starts])


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Loads the tokenizer in `folder`, or in a file, in the format of the package `tokenizers`.

    Raises:
        UserError: if the file is missing or damaged; the message names it.
    """
    path = Path(folder)
    path = path if path.is_file() else path / FILE_NAME
    try:
        values = json.loads(content := path.read_bytes())
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}): give the folder of a trained model"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged (not JSON): restore it from a copy") from error
    is_own = isinstance(values, dict) and values.get("format") == FORMAT
    if not is_own and (not isinstance(values, dict) or not isinstance(values.get("model"), dict)):
        raise UserError(f"{path} is not a tokenizer of openxlstm: give another folder")
    if is_own and values.get("version") != VERSION:
        raise UserError(
            f"{path} has version {values.get('version')!r}; this openxlstm reads version "
            f"{VERSION}: install a newer openxlstm"
        )
    try:
        if is_own:
            return _class(values.get("kind")).from_dict(values)
        if describes_bytes(values):
            return ByteTokenizer()
        characters = described_characters(values)
        return CharTokenizer(characters) if characters else BPETokenizer.from_json(content.decode())
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from error


def _class(kind: Any) -> type[CharTokenizer | ByteTokenizer]:
    if not isinstance(kind, str) or kind not in OWN:
        raise UserError(
            f"there is no tokenizer {kind!r}: choose {', '.join(OWN)} or bpe, "
            "or give the path of one"
        )
    return OWN[kind]


def _dtype(vocab_size: int) -> type[np.generic]:
    return np.uint8 if vocab_size <= 256 else np.int32


def _code_points(text: str, errors: str) -> np.ndarray:
    """The Unicode code points of `text`, one per character."""
    return np.frombuffer(text.encode("utf-32-le", errors), "<u4")


def _lone_surrogate(error: UnicodeEncodeError) -> str:
    code = ord(error.object[error.start])
    return f"the text contains U+{code:04X}, which is half a character: read it as UTF-8"
