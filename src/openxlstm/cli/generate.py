"""`openxlstm generate`: text on standard output, as it is written."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from openxlstm.cli.options import Quiet, Verbose, parse
from openxlstm.cli.progress import say
from openxlstm.runs.loading import Checkpoint, Dtype
from openxlstm.runs.run import open_run


@dataclass(frozen=True, kw_only=True)
class Options:
    """Writes text that follows a prompt. Standard output gets that text and nothing else; the
    prompt is repeated on standard error, where a terminal shows it in front."""

    run: tyro.conf.Positional[Path]
    """The run's folder, or a model's."""
    prompt: str = "\n"
    """What the text follows."""
    max_tokens: int = 500
    """Tokens to write; -1 never stops."""
    temperature: float = 0.8
    """0 always takes the likeliest token; 1 draws as the model says."""
    top_k: int | None = None
    """Draw among the so many likeliest tokens only."""
    top_p: float | None = None
    """Draw among the likeliest tokens that together have this probability only."""
    seed: int | None = None
    """The same seed writes the same text."""
    stop: str | None = None
    """End before this text."""
    checkpoint: Checkpoint = "best"
    """Which of the run's weights."""
    dtype: Dtype | None = None
    """Of the weights: bfloat16 takes half the memory of float32; as they are stored by default."""
    device: str = "cpu"
    """Where to compute."""
    threads: int | None = None
    """Threads of an operation; by default torch's choice."""
    quiet: Quiet = False
    """Do not repeat the prompt on standard error."""
    verbose: Verbose = False
    """Show the traceback of an error."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "generate", arguments)

    from openxlstm.device import get_device, set_threads
    from openxlstm.generation.text import generate

    set_threads(options.threads)
    device = get_device(options.device)
    opened = open_run(
        options.run, checkpoint=options.checkpoint, dtype=options.dtype,
        say=None if options.quiet else say,
    )  # fmt: skip
    pieces = generate(
        opened.model.to(device),
        opened.tokenizer,
        options.prompt,
        max_tokens=None if options.max_tokens == -1 else options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        stop=options.stop,
    )
    if not options.quiet:
        print(options.prompt.lstrip("\n"), end="", file=sys.stderr, flush=True)
    last = ""
    for piece in pieces:
        print(piece, end="", flush=True)
        last = piece
    if sys.stdout.isatty() and not last.endswith("\n"):
        print(flush=True)
    return 0
