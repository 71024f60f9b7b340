"""`openxlstm tokenize`: text of any size to a folder of tokens."""

import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from openxlstm.cli.options import Quiet, Verbose, cores, parse
from openxlstm.cli.progress import byte_bars
from openxlstm.config import DataConfig
from openxlstm.errors import UserError

WORDS = {
    "characters": "looking for characters",
    "vocabulary": "learning tokens",
    "tokens": "tokenizing",
}
"""What is shown of each part of the work."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Turns text into a folder of tokens, which `openxlstm train --data FOLDER` reads from disk.

    It takes little memory, whatever the size of the text. What was stopped goes on when the same
    command is given again."""

    sources: tyro.conf.Positional[tuple[str, ...]]
    """Corpora by name, files, folders or globs: of .txt and .md, .jsonl and .parquet, and of text
    and .jsonl compressed as .gz, .bz2, .xz or .zst. Each file, line or row is a document."""
    out: Path
    """The folder to make."""
    tokenizer: str = DataConfig.tokenizer
    """The unit of text: char, byte, bpe, or the path of a tokenizer to use, such as a run's."""
    bpe_vocab_size: int = DataConfig.bpe_vocab_size
    """Number of different tokens that bpe learns."""
    bpe_sample_mb: float = 100
    """Million characters that bpe learns from, at most, taken from all over the text."""
    field: str = DataConfig.field
    """The field of .jsonl and .parquet files that holds the text."""
    workers: int | None = None
    """Processes that work at the same time; by default one for each core."""
    shard_mb: float = 64
    """Million bytes of text in a file of tokens, about."""
    quiet: Quiet = False
    """No progress and no summary."""
    verbose: Verbose = False
    """Show the traceback of an error."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "tokenize", arguments)
    workers = cores() if options.workers is None else options.workers
    for name in ("workers", "shard_mb", "bpe_sample_mb"):
        value = workers if name == "workers" else getattr(options, name)
        if value <= 0:
            raise UserError(f"{name} must be positive, not {value}")
    config = DataConfig(  # which checks them
        sources=options.sources, tokenizer=options.tokenizer,
        bpe_vocab_size=options.bpe_vocab_size, field=options.field,
    )  # fmt: skip

    from openxlstm.data.tokenizing import TokenizingJob, tokenize

    job = TokenizingJob(
        sources=config.sources, tokenizer=config.tokenizer, bpe_vocab_size=config.bpe_vocab_size,
        bpe_sample_mb=options.bpe_sample_mb, field=config.field, shard_mb=options.shard_mb,
    )  # fmt: skip
    start = time.monotonic()
    try:
        with byte_bars(WORDS, quiet=options.quiet) as progress:
            manifest = tokenize(job, options.out, workers=workers, progress=progress)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise
    if not options.quiet:
        print(_summary(manifest, options.out, time.monotonic() - start), file=sys.stderr)
    return 0


def _summary(manifest: dict[str, Any], folder: Path, seconds: float) -> str:
    """What was made, in two lines."""
    speed = manifest["bytes"] / 1e6 / seconds
    return (
        f"{manifest['tokens']:,} tokens, {manifest['tokenizer']['vocab_size']:,} different, of "
        f"{manifest['characters']:,} characters in {_count(manifest['documents'], 'document')}; "
        f"{_count(len(manifest['shards']), 'shard')} in {folder}, "
        f"made in {seconds:.1f} s ({speed:.1f} MB/s)\n"
        f"to train on them:\n  openxlstm train --data {shlex.quote(str(folder))}"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
