"""A folder of tokens: memory-mapped shards, and the manifest that they are checked against.

manifest.json       counts, and size and SHA-256 of each file; written last
tokenizer.json
00000.ids.npy       (N,) uint8, uint16 or uint32, the ids of a shard
00000.starts.npy    (D,) int64, the positions in the shard at which a document begins
"""

import struct
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from openxlstm.data.sources import Piece
from openxlstm.data.tokenizer import Tokenizer, load_tokenizer
from openxlstm.data.tokenizer_json import FILE_NAME
from openxlstm.data.tokens import Tokens
from openxlstm.errors import UserError
from openxlstm.files import file_sha256, read_json, write_atomically, write_json

MANIFEST, PLAN = "manifest.json", "unfinished.json"
FORMAT, VERSION = "openxlstm-tokens", 1

Verify = Literal["hashes", "sizes"]
"""hashes: compare the SHA-256 of every file with the manifest. sizes: compare sizes only."""


@dataclass(frozen=True, kw_only=True)
class TokenFolder:
    """An open folder of tokens."""

    tokens: Tokens
    tokenizer: Tokenizer
    characters: int
    """Characters of the text that was tokenized."""
    sha256: str
    """SHA-256 of the manifest, which contains the hashes of all other files."""


def find_token_folder(source: str) -> Path | None:
    """The path of a source that is a folder of tokens, finished or not; None for other sources."""
    try:
        folder = Path(source).expanduser()
        names = {name for name in (PLAN, MANIFEST, FILE_NAME) if (folder / name).is_file()}
    except (OSError, RuntimeError):  # the name is too long; the user of a ~name is unknown
        return None
    return folder if PLAN in names or names == {MANIFEST, FILE_NAME} else None


def open_token_folder(
    folder: Path, verify: Verify = "hashes", report: Callable[[int, int], None] = lambda *_: None
) -> TokenFolder:
    """Opens a folder of tokens, memory-mapped: tokens are read when they are used.

    Args:
        verify: "hashes" checks every byte, "sizes" only that all files exist with the right size.
        report: is called with the bytes checked so far, and their total.

    Raises:
        UserError: if a file is missing, truncated or changed; the message names it.
    """
    manifest = read_manifest(folder)
    try:
        shards: list[dict[str, Any]] = manifest["shards"]
        files = {name: entry for shard in shards for name, entry in shard["files"].items()}
        for name, entry in files.items():
            _check_size(folder / name, entry["bytes"])
        files[FILE_NAME] = {"bytes": 0, "sha256": manifest["tokenizer"]["sha256"]}
        total, done = sum(entry["bytes"] for entry in files.values()), 0
        for name, entry in files.items():
            if (verify == "hashes" or name == FILE_NAME) and (
                _sha256(folder / name) != entry["sha256"]
            ):
                raise UserError(
                    f"{folder / name} has changed since {MANIFEST} was written: "
                    "restore the file, or tokenize again"
                )
            report(done := done + entry["bytes"], total)
        ids, starts = ([_mapped(folder, n, kind) for n in range(len(shards))] for kind in KINDS)
        several = manifest["documents"] > 1  # a single document has no start, like a text file
        return TokenFolder(
            tokens=Tokens(*ids, starts=starts if several else ()),
            tokenizer=load_tokenizer(folder),
            characters=manifest["characters"],
            sha256=_sha256(folder / MANIFEST),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / MANIFEST} is damaged ({error!r}): tokenize again") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of `manifest.json`.

    Raises:
        UserError: if it is missing, or its version is unknown.
    """
    if not (folder / MANIFEST).is_file() and (folder / PLAN).is_file():
        raise UserError(f"{folder} is not finished: run the same openxlstm tokenize command again")
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise UserError(f"{folder / MANIFEST} describes no folder of tokens: give another folder")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{folder / MANIFEST} has version {manifest.get('version')!r}, and this openxlstm "
            f"reads version {VERSION}: install a newer openxlstm"
        )
    return manifest


KINDS = ("ids", "starts")
"""The files of a shard."""


def shard_file(folder: Path, number: int, kind: str) -> Path:
    return folder / f"{number:05}.{kind}.npy"


def shard_record(folder: Path, number: int) -> Path:
    """The file that marks a shard as finished until the manifest is written."""
    return folder / f"{number:05}.json"


def write_shard(
    folder: Path, number: int, pieces: Iterable[Piece], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Writes a shard piece by piece, and returns its entry for the manifest.

    The record of the shard is written last, so that an unfinished shard is never used.
    """
    dtype = np.dtype(next(t for t in (np.uint8, np.uint16, np.uint32) if _fits(tokenizer, t)))
    entry: dict[str, Any] = dict.fromkeys(("tokens", "documents", "characters", "bytes"), 0)
    starts = array("q")

    def write_ids(path: Path) -> None:
        with path.open("wb") as file:
            file.write(_header(dtype, 0))
            for text, begins, _ in pieces:
                if begins:
                    starts.append(entry["tokens"])
                ids = tokenizer.encode(text)
                file.write(ids.astype(dtype, copy=False).data)
                entry["tokens"] += len(ids)
                entry["characters"] += len(text)
                entry["bytes"] += len(text) if text.isascii() else len(text.encode())
            file.seek(0)
            file.write(_header(dtype, entry["tokens"]))

    def write_starts(path: Path) -> None:
        with path.open("wb") as file:
            file.write(_header(np.dtype(np.int64), len(starts)))
            file.write(starts)

    for kind, write in zip(KINDS, (write_ids, write_starts), strict=True):
        write_atomically(shard_file(folder, number, kind), write)
    entry["documents"] = len(starts)
    entry["files"] = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in (shard_file(folder, number, kind) for kind in KINDS)
    }
    write_json(shard_record(folder, number), entry)
    return entry


def write_manifest(
    folder: Path, shards: list[dict[str, Any]], tokenizer: Tokenizer, **facts: Any
) -> dict[str, Any]:
    """Writes the manifest, which completes a folder of shards, and returns it."""
    sums = {
        name: sum(shard[name] for shard in shards)
        for name in ("tokens", "documents", "characters", "bytes")
    }
    sha256 = _sha256(folder / FILE_NAME)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **sums,
        "tokenizer": {"vocab_size": tokenizer.vocab_size, "sha256": sha256},
        **facts,
        "shards": shards,
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except FileNotFoundError:
        raise UserError(_missing(path)) from None


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise UserError(_missing(path)) from None
    if found != size:
        raise UserError(
            f"{path} has {found} bytes, but {MANIFEST} says {size}: "
            "restore the file, or tokenize again"
        )


def _missing(path: Path) -> str:
    return f"{path} is missing, but {MANIFEST} names it: restore it, or tokenize again"


def _mapped(folder: Path, number: int, kind: str) -> np.ndarray:
    path = shard_file(folder, number, kind)
    try:
        return np.load(path, mmap_mode="r")
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): tokenize again") from error


def _fits(tokenizer: Tokenizer, dtype: type[np.unsignedinteger]) -> bool:
    return tokenizer.vocab_size - 1 <= np.iinfo(dtype).max


def _header(dtype: np.dtype, length: int) -> bytes:
    """The header of a .npy file, always 128 bytes: the length is only known at the end."""
    about = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + f"{about!r:<117}\n".encode()
