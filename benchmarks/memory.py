"""Measures the peak memory of openxlstm.ops.mlstm, forward and backward, against the length T.

    python benchmarks/memory.py [--peer] [--json FILE]

One sequence, 4 heads of width 64, float32. Each length runs in a separate process, which first
imports everything and computes a few steps; its peak memory so far is the baseline. The figure is
the rise of the peak resident memory above it: inputs, output, gradients and temporary buffers.
Memory that grows linearly shows as a constant number of bytes per step.

The parent process does not import torch, because on Linux a child's peak starts at its parent's.
"""

import json as json_module
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

NH, D = 4, 64
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
PEER_LENGTHS = (1024, 2048, 4096)
"""NX-AI's parallel form holds T × T matrices; at T = 8192 they need more than 10 GB."""
WARM_UP = 128


def peak_bytes() -> int:
    """The highest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_once(who: str, T: int) -> None:
    """Forward and backward over T steps."""
    import torch
    import torch.nn.functional as F

    q, k, v = (torch.randn(1, NH, T, D, requires_grad=True) for _ in range(3))
    i, f = (torch.randn(1, NH, T, requires_grad=True) for _ in range(2))
    if who == "openxlstm":
        import openxlstm.ops

        h, _ = openxlstm.ops.mlstm(q, k, v, i, F.logsigmoid(f + 4))
    else:
        from xlstm.blocks.mlstm.backends import (  # pyright: ignore[reportMissingImports]
            parallel_stabilized_simple,
        )

        h = parallel_stabilized_simple(q, k, v, i[..., None], f[..., None] + 4)
    torch.autograd.grad(h, (q, k, v, i, f), torch.randn_like(h))


def measure_here(who: str, T: int, threads: int) -> int:
    """Bytes by which this process's peak rises in a run over T steps."""
    import torch

    torch.set_num_threads(threads)
    run_once(who, WARM_UP)
    baseline = peak_bytes()
    run_once(who, T)
    return peak_bytes() - baseline


def measure(who: str, T: int, threads: int) -> int:
    """`measure_here` in a fresh process."""
    command = [sys.executable, __file__, "--child", who, "--length", str(T)]
    command += ["--threads", str(threads)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main(
    peer: bool = False,
    threads: int = 2,
    json: Path | None = None,
    child: Literal["openxlstm", "NX-AI parallel"] | None = None,
    length: int = 0,
) -> None:
    """Prints the peak memory of one mLSTM, forward and backward, at each length.

    Args:
        peer: NX-AI's parallel form too, up to T = 4096 (about 3 GB).
        threads: threads of torch.
        json: a file for the results.
        child: for the script itself: measure this in the present process.
        length: for the script itself: T.
    """
    if child is not None:
        print(measure_here(child, length, threads))
        return

    table = Table(title=f"peak memory, B 1, NH {NH}, D {D}, float32, forward + backward")
    table.add_column("who", no_wrap=True)
    for column in ("T", "MiB", "KiB per step", "of the line above"):
        table.add_column(column, justify="right")
    results: list[dict[str, Any]] = []
    runs = [("openxlstm", LENGTHS), *([("NX-AI parallel", PEER_LENGTHS)] if peer else [])]
    for who, lengths in runs:
        before = None
        for T in lengths:
            peak = measure(who, T, threads)
            results.append({"who": who, "T": T, "peak_bytes": peak})
            growth = "" if before is None else f"× {peak / before:.2f}"
            table.add_row(who, str(T), f"{peak / 2**20:.1f}", f"{peak / 2**10 / T:.1f}", growth)
            before = peak
        table.add_section()
    Console().print(table)
    if json is not None:
        json.write_text(json_module.dumps({"NH": NH, "D": D, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
