"""Times `openxlstm.XLSTM` against `torch.nn.LSTM`: a training step, and a step of one stream.

    python benchmarks/layers.py [--widths 64 128] [--rounds 30] [--threads 2] [--json FILE]

A training step is forward, mean squared error of an `nn.Linear(width, 1)` at every step, backward
and fused AdamW, on B 16, T 256 and an input as wide as the layer. A step of a stream is one sample
and one step without gradients, with the state carried: `XLSTM.stepper` against a call of `nn.LSTM`.
All have one layer. The measurements alternate in one process, so that a busy machine slows all
alike. The output is the median, and in brackets the speed relative to nn.LSTM.
"""

import json as json_module
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import nn

import openxlstm

B, T = 16, 256

CONTENDERS: dict[str, Callable[[int], nn.LSTM | openxlstm.XLSTM]] = {
    "nn.LSTM": lambda width: nn.LSTM(width, width, batch_first=True),
    "bare s": lambda width: openxlstm.XLSTM(width, width, batch_first=True, block="bare"),
    "s": lambda width: openxlstm.XLSTM(width, width, batch_first=True),
    "m": lambda width: openxlstm.XLSTM(width, width, batch_first=True, layers="m"),
}

Turn = Callable[[], Any]


def training_step(rnn: nn.LSTM | openxlstm.XLSTM) -> Turn:
    width = rnn.hidden_size
    head = nn.Linear(width, 1)
    parameters = [*rnn.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    x, target = torch.randn(B, T, width), torch.randn(B, T, 1)

    def turn() -> None:
        y, _ = rnn(x)
        loss = nn.functional.mse_loss(head(y), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return turn


def stream_step(rnn: nn.LSTM | openxlstm.XLSTM) -> Turn:
    x = torch.randn(1, rnn.input_size)
    if isinstance(rnn, openxlstm.XLSTM):
        stepper = rnn.stepper()
        return lambda: stepper.step(x)
    state = None

    @torch.no_grad()
    def turn() -> None:
        nonlocal state
        _, state = rnn(x[:, None], state)

    return turn


KINDS = {
    "training step, ms": (training_step, 1e3, 1),
    "step of a stream, µs": (stream_step, 1e6, 200),
}
"""What is timed: how a contender gets its turn, the unit, and how often it goes in a turn."""


def in_turns(turns: dict[str, Turn], repeats: int, rounds: int) -> dict[str, float]:
    """The median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, turn in turns.items():
            turn()  # its weights back into the cache
            start = time.perf_counter()
            for _ in range(repeats):
                turn()
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - start) / repeats)
    return {name: statistics.median(each) for name, each in seconds.items()}


def main(
    widths: tuple[int, ...] = (64, 128, 256, 384), rounds: int = 30, threads: int = 2,
    json: Path | None = None,
) -> None:  # fmt: skip
    """Prints a table of each kind.

    Args:
        widths: features of the input and of the layer.
        rounds: turns of each.
        threads: threads of torch.
        json: a file for the results, in seconds.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    results: list[dict[str, Any]] = []
    for kind, (make_turn, unit, repeats) in KINDS.items():
        table = Table("width", *CONTENDERS, title=f"{kind}, {threads} threads")
        for width in widths:
            turns = {name: make_turn(make(width)) for name, make in CONTENDERS.items()}
            seconds = in_turns(turns, repeats, rounds)
            results.append({"kind": kind, "width": width, "seconds": seconds})
            base = seconds["nn.LSTM"]
            cells = [f"{unit * each:.3g} ({base / each:.2f} ×)" for each in seconds.values()]
            table.add_row(str(width), *cells)
        Console().print(table)
    if json is not None:
        said = {"batch_size": B, "steps": T, "threads": threads, "results": results}
        json.write_text(json_module.dumps(said, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
