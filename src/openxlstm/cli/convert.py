"""`openxlstm convert`: a model out of a run, as a folder of its own."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from openxlstm.cli.loading import Checkpoint, load_run
from openxlstm.cli.options import Quiet, Verbose, parse
from openxlstm.cli.run_folder import is_in_use
from openxlstm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Writes a run's model, with its weights in one safetensors file however many processes trained
    it, its configuration and its tokenizer."""

    run: tyro.conf.Positional[Path]
    """The run's folder, or a model's."""
    out: Path
    """The folder to write; it must be new or empty."""
    checkpoint: Checkpoint = "best"
    """Which of the run's weights."""
    quiet: Quiet = False
    """Say nothing."""
    verbose: Verbose = False
    """Show the traceback of an error."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "convert", arguments)
    if is_in_use(options.out):
        raise UserError(f"the folder {options.out} is in use: choose another --out")
    model, tokenizer = load_run(options.run, options.checkpoint)
    tokenizer.save(options.out)
    model.save_pretrained(options.out)
    if not options.quiet:
        size = sum(parameter.numel() for parameter in model.parameters())
        print(f"{options.out}: {size:,} parameters", file=sys.stderr)
    return 0
