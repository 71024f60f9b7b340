"""`openxlstm tokenize`: turns text of any size into a folder of tokens."""

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
    "characters": "collecting characters",
    "vocabulary": "learning tokens",
    "tokens": "tokenizing",
}
"""The name of each phase, as the bars show it."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Turns text into a folder of tokens, which `openxlstm train --data FOLDER` reads from disk.

    It needs little memory, whatever the size of the text. Give the same command again to resume
    after a stop."""

    sources: tyro.conf.Positional[tuple[str, ...]]
    """Names of corpora, or files, folders or globs of .txt, .md, .jsonl and .parquet; text and
    .jsonl may be compressed as .gz, .bz2, .xz or .zst. Each file, line or row is a document."""
    out: Path
    """Folder to write."""
    tokenizer: str = DataConfig.tokenizer
    """Kind of tokenizer: char, byte, bpe, or the path of an existing one, such as a run's."""
    bpe_vocab_size: int = DataConfig.bpe_vocab_size
    """Vocabulary size of bpe."""
    bpe_sample_mb: float = 100
    """Most characters that bpe learns from, in millions, sampled from the whole text."""
    field: str = DataConfig.field
    """Field of .jsonl and .parquet files that contains the text."""
    workers: int | None = None
    """Number of processes; by default one per core."""
    shard_mb: float = 64
    """Approximate size of the text of one file of tokens, in millions of bytes."""
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
    config = DataConfig(  # checks the options
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
        print("stopped; give the same command again to resume", file=sys.stderr)
        raise
    if not options.quiet:
        print(_summary(manifest, options.out, time.monotonic() - start), file=sys.stderr)
    return 0


def _summary(manifest: dict[str, Any], folder: Path, seconds: float) -> str:
    """The result and the next command, in a few lines."""
    speed, vocab_size = manifest["bytes"] / 1e6 / seconds, manifest["tokenizer"]["vocab_size"]
    return (
        f"{manifest['tokens']:,} tokens, vocabulary of {vocab_size:,}, from "
        f"{manifest['characters']:,} characters in {_count(manifest['documents'], 'document')}; "
        f"{_count(len(manifest['shards']), 'shard')} in {folder}, "
        f"written in {seconds:.1f} s ({speed:.1f} MB/s)\n"
        f"to train on them:\n  openxlstm train --data {shlex.quote(str(folder))}"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
