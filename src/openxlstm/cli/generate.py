"""`openxlstm generate`: prints generated text, piece by piece."""

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
    """Generates text that continues a prompt. Standard output gets only that text; the prompt is
    repeated on standard error, so that a terminal shows it in front."""

    run: tyro.conf.Positional[Path]
    """Folder of a run or a model."""
    prompt: str = "\n"
    """Text to continue."""
    max_tokens: int = 500
    """Tokens to generate; -1 never stops."""
    temperature: float = 0.8
    """0 always picks the likeliest token; 1 samples from the model's distribution."""
    top_k: int | None = None
    """Sample only among this many of the likeliest tokens."""
    top_p: float | None = None
    """Sample only among the likeliest tokens that together have this probability."""
    seed: int | None = None
    """Seed of the sampling; the same seed gives the same text."""
    stop: str | None = None
    """Stop before this text."""
    checkpoint: Checkpoint = "best"
    """Weights of a run: best has the lowest validation loss, last is the newest checkpoint."""
    dtype: Dtype | None = None
    """Type of the weights, by default as stored. bfloat16 takes half the memory of float32."""
    device: str = "cpu"
    """Device to compute on."""
    threads: int | None = None
    """Number of threads; by default torch's choice."""
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
