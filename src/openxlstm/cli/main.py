"""`openxlstm COMMAND …`: runs the command, and reports a user's mistake in one line."""

import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence

from openxlstm._version import __version__
from openxlstm.errors import UserError

COMMANDS = {
    "tokenize": "turn text of any size into tokens on disk, for training",
    "train": "train a language model on your own text, or on Shakespeare",
    "eval": "measure a model: loss, perplexity, bits per character",
    "generate": "generate text with a model",
    "convert": "convert a model from or to the formats of NX-AI and Hugging Face",
    "runs": "list training runs, and compare their losses in a picture",
    "plan": "estimate the memory, arithmetic and time of a training run",
    "experiment": "test claims of the paper: state tracking, recall, memory, cost",
    "bench": "measure the speed on this machine, beside peers and its limits",
    "info": "show versions, threads, and which code runs each operation",
}
"""Each names a module in this folder with a function `run(arguments) -> exit code`."""

HELP = "\n".join(
    [
        "usage: openxlstm COMMAND [OPTION …]",
        "",
        "xLSTM for PyTorch: train, evaluate and run language models on a plain CPU.",
        "",
        *(f"  {name:<10} {about}" for name, about in COMMANDS.items()),
        "",
        "openxlstm COMMAND --help shows the options of a command; openxlstm --version the version.",
    ]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0 on success, 2 after a user's mistake, 130 after Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal or pipe that is not UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    code = run(list(sys.argv[1:] if arguments is None else arguments))
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # One of torchrun's processes. A normal exit of Python stops torch's communication threads,
        # which aborts about one time in twenty, after all work is done.
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
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_out_of_memory(error):
            raise
        if {"-v", "--verbose"} & set(rest):
            traceback.print_exc()
        return _complain(_in_one_line(error))


def _in_one_line(error: Exception) -> str:
    """An error in one line; an OSError names its file."""
    if isinstance(error, MemoryError | RuntimeError):
        return "there is not enough memory for this: choose smaller sizes, e.g. --batch-size"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return " ".join(str(error).split())


def _is_out_of_memory(error: RuntimeError) -> bool:
    return any(words in str(error) for words in ("allocate memory", "out of memory"))


def _complain(message: str) -> int:
    size = os.environ.get("WORLD_SIZE", "1")
    who = f" (process {os.environ.get('RANK')} of {size})" if size != "1" else ""
    print(f"openxlstm{who}: {message}", file=sys.stderr)
    return 2
