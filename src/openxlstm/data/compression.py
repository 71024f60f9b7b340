"""Compressed files, read as if they were not; and packages that are not always there."""

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
"""The last suffix of a compressed file's name."""


def compression(path: str) -> str:
    """The suffix of what a file is compressed with, or nothing."""
    suffix = Path(path).suffix.lower()
    return suffix if suffix in COMPRESSED else ""


@contextmanager
def uncompressed(raw: IO[bytes], path: str) -> Iterator[IO[bytes]]:
    """What is in a file that may be compressed, as a file.

    Raises:
        UserError: that names it, if it proves damaged while it is read.
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
        raise UserError(f"{path} is damaged ({error}): get it again") from error


class _Zstandard(io.RawIOBase):
    """What is in a .zst file. The package's own reader takes a file cut short for a whole one."""

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
                raise EOFError("it is cut short")
            self._frame = self._frame or self._begin_frame()
            self._found, self._rest = self._frame.decompress(block), self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._found))
        buffer[:count], self._found = self._found[:count], self._found[count:]
        return count


def import_extra(name: str, extra: str) -> Any:
    """A package that is installed only with one of openxlstm's extras.

    Raises:
        UserError: that says which, if it is missing.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise UserError(
            f"this needs the package {package}: pip install 'openxlstm[{extra}]'"
        ) from error
