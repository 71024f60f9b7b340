"""Reads compressed files transparently, and imports optional packages."""

import bz2
import gzip
import importlib
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from openxlstm.errors import UserError

COMPRESSED = (".bz2", ".gz", ".xz", ".zst")
"""Suffixes of compressed files."""


def compression(path: str) -> str:
    """The suffix that says how a file is compressed; empty if it is not."""
    suffix = Path(path).suffix.lower()
    return suffix if suffix in COMPRESSED else ""


@contextmanager
def uncompressed(raw: IO[bytes], path: str) -> Iterator[IO[bytes]]:
    """A file object with the uncompressed content of `raw`.

    Raises:
        UserError: if the file is damaged, which may only show while it is read.
    """
    damaged: tuple[type[Exception], ...] = (EOFError, zlib.error, lzma.LZMAError, OSError)
    match compression(path):
        case ".gz":
            file = gzip.GzipFile(fileobj=raw)
        case ".bz2":
            file = bz2.BZ2File(raw)
        case ".xz":
            file = lzma.LZMAFile(raw)  # noqa: SIM115
        case ".zst":
            zstandard = import_extra("zstandard", "data")
            damaged += (zstandard.ZstdError,)
            file = io.BufferedReader(_Zstandard(raw, zstandard.ZstdDecompressor()), 1 << 20)
        case _:
            file = raw
    try:
        yield file  # pyright: ignore[reportReturnType]
    except damaged as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(f"{path} is damaged ({error}): download it again") from error


class _Zstandard(io.RawIOBase):
    """The content of a .zst file. The package's own reader accepts truncated files."""

    def __init__(self, raw: IO[bytes], decompressor: Any) -> None:
        self._raw, self._begin_frame = raw, decompressor.decompressobj
        self._frame: Any = None
        self._found, self._rest = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._found:
            block = self._rest or self._raw.read(1 << 14)
            if not block and self._frame is None:
                return 0
            if not block:
                raise EOFError("it is truncated")
            self._frame = self._frame or self._begin_frame()
            self._found, self._rest = self._frame.decompress(block), self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._found))
        buffer[:count], self._found = self._found[:count], self._found[count:]
        return count


def import_extra(name: str, extra: str) -> Any:
    """Imports a package that comes with one of openxlstm's extras.

    Raises:
        UserError: if it is missing; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise UserError(
            f"this needs the package {package}: pip install 'openxlstm[{extra}]'"
        ) from error
