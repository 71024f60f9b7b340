"""A folder of tokens: shards, which are mapped into memory, and the manifest they are checked by.

manifest.json       what there is, with sizes and SHA-256; it is written last
tokenizer.json
00000.ids.npy       (N,) uint8, uint16 or uint32, the ids of a shard
00000.starts.npy    (D,) int64, the places in it at which a document begins
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
"""What of a shard is compared with the manifest."""


@dataclass(frozen=True, kw_only=True)
class TokenFolder:
    """A folder of tokens that is open."""

    tokens: Tokens
    tokenizer: Tokenizer
    characters: int
    """That all tokens stand for."""
    sha256: str
    """Of the manifest, which has the hashes of all the rest."""


def find_token_folder(source: str) -> Path | None:
    """The path of a source, if it is that of a folder of tokens, be it finished or not."""
    try:
        folder = Path(source).expanduser()
        names = {name for name in (PLAN, MANIFEST, FILE_NAME) if (folder / name).is_file()}
    except (OSError, RuntimeError):  # a name too long; a ~name that nobody has
        return None
    return folder if PLAN in names or names == {MANIFEST, FILE_NAME} else None


def open_token_folder(
    folder: Path, verify: Verify = "hashes", report: Callable[[int, int], None] = lambda *_: None
) -> TokenFolder:
    """The tokens in a folder, mapped into memory: they are read when they are used.

    Args:
        verify: whether every byte is checked, or only that all files are there, of the right size.
        report: is called with the bytes that are checked, and of how many.

    Raises:
        UserError: that names the file, if one is missing, cut short or not what it was.
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
                    f"{folder / name} is not what {MANIFEST} says, it has changed: "
                    "put the old file back, or tokenize anew"
                )
            report(done := done + entry["bytes"], total)
        ids, starts = ([_mapped(folder, n, kind) for n in range(len(shards))] for kind in KINDS)
        several = manifest["documents"] > 1  # one that is alone does not begin, as in a text
        return TokenFolder(
            tokens=Tokens(*ids, starts=starts if several else ()),
            tokenizer=load_tokenizer(folder),
            characters=manifest["characters"],
            sha256=_sha256(folder / MANIFEST),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / MANIFEST} is damaged ({error!r}): tokenize anew") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `manifest.json` says.

    Raises:
        UserError: if there is none, or one that this version does not understand.
    """
    if not (folder / MANIFEST).is_file() and (folder / PLAN).is_file():
        raise UserError(
            f"{folder} is not finished: run the openxlstm tokenize that began it once more"
        )
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise UserError(f"{folder / MANIFEST} is not a manifest of tokens: give another folder")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{folder / MANIFEST} has version {manifest.get('version')!r}, and this openxlstm "
            f"reads {VERSION}: install a newer openxlstm"
        )
    return manifest


KINDS = ("ids", "starts")
"""The files of a shard."""


def shard_file(folder: Path, number: int, kind: str) -> Path:
    return folder / f"{number:05}.{kind}.npy"


def shard_record(folder: Path, number: int) -> Path:
    """The file that says, until there is a manifest, that a shard is finished."""
    return folder / f"{number:05}.json"


def write_shard(
    folder: Path, number: int, pieces: Iterable[Piece], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Writes a shard piece by piece, and returns its entry in the manifest.

    It is there whole or not at all: its record is written last.
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
    """Writes what makes a folder of shards complete, and returns it."""
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
            f"{path} has {found} bytes, and {MANIFEST} says {size}: "
            "put the old file back, or tokenize anew"
        )


def _missing(path: Path) -> str:
    return f"{path} is missing, which {MANIFEST} names: put it back, or tokenize anew"


def _mapped(folder: Path, number: int, kind: str) -> np.ndarray:
    path = shard_file(folder, number, kind)
    try:
        return np.load(path, mmap_mode="r")
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): tokenize anew") from error


def _fits(tokenizer: Tokenizer, dtype: type[np.unsignedinteger]) -> bool:
    return tokenizer.vocab_size - 1 <= np.iinfo(dtype).max


def _header(dtype: np.dtype, length: int) -> bytes:
    """The start of a .npy file: 128 bytes whatever the length, which is known at the end alone."""
    about = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + f"{about!r:<117}\n".encode()
