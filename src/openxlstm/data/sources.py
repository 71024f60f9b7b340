"""Files of text, read in pieces of bounded size: plain, JSON lines, Parquet, and compressed ones.

A document is a plain text file, a line of JSON or a row of Parquet. Pieces end where a word does,
so that no tokenizer reads a text in pieces otherwise than as a whole.
"""

import codecs
import difflib
import glob
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

from openxlstm.data.compression import COMPRESSED, compression, import_extra, uncompressed
from openxlstm.errors import UserError

PLAIN, RECORDS = (".md", ".txt"), (".jsonl", ".parquet")
"""What counts as text in a folder, compressed or not."""

BLOCK = 1 << 20
"""Bytes that are read at a time."""

LONGEST = 1 << 22
"""Characters without a space that are held back, so as not to cut a word."""

BREAK = re.compile(r"(?<=\S)[ \t\n\r]")
"""Where a text may be cut: no tokenizer has a token that goes on with the space after a word."""

Report = Callable[[int], None]
"""Is told how many bytes of a file were read since the last time."""


class Piece(NamedTuple):
    """A part of a document."""

    text: str
    begins: bool
    """Whether the document begins with it."""
    ends: bool
    """Whether the document ends with it."""


@dataclass(frozen=True)
class Span:
    """A file, or a part of one: from about byte `start` to about byte `stop`, None for its end.

    The true places are where a word or a line ends next, so that parts side by side leave nothing
    out. Only what `can_be_cut` has parts.
    """

    path: str
    start: int = 0
    stop: int | None = None

    @property
    def kind(self) -> str:
        """text, .jsonl or .parquet: what is in it once it is uncompressed."""
        path = Path(self.path)
        inner = Path(path.stem) if compression(self.path) else path
        suffix = inner.suffix.lower()
        return suffix if suffix in RECORDS else "text"

    @property
    def can_be_cut(self) -> bool:
        return not compression(self.path) and self.kind != ".parquet"


def find_files(source: str, names: Iterable[str] = ()) -> list[Path]:
    """The files that a path, a folder or a glob pattern stands for, in order; at least one.

    A folder stands for the texts anywhere below it, a pattern (`**` for folders at any depth) for
    the files that match. Both leave hidden ones out.

    Args:
        names: what else could have been meant, for the error message.

    Raises:
        UserError: if there are none.
        OSError, RuntimeError: if the place cannot be read, or is in the home of a ~name unknown.
    """
    if not source:
        raise UserError(_unknown(source, names))
    path = Path(source).expanduser()
    if path.is_dir():
        next(path.iterdir(), None)  # raises if the folder is unreadable, where rglob finds nothing
        inside = [file for file in path.rglob("*") if _is_text(file)]
        found = [file for file in inside if not _is_hidden(file.relative_to(path))]
    elif path.exists():
        return [path]
    elif glob.has_magic(source):
        # Not Path.glob, which takes no absolute pattern and lets hidden files in.
        found = [Path(file) for file in glob.iglob(str(path), recursive=True)]  # noqa: PTH207
    else:
        raise UserError(_unknown(source, names))
    files = sorted(file for file in found if file.is_file())
    if not files:
        wanted = ", ".join(PLAIN + RECORDS) + " file in" if path.is_dir() else "file that matches"
        raise UserError(f"there is no {wanted} {source!r}: give another path")
    return files


