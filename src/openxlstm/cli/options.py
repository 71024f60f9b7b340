"""Options from the command line into a dataclass, by tyro, with its errors in one line."""

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import Annotated, TypeVar

import tyro

from openxlstm.errors import UserError

Quiet = Annotated[bool, tyro.conf.arg(aliases=["-q"])]
Verbose = Annotated[bool, tyro.conf.arg(aliases=["-v"])]
O = TypeVar("O")


def parse(options: type[O], command: str, arguments: Sequence[str]) -> O:
    """The options of one command. `--help` prints them and exits.

    Raises:
        UserError: on an argument that is unknown, missing or of the wrong form.
    """
    prog = f"openxlstm {command}"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                options, args=arguments, prog=prog, config=(tyro.conf.FlagCreatePairsOff,)
            )
    except SystemExit as exit_:
        if exit_.code == 2:
            raise UserError(f"{_first_words(said.getvalue())}; see {prog} --help") from None
        sys.stderr.write(said.getvalue())
        raise


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
