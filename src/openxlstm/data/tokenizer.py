"""Text to token ids and back. A tokenizer is saved with the model it belongs to, as JSON.

Characters and bytes are ours, and need no package; bpe.py has all else that `tokenizers` reads. The
file of each is one of `tokenizers`.
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
"""Of files that were written before openxlstm wrote those of `tokenizers`. They are still read."""
VERSION = 1

_CHUNK = 1 << 16
"""Characters encoded at a time, so that no pass over them leaves the processor's cache."""


class Tokenizer(Protocol):
    """What every kind of tokenizer does."""

    @property
    def vocab_size(self) -> int:
        """Number of different ids: they are 0 to vocab_size - 1."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, 1-D: uint8 where the vocabulary fits it, else int32, to save memory.

        A model wants int64: `torch.from_numpy(ids).long()`.

        Raises:
            UserError: if something in `text` has no id.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a sequence of ids: a list, an iterator, a 1-D array or tensor.

        Raises:
            UserError: if something in it is no id.
        """
        ...

    def to_json(self) -> str:
        """What `save` writes. Tokenizers that have it in common are the same."""
        ...

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` to `folder`, for `load_tokenizer` and others, and for
        transformers `tokenizer_config.json`. The folder may be missing."""
        ...


class _Own:
    """What a tokenizer of ours does with its file."""

    def to_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def to_json(self) -> str:
        return to_text(self.to_dict())

    def save(self, folder: str | Path) -> None:
        write_tokenizer(folder, self.to_json())


class CharTokenizer(_Own):
    """One id for each of some characters, in the order given."""

    def __init__(self, characters: str) -> None:
        """
        Args:
            characters: each of them once; its index is its id.

        Raises:
            UserError: if there are none, one comes twice, or one is half of a surrogate pair.
        """
        if not characters:
            raise UserError("a tokenizer needs at least one character: give some text")
        if len(set(characters)) < len(characters):
            raise UserError("a character occurs twice in the tokenizer: name each of them once")
        self.characters = characters
        try:
            self._codes = _code_points(characters, errors="strict")
        except UnicodeEncodeError as error:
            raise UserError(_lone_surrogate(error)) from error
        # From code point to id; -1 stands for no id, and the last entry for all higher code points.
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
                    f"the tokenizer has never seen {unknown!r} (U+{ord(unknown):04X}): leave it "
                    "out of the text, or train on text that has it, or with the byte tokenizer"
                )
            ids[start : start + _CHUNK] = found
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return self._codes[checked_ids(ids, self.vocab_size)].tobytes().decode("utf-32-le")

    def to_dict(self) -> dict[str, Any]:
        return describe_characters(self.characters)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The tokenizer in a file of our own format."""
        characters = values.get("characters")
        if not isinstance(characters, str):
            raise UserError("'characters' is not a string")
        return cls(characters)


class ByteTokenizer(_Own):
    """The 256 bytes of UTF-8: any text at all, at more than one id for most characters."""

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
        """The text; bytes that are not UTF-8, such as the half of a character, become U+FFFD."""
        return checked_ids(ids, 256).astype(np.uint8).tobytes().decode(errors="replace")

    def to_dict(self) -> dict[str, Any]:
        return describe_bytes()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The tokenizer in a file of our own format."""
        return cls()


OWN: dict[str, type[CharTokenizer | ByteTokenizer]] = {"char": CharTokenizer, "byte": ByteTokenizer}
"""What a tokenizer of ours is called in a configuration."""

KINDS = (*OWN, "bpe")
"""What a new tokenizer is called in one."""


def make_tokenizer(kind: str, texts: Iterable[str], **options: Any) -> Tokenizer:
    """A new tokenizer for all of some texts.

    Args:
        options: those of `BPETokenizer.from_texts`; other kinds have none.

    Raises:
        UserError: if there is no such kind, or the texts do not do for it.
    """
    if kind == "bpe":
        return BPETokenizer.from_texts(texts, **options)
    return _class(kind).from_texts(texts)


def find_tokenizer(name: str, texts: Iterable[str], **options: Any) -> Tokenizer:
    """The tokenizer that a configuration names: a new one of a kind, or the one at a path.

    Raises:
        UserError: as `make_tokenizer` and `load_tokenizer`.
    """
    is_path = name not in KINDS and Path(name).exists()
    return load_tokenizer(name) if is_path else make_tokenizer(name, texts, **options)


def encode_documents(tokenizer: Tokenizer, documents: Sequence[str]) -> Tokens:
    """All documents in one row. One that is alone does not count as a document that begins.

    Raises:
        UserError: if something in the text has no id.
    """
    pieces = [tokenizer.encode(document) for document in documents]
    starts = [0, *accumulate(map(len, pieces[:-1]))] if len(pieces) > 1 else None
    ids = np.concatenate(pieces) if len(pieces) != 1 else pieces[0]
    return Tokens(ids, starts=[] if starts is None else [starts])


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer that was saved to `folder`, ours or of the package `tokenizers`.

    The path of its file does as well.

    Raises:
        UserError: if there is none, or its file is damaged; the message names the file.
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
        raise UserError(f"{path} is damaged (no JSON): restore it from a copy") from error
    is_own = isinstance(values, dict) and values.get("format") == FORMAT
    if not is_own and (not isinstance(values, dict) or not isinstance(values.get("model"), dict)):
        raise UserError(f"{path} is not a tokenizer of openxlstm: give another folder")
    if is_own and values.get("version") != VERSION:
        raise UserError(
            f"{path} has version {values.get('version')!r}, and this openxlstm reads {VERSION}: "
            "install a newer openxlstm"
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
    """The Unicode code points of `text`, one for each character."""
    return np.frombuffer(text.encode("utf-32-le", errors), "<u4")


def _lone_surrogate(error: UnicodeEncodeError) -> str:
    code = ord(error.object[error.start])
    return f"the text has U+{code:04X} in it, which is half a character: read it as UTF-8"
