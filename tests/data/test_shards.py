"""A folder of tokens reads like the text in memory, and nothing that has changed is read."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from openxlstm.data.shards import find_token_folder, open_token_folder, write_manifest, write_shard
from openxlstm.data.sources import Piece
from openxlstm.data.tokenizer import CharTokenizer, Tokenizer, encode_documents
from openxlstm.errors import UserError

DOCUMENTS = ["the cat sat\n\n", "on the mat\n\n", "größer\n\n"]


def write(folder: Path, tokenizer: Tokenizer) -> Path:
    """Two shards, the second of which begins within a document."""
    tokenizer.save(folder)
    first, second, third = DOCUMENTS
    pieces = [
        [(first[:5], True, False), (first[5:], False, True), (second[:4], True, False)],
        [(second[4:], False, True), (third, True, True)],
    ]
    shards = [
        write_shard(folder, n, [Piece(*piece) for piece in some], tokenizer)
        for n, some in enumerate(pieces)
    ]
    write_manifest(folder, shards, tokenizer, sources=[])
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "tokens", CharTokenizer.from_texts(DOCUMENTS))


@pytest.mark.parametrize(
    ("characters", "dtype"), [(0, np.uint8), (300, np.uint16), (66_000, np.uint32)]
)
def test_it_reads_like_the_text(tmp_path: Path, characters: int, dtype: type):
    more = "".join(map(chr, range(0x10000, 0x10000 + characters)))
    tokenizer = CharTokenizer.from_texts([*DOCUMENTS, more])
    folder = write(tmp_path, tokenizer)
    opened, expected = open_token_folder(folder), encode_documents(tokenizer, DOCUMENTS)
    assert np.load(folder / "00000.ids.npy").dtype == dtype
    assert len(opened.tokens) == len(expected) == opened.characters == 33
    rows = [(np.zeros(33, np.int64), np.zeros(33, np.bool_)) for _ in range(2)]
    opened.tokens.read(0, *rows[0])
    expected.read(0, *rows[1])
    assert np.array_equal(rows[0], rows[1])
    assert opened.tokenizer.to_json() == tokenizer.to_json()


def test_what_the_manifest_says(folder: Path):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == "openxlstm-tokens"
    assert (manifest["tokens"], manifest["documents"], manifest["characters"]) == (33, 3, 33)
    assert manifest["bytes"] == len("".join(DOCUMENTS).encode())
    files = {name: entry for shard in manifest["shards"] for name, entry in shard["files"].items()}
    assert {name: entry["bytes"] for name, entry in files.items()} == {
        path.name: path.stat().st_size for path in folder.glob("*.npy")
    }


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


BREAK: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "renamed": lambda path: path.rename(path.with_name("other.npy")),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "altered": change,
}


@pytest.mark.parametrize("how", BREAK)
@pytest.mark.parametrize("name", ["00000.ids.npy", "00001.starts.npy", "tokenizer.json"])
def test_what_has_changed_is_named(folder: Path, name: str, how: str):
    reported = []
    open_token_folder(folder, "hashes", lambda *now: reported.append(now))
    assert reported[-1][0] == reported[-1][1] > 500
    BREAK[how](folder / name)
    with pytest.raises(UserError) as caught:
        open_token_folder(folder)
    assert str(folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    if how != "altered" or name == "tokenizer.json":
        with pytest.raises(UserError, match=name):
            open_token_folder(folder, "sizes")
    else:
        open_token_folder(folder, "sizes")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "damaged"),
        ("{}", "no folder of tokens"),
        ('{"format": "openxlstm-tokens", "version": 2}', "install a newer openxlstm"),
        ('{"format": "openxlstm-tokens", "version": 1}', "damaged"),
        ('{"format": "openxlstm-tokens", "version": 1, "shards": [3]}', "damaged"),
    ],
)
def test_a_broken_manifest(folder: Path, content: str, reason: str):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=reason):
        open_token_folder(folder)


def test_a_folder_that_is_not_finished(folder: Path):
    assert find_token_folder(str(folder)) == folder
    (folder / "manifest.json").rename(folder / "unfinished.json")
    assert find_token_folder(str(folder)) == folder
    with pytest.raises(UserError, match="is not finished: run the same openxlstm tokenize"):
        open_token_folder(folder)
    (folder / "unfinished.json").unlink()
    for other in (str(folder), "shakespeare", "x" * 5000, "~nobody-is-called-this", "\0"):
        assert find_token_folder(other) is None


def test_a_shard_without_text(tmp_path: Path):
    tokenizer = CharTokenizer("ab")
    tokenizer.save(tmp_path)
    shards = [
        write_shard(tmp_path, n, [Piece(text, True, True)] if text else [], tokenizer)
        for n, text in enumerate(["", "ab", ""])
    ]
    write_manifest(tmp_path, shards, tokenizer)
    assert len(open_token_folder(tmp_path).tokens) == 2
