"""Text to token ids and back. A tokenizer is saved with the model it belongs to, as JSON."""

import json
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from openxlstm.data.tokens import Tokens
from openxlstm.errors import UserError
from openxlstm.files import write_json

FILE_NAME = "tokenizer.json"
FORMAT = "openxlstm-tokenizer"
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

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` to `folder`, for `load_tokenizer`. The folder may be missing."""
        ...


class CharTokenizer:
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
        return self._codes[_checked(ids, self.vocab_size)].tobytes().decode("utf-32-le")

    def save(self, folder: str | Path) -> None:
        _save(folder, {"kind": "char", "characters": self.characters})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The tokenizer that `save` wrote."""
        characters = values.get("characters")
        if not isinstance(characters, str):
            raise UserError("'characters' is not a string")
        return cls(characters)


class ByteTokenizer:
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
        return _checked(ids, 256).astype(np.uint8).tobytes().decode(errors="replace")

    def save(self, folder: str | Path) -> None:
        _save(folder, {"kind": "byte"})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The tokenizer that `save` wrote."""
        return cls()


KINDS: dict[str, type[CharTokenizer | ByteTokenizer]] = {
    "char": CharTokenizer,
    "byte": ByteTokenizer,
}
"""What a tokenizer is called in a configuration and in tokenizer.json."""


def make_tokenizer(kind: str, texts: Iterable[str]) -> Tokenizer:
    """A new tokenizer for all of some texts.

    Raises:
        UserError: if there is no such kind, or the texts do not do for it.
    """
    return _class(kind).from_texts(texts)


def find_tokenizer(name: str, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that a configuration names: a new one of a kind, or the one at a path.

    Raises:
        UserError: as `make_tokenizer` and `load_tokenizer`.
    """
    is_path = name not in KINDS and Path(name).exists()
    return load_tokenizer(name) if is_path else make_tokenizer(name, texts)


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
    """The tokenizer that was saved to `folder`; a path of its file does as well.

    Raises:
        UserError: if there is none, or its file is damaged; the message names the file.
    """
    path = Path(folder)
    path = path if path.is_file() else path / FILE_NAME
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}): give the folder of a trained model"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged (no JSON): restore it from a copy") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{path} is not a tokenizer of openxlstm: give another folder")
    if values.get("version") != VERSION:
        raise UserError(
            f"{path} has version {values.get('version')!r}, and this openxlstm reads {VERSION}: "
            "install a newer openxlstm"
        )
    try:
        return _class(values.get("kind")).from_dict(values)
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from error


def _class(kind: Any) -> type[CharTokenizer | ByteTokenizer]:
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(
            f"there is no tokenizer {kind!r}: choose {' or '.join(KINDS)}, or give the path of one"
        )
    return KINDS[kind]


def _save(folder: str | Path, values: dict[str, Any]) -> None:
    write_json(Path(folder) / FILE_NAME, {"format": FORMAT, "version": VERSION, **values})


def _dtype(vocab_size: int) -> type[np.generic]:
    return np.uint8 if vocab_size <= 256 else np.int32


def _code_points(text: str, errors: str) -> np.ndarray:
    """The Unicode code points of `text`, one for each character."""
    return np.frombuffer(text.encode("utf-32-le", errors), "<u4")


def _checked(ids: Any, vocab_size: int) -> np.ndarray:
    """`ids` as a 1-D array of integers below `vocab_size`."""
    if not isinstance(ids, np.ndarray):
        # A tensor has tolist, which needs no torch here and works on any device.
        ids = np.asarray(ids.tolist() if hasattr(ids, "tolist") else list(ids))
    if ids.size == 0:
        return ids.astype(np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UserError(
            f"decode takes one sequence of whole numbers, not {ids.dtype} of shape {ids.shape}"
        )
    if ids.min() < 0 or ids.max() >= vocab_size:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise UserError(f"{wrong} is no token id: they are 0 to {vocab_size - 1}")
    return ids


def _lone_surrogate(error: UnicodeEncodeError) -> str:
    code = ord(error.object[error.start])
    return f"the text has U+{code:04X} in it, which is half a character: read it as UTF-8"
