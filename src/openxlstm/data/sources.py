"""Reads text files in pieces of bounded size: plain, JSON lines, Parquet, and compressed files.

A document is a plain text file, a line of JSON or a row of Parquet. Pieces end where a word ends,
so that tokenizing the pieces gives the same tokens as tokenizing the whole text.
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
"""Suffixes of the files that are read in a folder; a suffix of compression may follow."""

BLOCK = 1 << 20
"""Bytes per read."""

LONGEST = 1 << 22
"""Most characters without a space that are buffered, so that no word is split."""

BREAK = re.compile(r"(?<=\S)[ \t\n\r]")
"""Where a text may be split: no token spans the end of a word and the space after it."""

Report = Callable[[int], None]
"""Receives the number of bytes of a file that were read since the last call."""


class Piece(NamedTuple):
    """A part of a document."""

    text: str
    begins: bool
    """Whether the piece is the first of its document."""
    ends: bool
    """Whether the piece is the last of its document."""


@dataclass(frozen=True)
class Span:
    """A file, or a part of one: from about byte `start` to about byte `stop`, None for its end.

    The exact limits are the next ends of a word or line, so that adjacent parts cover everything.
    Only a file that `can_be_cut` has parts.
    """

    path: str
    start: int = 0
    stop: int | None = None

    @property
    def kind(self) -> str:
        """The format of the uncompressed content: text, .jsonl or .parquet."""
        path = Path(self.path)
        inner = Path(path.stem) if compression(self.path) else path
        suffix = inner.suffix.lower()
        return suffix if suffix in RECORDS else "text"

    @property
    def can_be_cut(self) -> bool:
        return not compression(self.path) and self.kind != ".parquet"


def find_files(source: str, names: Iterable[str] = ()) -> list[Path]:
    """The files of a path, a folder or a glob pattern, sorted by path; at least one.

    A folder means all text files below it, a pattern (`**` for folders at any depth) the files that
    match. Both skip hidden files.

    Args:
        names: other possible sources, for the suggestion in the error message.

    Raises:
        UserError: if there are no such files.
        OSError, RuntimeError: if the folder cannot be read, or the user of a ~name is unknown.
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
        # Not Path.glob, which rejects absolute patterns and includes hidden files.
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
    """The text of a file in pieces of about a megabyte; a record is one piece, whatever its size.

    Line ends become `\\n`, and a byte order mark is removed.

    Args:
        span: the file, or a part of it.
        field: the field of JSON lines or the column of Parquet that holds the text.
        report: is called with the number of bytes read, before decompression.

    Raises:
        UserError: if the content does not match the file's suffix, or there is no such field.
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
    """The same documents without surrounding line ends, and with a blank line after each.

    Blank documents are skipped.
    """
    held, text_before, new = "", True, False  # a part of a file may start within a document
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
    """The first position from `place` on at which a file may be split."""
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
    """A function that reports the bytes read from `raw` since its last call."""
    before = raw.tell()

    def tell() -> None:
        nonlocal before
        now = raw.tell()
        report(now - before)
        before = now

    return tell


def _blocks(file: IO[bytes], limit: int | None, tell: Callable[[], None]) -> Iterator[bytes]:
    """The content of a file from its current position, at most `limit` bytes."""
    left = sys.maxsize if limit is None else limit
    while block := file.read(min(BLOCK, left)):
        left -= len(block)
        tell()
        yield block


def _decoded(blocks: Iterable[bytes], path: str, offset: int) -> Iterator[str]:
    """Decodes UTF-8 blocks that start at byte `offset` of the file `path`."""
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
    """The same text, split where words end."""
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
    """One document per line, except for lines that are empty or hold null."""
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
            raise UserError(f"{_line(span, start, number)} is not JSON ({error})") from error
        if not isinstance(record, dict):
            raise UserError(f"{_line(span, start, number)} is not a JSON object: {record!r:.50}")
        if field not in record:
            raise UserError(_no_field(_line(span, start, number), field, record))
        text = record[field]
        if text is None:
            continue
        if not isinstance(text, str):
            raise UserError(f"{_line(span, start, number)} has no text in {field!r}: {text!r:.50}")
        yield Piece(_with_newlines(text), begins=True, ends=True)


def _line(span: Span, start: int, number: int) -> str:
    """The name of a line in errors; `number` counts lines from byte `start`."""
    with Path(span.path).open("rb") as file:
        left = start
        while left and (block := file.read(min(BLOCK, left))):
            number += block.count(b"\n")
            left -= len(block)
    return f"{span.path} line {number}"


def _parquet_rows(path: Path, field: str, report: Report) -> Iterator[Piece]:
    """One document per row, except for rows that hold null."""
    parquet, arrow = import_extra("pyarrow.parquet", "data"), import_extra("pyarrow", "data")
    size = path.stat().st_size
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            schema = file.schema_arrow
            if field not in schema.names:
                raise UserError(_no_field(str(path), field, schema.names))
            kind = schema.field(field).type
            if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
                raise UserError(
                    f"{path} holds {kind} in {field!r}, not text: choose another --field"
                )
            rows = max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=256, columns=[field]):
                report(size * len(batch) // rows)
                for text in batch.column(0):
                    if text.is_valid:
                        yield Piece(_with_newlines(text.as_py()), begins=True, ends=True)
    except (arrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(f"{path} is damaged or not a Parquet file ({error!s:.200})") from error


def _with_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _no_field(place: str, field: str, fields: Iterable[str]) -> str:
    return f"{place} has no field {field!r}; choose one with --field: {', '.join(fields):.200}"
