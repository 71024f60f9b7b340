"""Turns text into a folder of tokens, with several processes; an interrupted job can resume.

The input is divided into units by the sizes of the files alone, and each unit becomes a shard. So
the shards do not depend on the number of processes, and finished shards are kept.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from openxlstm.data.bpe import SAMPLE_MB
from openxlstm.data.corpora import CORPORA, load_documents
from openxlstm.data.shards import (
    MANIFEST,
    PLAN,
    read_manifest,
    shard_record,
    write_manifest,
    write_shard,
)
from openxlstm.data.sources import Piece, Report, Span, find_files, read_pieces, set_apart
from openxlstm.data.tokenizer import (
    KINDS,
    CharTokenizer,
    Tokenizer,
    find_tokenizer,
    load_tokenizer,
)
from openxlstm.data.tokenizer_json import FILE_NAME
from openxlstm.errors import UserError
from openxlstm.files import read_json, write_json
from openxlstm.spawning import SPAWN, follow_parent, interrupts_held

ReportProgress = Callable[[str, int, int], None]
"""Receives the name of the current phase, the bytes of input read so far, and their total."""


@dataclass(frozen=True, kw_only=True)
class TokenizingJob:
    """Everything that determines the tokens."""

    sources: tuple[str, ...]
    """Corpora by name, files, folders and globs."""
    tokenizer: str = "char"
    """A kind of tokenizer, or the path of an existing one."""
    bpe_vocab_size: int = 4096
    bpe_sample_mb: float = SAMPLE_MB
    field: str = "text"
    """The field of JSON lines and the column of Parquet that holds the text."""
    shard_mb: float = 64
    """Approximate size of a shard, in millions of bytes of input."""


@dataclass(frozen=True)
class Named(Span):
    """A whole named corpus."""


@dataclass(frozen=True)
class Input:
    """A file, or a named corpus."""

    span: Span
    bytes: int
    modified: int = 0
    """Time of the last modification, in nanoseconds."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The input of one shard: files and parts of files, in order."""

    spans: tuple[Span, ...]
    bytes: int
    field: str
    as_it_is: bool
    """Whether the whole input is a single text, whose ends are kept unchanged."""

    def read(self, report: Report) -> Iterator[Piece]:
        for span in self.spans:
            if isinstance(span, Named):
                report(0)
                yield from (Piece(t, begins=True, ends=True) for t in load_documents(span.path))
            else:
                pieces = read_pieces(span, self.field, report)
                yield from pieces if self.as_it_is else set_apart(pieces)


def find_inputs(sources: Iterable[str]) -> list[Input]:
    """The files and named corpora that the sources mean, in order.

    Raises:
        UserError: if a source does not exist.
    """
    found: list[Input] = []
    for source in sources:
        if source in CORPORA:
            size = sum(len(text.encode()) for text in load_documents(source))
            found.append(Input(Named(source), size))
            continue
        try:
            files = [(file.absolute(), file.stat()) for file in find_files(source, CORPORA)]
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"cannot read {source!r:.200} ({error!s:.200}): give another path"
            ) from error
        found += [Input(Span(str(path)), s.st_size, s.st_mtime_ns) for path, s in files]
    return found


def plan_units(inputs: Sequence[Input], field: str, size: int) -> list[Unit]:
    """Units of about `size` bytes: large files are split where possible, small ones are joined."""
    as_it_is = len(inputs) == 1 and inputs[0].span.kind == "text"
    units: list[Unit] = []
    spans: list[Span] = []
    total = 0

    def finish() -> None:
        nonlocal total
        if spans:
            unit = Unit(spans=tuple(spans), bytes=total, field=field, as_it_is=as_it_is)
            units.append(unit)
        spans.clear()
        total = 0

    for found in inputs:
        if total and total + found.bytes > size:
            finish()
        parts = -(-found.bytes // size)
        if parts > 1 and found.span.can_be_cut and not isinstance(found.span, Named):
            places = [found.bytes * part // parts for part in range(parts)]
            for start, stop in zip(places, [*places[1:], None], strict=True):
                spans.append(Span(found.span.path, start, stop))
                total = (found.bytes if stop is None else stop) - start
                finish()
        else:
            spans.append(found.span)
            total += found.bytes
    finish()
    return units


def tokenize(
    job: TokenizingJob,
    folder: Path,
    *,
    workers: int = 1,
    progress: ReportProgress = lambda *_: None,
) -> dict[str, Any]:
    """Writes a folder of tokens, or resumes the same job, and returns the manifest.

    Args:
        workers: number of processes.
        progress: is called while the job runs.

    Raises:
        UserError: if the job cannot be done, or the folder holds something else.
        OSError: if a file cannot be read or written.
    """
    inputs = find_inputs(job.sources)
    sources = [{"path": _in_words(found.span.path), "bytes": found.bytes} for found in inputs]
    facts = {
        "options": {**asdict(job), "sources": [*map(_in_words, job.sources)]},
        "sources": sources,
    }
    plan = {**facts, "modified": [found.modified for found in inputs]}
    units = plan_units(inputs, job.field, max(1, int(job.shard_mb * 1e6)))
    work = partial(_work_off, workers=min(workers, len(units)), progress=progress)
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        _require_same(manifest, facts, folder)
        _tidy(folder, len(units))
        return manifest
    if (folder / PLAN).exists():
        _require_same(read_json(folder / PLAN), plan, folder)
    else:
        if folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))):
            raise UserError(f"the folder {folder} is in use: choose another --out")
        _make_tokenizer(job, units, work, progress).save(folder)
        write_json(folder / PLAN, plan)
    tokenizer = load_tokenizer(folder)
    if job.tokenizer not in KINDS and (
        load_tokenizer(job.tokenizer).to_json() != tokenizer.to_json()
    ):
        raise UserError(_changed(folder, f"the tokenizer {job.tokenizer}"))
    for unfinished in folder.glob(".*.tmp"):  # of processes that were killed
        unfinished.unlink()
    left = {n: unit for n, unit in enumerate(units) if not shard_record(folder, n).exists()}
    work("tokens", partial(_write_unit, folder), left, total=sum(unit.bytes for unit in units))
    shards = [read_json(shard_record(folder, number)) for number in range(len(units))]
    if not any(shard["tokens"] for shard in shards):
        raise UserError(f"there is nothing to read in {', '.join(job.sources)}: give some text")
    manifest = write_manifest(folder, shards, tokenizer, **facts)
    _tidy(folder, len(units))
    return manifest


