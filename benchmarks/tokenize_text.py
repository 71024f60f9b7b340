"""Measures `openxlstm tokenize`: megabytes per second, and the memory of all its processes.

    python benchmarks/tokenize_text.py TEXT [--megabytes 1000] [--json FILE]

The text is repeated up to the size, in a temporary folder. Repetition favours BPE, which caches
words; text with many rare words is slower. Memory is read from /proc ten times per second: the sum
of the proportional set sizes of all processes, in which a shared page counts once, and, as an upper
bound, the sum of their resident memory.
"""

import json as json_module
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

Kind = Literal["byte", "char", "bpe"]


def repeat(text: bytes, size: int, file: Path) -> None:
    """Writes `text` again and again, to at least `size` bytes."""
    block = text * (1 + 2**24 // len(text))
    with file.open("wb") as out:
        while out.tell() < size:
            out.write(block[: max(len(text), size - out.tell())])


def family(root: int) -> list[int]:
    """A process and all that come from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):  # it has ended meanwhile
                parent = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def memory(root: int) -> tuple[int, int]:
    """Bytes that a process and its children hold: proportional, and resident."""
    sums = {"Pss": 0, "Rss": 0}
    for process in family(root):
        with suppress(OSError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                name, _, rest = line.partition(":")
                if name in sums:
                    sums[name] += 1024 * int(rest.split()[0])
    return sums["Pss"], sums["Rss"]


def measure(kind: Kind, text: Path, folder: Path, workers: int) -> dict[str, Any]:
    """Tokenizes in a process of its own."""
    out = folder / kind
    command = [sys.executable, "-m", "openxlstm", "tokenize", str(text), "--out", str(out)]
    command += ["--tokenizer", kind, "--workers", str(workers), "--quiet"]
    start, peak = time.perf_counter(), (0, 0)
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = tuple(map(max, peak, memory(process.pid)))
            time.sleep(0.1)
    if process.returncode:
        sys.exit(process.returncode)
    seconds = time.perf_counter() - start
    manifest = json_module.loads((out / "manifest.json").read_text())
    megabytes = manifest["bytes"] / 1e6
    return {
        "tokenizer": kind,
        "megabytes": megabytes,
        "seconds": seconds,
        "megabytes_per_second": megabytes / seconds,
        "peak_pss_bytes": peak[0],
        "peak_rss_bytes": peak[1],
        "tokens": manifest["tokens"],
    }


def main(
    text: Annotated[Path, tyro.conf.Positional],
    megabytes: int = 1000,
    workers: int = 2,
    kinds: tuple[Kind, ...] = ("byte", "char", "bpe"),
    json: Path | None = None,
) -> None:
    """Prints speed and memory of each tokenizer.

    Args:
        text: what is repeated.
        megabytes: size of the text that is tokenized, in million bytes.
        workers: processes that tokenize.
        kinds: the tokenizers.
        json: a file for the results.
    """
    columns = ("tokenizer", "MB", "seconds", "MB/s", "peak MB (PSS)", "peak MB (RSS)", "tokens")
    table = Table(*columns, title=f"openxlstm tokenize, {workers} workers")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "text.txt"
        repeat(text.read_bytes(), megabytes * 10**6, file)
        for kind in kinds:
            result = measure(kind, file, Path(folder), workers)
            results.append(result)
            table.add_row(
                kind, f"{result['megabytes']:.0f}", f"{result['seconds']:.1f}",
                f"{result['megabytes_per_second']:.1f}", f"{result['peak_pss_bytes'] / 1e6:.0f}",
                f"{result['peak_rss_bytes'] / 1e6:.0f}", f"{result['tokens']:,}",
            )  # fmt: skip
    Console().print(table)
    if json is not None:
        json.write_text(json_module.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
