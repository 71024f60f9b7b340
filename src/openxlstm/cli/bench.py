"""`openxlstm bench`: its speed on this machine, beside peers and the machine's limits."""

import contextlib
import math
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from openxlstm.cli.options import INTERRUPTED, Quiet, Verbose, check_file, parse
from openxlstm.cli.progress import BenchmarkProgress
from openxlstm.errors import UserError
from openxlstm.files import write_json


@dataclass(frozen=True, kw_only=True)
class Options:
    """Times openxlstm beside its peers, alternating in one process, and beside the limits of this
    machine. A peer that is not installed is listed as such; benchmarks/README.md says how to
    install it.

    A result that is wrong is not timed, and makes the exit code 1."""

    part: Literal["ops", "training", "generation", "all"] = "all"
    """ops: mLSTM and sLSTM, forward and backward. training: a training step of whole models.
    generation: one stream, token by token."""
    quick: bool = False
    """A short run: the first shape of each op, and a single repetition of slow contenders."""
    budget: float | None = None
    """Seconds of timing per part, shared by all contenders; 120 by default, 4 with --quick. Slow
    contenders have a least number of repetitions, so that the run can take longer."""
    threads: int | None = None
    """Number of threads of every contender; by default torch's choice."""
    json: Path | None = None
    """Also write the figures to this file."""
    plot: Path | None = None
    """Also draw the figures, into this PNG file."""
    quiet: Quiet = False
    """No progress."""
    verbose: Verbose = False
    """Show the traceback of an error."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "bench", arguments)
    if options.budget is not None and not 0 < options.budget < math.inf:
        raise UserError(f"budget must be a positive number of seconds, not {options.budget}")
    for name, path in (("--json", options.json), ("--plot", options.plot)):
        if path is not None:
            check_file(name, path)
    if options.plot is not None and options.plot.suffix.lower() != ".png":
        raise UserError(f"--plot writes PNG: give it a name that ends in .png, not {options.plot}")

    from openxlstm.bench.bar_chart import draw_bar_chart
    from openxlstm.bench.session import PARTS, Session, environment
    from openxlstm.bench.tables import print_comparisons
    from openxlstm.device import set_threads

    set_threads(options.threads)
    parts = tuple(PARTS) if options.part == "all" else (options.part,)
    session = Session(parts, quick=options.quick, budget=options.budget)
    with (
        contextlib.suppress(KeyboardInterrupt),  # the figures measured so far are reported
        _warnings_hidden(options.quiet),
        BenchmarkProgress(quiet=options.quiet) as progress,
    ):
        session.run(progress.tell)
    if not session.outcomes:
        return INTERRUPTED
    print_comparisons(session.outcomes, session.limits, environment(), sys.stdout)
    if options.json is not None:
        write_json(options.json, session.to_dict())
    if options.plot is not None:
        draw_bar_chart(options.plot, session.outcomes, session.limits, environment())
    if not session.complete:
        return INTERRUPTED
    return 0 if session.right else 1


@contextlib.contextmanager
def _warnings_hidden(quiet: bool) -> Iterator[None]:
    """Hides the warnings of peers with --quiet."""
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
        yield