def _make_tokenizer(
    job: TokenizingJob,
    units: Sequence[Unit],
    work: Callable[..., list[Any]],
    progress: ReportProgress,
) -> Tokenizer:
    """A new tokenizer for the whole text, or the existing one that the job names."""
    total, done = sum(unit.bytes for unit in units), 0
    if job.tokenizer == "char":
        found = work("characters", _characters, dict(enumerate(units)), total=total)
        return CharTokenizer.from_texts(found)

    def report(count: int) -> None:
        nonlocal done
        done += count
        progress("vocabulary", done, total)

    texts = (piece.text for unit in units for piece in unit.read(report))
    options = {"vocab_size": job.bpe_vocab_size, "sample_mb": job.bpe_sample_mb}
    return find_tokenizer(job.tokenizer, texts, **options if job.tokenizer == "bpe" else {})


def _require_same(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raises a UserError that names what has changed since the job started."""
    for name, value in now["options"].items():
        if before.get("options", {}).get(name) != value:
            raise UserError(_changed(folder, f"--{name.replace('_', '-')}"))
    for name in now:
        if before.get(name) != now[name]:
            pairs = zip(now["sources"], before.get("sources", []), strict=False)
            changed = next((a["path"] for a, b in pairs if a != b), "a file of the text")
            raise UserError(_changed(folder, changed))


def _changed(folder: Path, what: str) -> str:
    return (
        f"{folder} belongs to another job: {what} has changed; restore it, or choose another --out"
    )


def _in_words(path: str) -> str:
    """A path as valid text; bytes that are not UTF-8 are replaced."""
    return os.fsencode(path).decode(errors="replace")


def _is_foreign(path: Path) -> bool:
    return path.name != FILE_NAME and not path.name.endswith(".tmp")


def _tidy(folder: Path, units: int) -> None:
    """Removes files that a finished folder no longer needs."""
    for path in (folder / PLAN, *(shard_record(folder, number) for number in range(units))):
        path.unlink(missing_ok=True)


def _characters(number: int, unit: Unit, report: Report) -> str:
    """The different characters of a unit."""
    found: set[str] = set()
    for piece in unit.read(report):
        found.update(piece.text)
    return "".join(found)


def _write_unit(folder: Path, number: int, unit: Unit, report: Report) -> None:
    write_shard(folder, number, unit.read(report), load_tokenizer(folder))


# ---- processes --------------------------------------------------------------------------------


def _work_off(
    what: str,
    task: Callable[[int, Unit, Report], Any],
    units: dict[int, Unit],
    *,
    total: int,
    workers: int,
    progress: ReportProgress,
) -> list[Any]:
    """Runs `task` on each unit in several processes; returns the results in any order."""
    done = total - sum(unit.bytes for unit in units.values())
    progress(what, done, total)
    if workers == 1:

        def report(count: int) -> None:
            nonlocal done
            done += count
            progress(what, done, total)

        return [task(number, unit, report) for number, unit in units.items()]

    read, stop = SPAWN.Value("q", 0), SPAWN.Event()
    results = []
    with ProcessPoolExecutor(workers, SPAWN, _start_worker, (read, stop)) as pool:
        try:
            with interrupts_held():
                waiting = {pool.submit(_in_worker, task, *item) for item in units.items()}
            while waiting:
                finished, waiting = wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED)
                results += [future.result() for future in finished]
                progress(what, done + read.value, total)
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, perhaps because memory ran out: "
                "run the same command again to resume, with fewer --workers"
            ) from None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return results


_shared: tuple[Any, Any]
"""In a worker: the bytes that all workers have read, and an event that tells them to stop."""


def _start_worker(read: Any, stop: Any) -> None:
    global _shared
    _shared = read, stop
    follow_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread: there are enough processes


def _in_worker(task: Callable[[int, Unit, Report], Any], number: int, unit: Unit) -> Any:
    read, stop = _shared

    def report(count: int) -> None:
        if stop.is_set():
            raise InterruptedError("stopped")
        with read.get_lock():
            read.value += count

    return task(number, unit, report)
