"""Options from the command line into a dataclass, by tyro, with its errors in one line."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from openxlstm.errors import UserError

Quiet = Annotated[bool, tyro.conf.arg(aliases=["-q"])]
Verbose = Annotated[bool, tyro.conf.arg(aliases=["-v"])]
O = TypeVar("O")

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def parse(options: type[O], command: str, arguments: Sequence[str]) -> O:
    """The options of one command. `--help` prints them and exits.

    Raises:
        UserError: on an argument that is unknown, missing or of the wrong form.
    """
    prog = f"openxlstm {command}"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            markers = tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone
            return tyro.cli(options, args=arguments, prog=prog, config=markers)
    except SystemExit as exit_:
        if exit_.code == 2:
            raise UserError(f"{_first_words(said.getvalue())}; see {prog} --help") from None
        sys.stderr.write(said.getvalue())
        raise


def check_file(option: str, path: Path) -> None:
    """Raises UserError now for a file that could not be written after minutes of work."""
    if path.is_dir():
        raise UserError(f"{option} needs a file, and {path} is a folder")
    check_writable(option, path)


def check_writable(option: str, path: Path) -> None:
    """Raises UserError if there is no folder that a file could be made in, or is none yet."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{option}: {path} cannot be written; choose another place")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _first_words(box: str) -> str:
    """What stands in the first section of the box that tyro draws around an error, in one line.

    Where standard output is not UTF-8, the box has no sides, and its rules are of hyphens."""
    box = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]  # the first is a title
    section = []
    for line in lines:
        is_rule = bool(line) and set(line) <= set("─-")
        if line.startswith(("╰", "Got errors")) or (is_rule and section):
            break
        if not is_rule:
            section.append(line)
    return " ".join(" ".join(section).split()).rstrip(".") or "the options could not be read"