def _is_text(file: Path) -> bool:
    name = file.name.lower()
    name = name.removesuffix(file.suffix.lower()) if name.endswith(COMPRESSED) else name
    return name.endswith(PLAIN + RECORDS)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _unknown(source: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(source.lower(), names, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return (
        f"there is no file, folder or corpus {source!r:.200}: {guess}"
        f"give a path, or the name of a corpus ({', '.join(names)})"
    )


def read_pieces(
    span: Span, field: str = "text", report: Report = lambda _: None
) -> Iterator[Piece]:
    """The text of a file in pieces of about a megabyte, or a document if that is more.

    Line ends become `\\n`, and a byte order mark goes.

    Args:
        span: the file, or the part of it.
        field: which field of JSON lines or column of Parquet is the text.
        report: is told of the bytes that were read, as the file has them.

    Raises:
        UserError: if the file is not what its name says, or has no such field.
        OSError: if it cannot be read.
    """
    if span.kind == ".parquet":
        yield from _parquet_rows(Path(span.path), field, report)
        return
    with Path(span.path).open("rb") as raw:
        size = raw.seek(0, io.SEEK_END)
        start = _cut(raw, span.start, span.kind)
        stop = size if span.stop is None else _cut(raw, span.stop, span.kind)
        if start == size > 0:
            return
        raw.seek(start)
        with uncompressed(raw, span.path) as file:
            tell = _reporter(raw, report)
            limit = None if compression(span.path) else stop - start
            if span.kind == ".jsonl":
                yield from _json_lines(file, span, start, limit, field, tell)
                return
            begins = start == 0
            blocks = _blocks(file, limit, tell)
            for text in _words(_decoded(blocks, span.path, start)):
                yield Piece(text, begins, ends=False)
                begins = False
            if stop == size:
                yield Piece("", begins, ends=True)


def set_apart(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same documents without line ends around them, and with a blank line after each.

    Blank ones are left out.
    """
    held, text_before, new = "", True, False  # a part of a file goes on with a document
    for text, begins, ends in pieces:
        if begins:
            held, text_before, new = "", False, True
        text = held + text if text_before else text.lstrip("\n")
        body = text.rstrip("\n")
        held = "" if ends else text[len(body) :]
        body += "\n\n" if ends and (body or text_before) else ""
        if body:
            yield Piece(body, begins=new, ends=ends)
            text_before, new = True, False
    if held:
        yield Piece(held, begins=False, ends=False)


def _cut(file: IO[bytes], place: int, kind: str) -> int:
    """The first place from `place` on where a file may be cut."""
    if not place:
        return 0
    file.seek(place - 1)
    if kind == ".jsonl":
        file.readline()
        return file.tell()
    block = file.read(BLOCK)
    if found := re.search(rb"[^\s][ \t\n\r]", block):
        return place + found.start()
    rest = (i for i in range(1, len(block)) if block[i] & 0xC0 != 0x80)  # where a character begins
    return place - 1 + next(rest, len(block))


def _reporter(raw: IO[bytes], report: Report) -> Callable[[], None]:
    """Reports how far a file has been read since it was last called."""
    before = raw.tell()

    def tell() -> None:
        nonlocal before
        now = raw.tell()
        report(now - before)
        before = now

    return tell


def _blocks(file: IO[bytes], limit: int | None, tell: Callable[[], None]) -> Iterator[bytes]:
    """What is in a file from here on, at most `limit` bytes of it."""
    left = sys.maxsize if limit is None else limit
    while block := file.read(min(BLOCK, left)):
        left -= len(block)
        tell()
        yield block


def _decoded(blocks: Iterable[bytes], path: str, offset: int) -> Iterator[str]:
    """Bytes from an offset in a file on as text."""
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    at_start, rest = not offset, b""
    for block in chain(blocks, [b""]):
        content = rest + block
        if (place := content.find(0)) >= 0:
            raise UserError(
                f"{path} is not plain text (byte 0 at offset {offset + place}): "
                "give text encoded as UTF-8"
            )
        try:
            text, used = codecs.utf_8_decode(content, "strict", not block)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8 (byte 0x{content[error.start]:02x} at offset "
                f"{offset + error.start}): convert it, "
                f"e.g. iconv -f WINDOWS-1252 -t UTF-8 {Path(path).name} > utf8.txt"
            ) from error
        rest, offset = content[used:], offset + used
        yield newlines.decode(text.removeprefix("\ufeff") if at_start else text, not block)
        at_start = at_start and not text


def _words(texts: Iterable[str]) -> Iterator[str]:
    """The same text, cut where a word ends."""
    held = ""
    for text in texts:
        held += text
        breaks = [found.start() for found in BREAK.finditer(held, max(len(held) - 4096, 0))]
        cut = breaks[-1] if breaks else len(held) if len(held) > LONGEST else 0
        if cut:
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held


def _json_lines(
    file: IO[bytes],
    span: Span,
    start: int,
    limit: int | None,
    field: str,
    tell: Callable[[], None],
) -> Iterator[Piece]:
    """A document from each line, but for lines that are empty or have null."""
    left = sys.maxsize if limit is None else limit
    number = 0
    while left > 0 and (line := file.readline()):
        left -= len(line)
        number += 1
        tell()
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{_line(span, start, number)} is no JSON ({error})") from error
        if not isinstance(record, dict):
            raise UserError(f"{_line(span, start, number)} is no record of JSON: {record!r:.50}")
        if field not in record:
            raise UserError(_no_field(_line(span, start, number), field, record))
        text = record[field]
        if text is None:
            continue
        if not isinstance(text, str):
            raise UserError(f"{_line(span, start, number)} has no text in {field!r}: {text!r:.50}")
        yield Piece(_with_newlines(text), begins=True, ends=True)


def _line(span: Span, start: int, number: int) -> str:
    """What to call a line in an error: `number` counts from byte `start` on."""
    with Path(span.path).open("rb") as file:
        left = start
        while left and (block := file.read(min(BLOCK, left))):
            number += block.count(b"\n")
            left -= len(block)
    return f"{span.path} line {number}"


def _parquet_rows(path: Path, field: str, report: Report) -> Iterator[Piece]:
    """A document from each row, but for rows that have null."""
    parquet, arrow = import_extra("pyarrow.parquet", "data"), import_extra("pyarrow", "data")
    size = path.stat().st_size
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            schema = file.schema_arrow
            if field not in schema.names:
                raise UserError(_no_field(str(path), field, schema.names))
            kind = schema.field(field).type
            if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
                raise UserError(f"{path} has no text in {field!r}, but {kind}")
            rows = max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=256, columns=[field]):
                report(size * len(batch) // rows)
                for text in batch.column(0):
                    if text.is_valid:
                        yield Piece(_with_newlines(text.as_py()), begins=True, ends=True)
    except (arrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(f"{path} is damaged or no Parquet file ({error!s:.200})") from error


def _with_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _no_field(place: str, field: str, fields: Iterable[str]) -> str:
    return f"{place} has no field {field!r}; say which with --field: {', '.join(fields):.200}"
