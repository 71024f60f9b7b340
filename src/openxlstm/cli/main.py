"""`openxlstm COMMAND …`: finds the command, and turns a user's mistake into one line."""

import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence

from openxlstm._version import __version__
from openxlstm.errors import UserError

COMMANDS = {
    "tokenize": "turn text of any size into tokens on disk, to train on",
    "train": "train a language model on your own text, or on Shakespeare",
    "eval": "measure a model: loss, perplexity, bits per character",
    "generate": "let a model write",
    "convert": "a model from or to the formats of NX-AI and Hugging Face",
    "runs": "list what was trained, compare it in a picture",
    "plan": "say what a training run will take: memory, arithmetic, time",
    "experiment": "the paper's claims, tried here: state tracking, recall, memory, cost",
    "bench": "measure the speed here, beside peers and the machine's limit",
    "info": "versions, threads, and which code runs each operation",
}
"""Each is the module of that name in this folder, with a function `run(arguments) -> exit code`."""

HELP = "\n".join(
    [
        "usage: openxlstm COMMAND [OPTION …]",
        "",
        "xLSTM for PyTorch: trains, evaluates and runs language models on a plain CPU.",
        "",
        *(f"  {name:<10} {about}" for name, about in COMMANDS.items()),
        "",
        "openxlstm COMMAND --help shows the options of a command; --version the version.",
    ]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0 when it did, 2 after a user's mistake, 130 after Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal or pipe that is not UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    code = run(list(sys.argv[1:] if arguments is None else arguments))
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # One among torchrun's processes. Python's ordinary end takes down torch's threads that
        # still listen to the others, and about one time in twenty aborts, with all work done.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Runs a command and returns the exit code."""
    match arguments:
        case [] | ["-h" | "--help" | "help", *_]:
            print(HELP)
            return 0
        case ["--version", *_]:
            print(f"openxlstm {__version__}")
            return 0
        case [name, *_] if name not in COMMANDS:
            return _complain(f"there is no command {name!r}; there are: {', '.join(COMMANDS)}")
    name, *rest = arguments
    try:
        return importlib.import_module(f"openxlstm.cli.{name}").run(rest)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_out_of_memory(error):
            raise
        if {"-v", "--verbose"} & set(rest):
            traceback.print_exc()
        return _complain(_in_words(error))


def _in_words(error: Exception) -> str:
    """One line about an error; an OSError is about a file: no space, no permission."""
    if isinstance(error, MemoryError | RuntimeError):
        return "there is not enough memory for this: choose smaller sizes, e.g. --batch-size"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return " ".join(str(error).split())


def _is_out_of_memory(error: RuntimeError) -> bool:
    words = str(error)
    return "allocate memory" in words or "out of memory" in words


def _complain(message: str) -> int:
    size = os.environ.get("WORLD_SIZE", "1")
    who = f" (process {os.environ.get('RANK')} of {size})" if size != "1" else ""
    print(f"openxlstm{who}: {message}", file=sys.stderr)
    return 2
