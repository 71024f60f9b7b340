"""Files that are whole, whatever happens while they are written."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from openxlstm.errors import UserError
from openxlstm.files import new_folder, read_json, write_atomically, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "x.txt"
    write_text(path, "Zähne\n")
    assert path.read_bytes() == "Zähne\n".encode()
    write_text(path, "shorter")
    assert path.read_text() == "shorter"
    assert names(path.parent) == ["x.txt"]


def test_json_round_trip(tmp_path: Path) -> None:
    values = {"a": [1, 2.5, None, True], "ä": {"b": "c"}}
    write_json(tmp_path / "x.json", values)
    assert read_json(tmp_path / "x.json") == values
    assert "ä" in (tmp_path / "x.json").read_text(encoding="utf-8"), "readable by people"


class Broken(Exception):
    pass


@pytest.mark.parametrize("existed", [False, True])
def test_a_writer_that_raises_leaves_everything_as_it_was(tmp_path: Path, existed: bool) -> None:
    path = tmp_path / "x.txt"
    if existed:
        path.write_text("old")

    def write(unfinished: Path) -> None:
        unfinished.write_text("half")
        raise Broken

    with pytest.raises(Broken):
        write_atomically(path, write)
    assert names(tmp_path) == (["x.txt"] if existed else [])
    assert not existed or path.read_text() == "old"


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    seen = []

    def write(unfinished: Path) -> None:
        unfinished.write_text("new, but not yet")
        seen.append(path.read_text())
        assert unfinished.parent == path.parent, "a rename does not cross file systems"
        assert unfinished.name.startswith("."), "a glob does not take it for a finished file"

    write_atomically(path, write)
    assert seen == ["old"]
    assert path.read_text() == "new, but not yet"


def test_a_kill_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just before the rename; what is left over does not look like the file."""
    path = tmp_path / "x.txt"
    path.write_text("old")

    def killed(self: Path, *_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are posix's")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    """Even where the writer, as safetensors' does, makes a file of its own with others."""

    def write(unfinished: Path) -> None:
        unfinished.unlink()
        unfinished.write_text("x")
        unfinished.chmod(0o400)

    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "x.txt", write)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.txt").stat().st_mode) == mode


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.txt").mkdir()
    with pytest.raises(OSError, match=r"x\.txt"):
        write_text(tmp_path / "x.txt", "new")
    assert names(tmp_path) == ["x.txt"]


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        write_text(tmp_path / "file" / "x.txt", "new")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b'{"a": 1', "damaged"),
        (b'{"a": "\xff"}', "damaged"),
        (b"[" * 100_000, "damaged"),
        (b"[1, 2]", "table of options"),
        (b"3", "table of options"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_json(tmp_path / "x.json")
    assert str(tmp_path / "x.json") in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.json does not exist"):
        read_json(tmp_path / "x.json")


# ---- folders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("existed", [False, True])
def test_a_folder_comes_whole(tmp_path: Path, existed: bool) -> None:
    path = tmp_path / "above" / "x"
    if existed:
        path.mkdir(parents=True)
    with new_folder(path) as folder:
        write_text(folder / "a.txt", "a")
        assert existed == path.exists()
        assert not (path / "a.txt").exists()
    assert names(path) == ["a.txt"]
    assert names(path.parent) == ["x"]


def fill(path: Path, then: Callable[[], object]) -> None:
    """Makes a folder with a file, and lets something happen meanwhile."""
    with new_folder(path) as folder:
        write_text(folder / "a.txt", "new")
        then()


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        raise Broken

    with pytest.raises(Broken):
        fill(tmp_path / "x", fail)
    assert names(tmp_path) == []


def test_a_folder_does_not_take_the_place_of_another(tmp_path: Path) -> None:
    other = tmp_path / "x" / "b.txt"
    with pytest.raises(OSError, match="not empty"):
        fill(tmp_path / "x", lambda: write_text(other, "somebody else's"))
    assert names(tmp_path) == ["x"]
    assert names(tmp_path / "x") == ["b.txt"]
