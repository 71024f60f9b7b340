"""`openxlstm experiment`: tests claims about xLSTM and its rivals on this machine."""

import contextlib
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from openxlstm._version import __version__
from openxlstm.cli.options import (
    INTERRUPTED,
    Quiet,
    Verbose,
    check_file,
    check_writable,
    cores,
    parse,
)  # fmt: skip
from openxlstm.cli.progress import ContenderBars
from openxlstm.errors import UserError
from openxlstm.experiments.catalogue import EXPERIMENTS
from openxlstm.experiments.claims import ContenderResult
from openxlstm.experiments.workers import Crash, jobs_of, run_jobs
from openxlstm.files import write_json


@dataclass(frozen=True, kw_only=True)
class Options:
    """Tests claims of the xLSTM paper and others on this machine: trains sLSTM, mLSTM,
    torch.nn.LSTM and a Transformer on a task, measures them in the same way, and reports which
    claims hold.

    An experiment takes some minutes on two cores. Without a name, the experiments are listed."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Name of an experiment, or `all`."""
    list: bool = False
    """List the experiments and their claims."""
    quick: bool = False
    """A short run of seconds, which trains too little to judge the claims."""
    out: Path | None = None
    """Folder for result.json and plot.png; by default experiments/NAME. With `all`, the folder that
    contains one folder per experiment."""
    seed: int = 0
    """Seed of weights and examples."""
    processes: int | None = None
    """Contenders that are trained at the same time; by default one per core."""
    json: Path | None = None
    """Also write the figures of a single experiment to this file."""
    quiet: Quiet = False
    """No progress."""
    verbose: Verbose = False
    """Show the traceback of an error."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "experiment", arguments)
    names = names_to_run(options)
    if not names:
        from openxlstm.experiments.verdicts import print_list

        print_list(sys.stdout)
        return 0
    for name in names:
        folder = folder_of(name, options)
        code = run_one(name, folder, options)
        if code:
            return code
    return 0


def names_to_run(options: Options) -> list[str]:
    """The experiments to run; empty if they are to be listed. Raises UserError now for options that
    would fail after minutes."""
    if not 0 <= options.seed < 2**32:
        raise UserError(f"seed must be between 0 and 2**32 - 1, not {options.seed}")
    if options.processes is not None and options.processes < 1:
        raise UserError(f"processes must be at least 1, not {options.processes}")
    if options.name is not None and options.name not in {*EXPERIMENTS, "all"}:
        known = ", ".join(EXPERIMENTS)
        raise UserError(f"there is no experiment {options.name!r}; there are: {known}, and all")
    if options.list or options.name is None:
        return []
    names = list(EXPERIMENTS) if options.name == "all" else [options.name]
    if options.json is not None:
        if len(names) > 1:
            raise UserError("--json is for one experiment; with all, each has a result.json")
        check_file("--json", options.json)
    for name in names:
        folder = folder_of(name, options)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out needs a folder, and {folder} is a file")
        check_writable("--out", folder / "result.json")
    return names


def folder_of(name: str, options: Options) -> Path:
    """The folder of an experiment's files."""
    if options.out is None:
        return Path("experiments") / name
    return options.out / name if options.name == "all" else options.out


def run_one(name: str, folder: Path, options: Options) -> int:
    """Runs an experiment, then prints and writes its results, also after Ctrl-C."""
    from openxlstm.experiments.line_chart import draw_experiment
    from openxlstm.experiments.verdicts import print_verdicts, to_json

    found: dict[str, ContenderResult] = {}
    crashes: list[Crash] = []
    interrupted = False
    jobs = jobs_of(name, options.seed, options.quick)
    with ContenderBars(name, [job.contender for job in jobs], quiet=options.quiet) as bars:
        results = run_jobs(jobs, options.processes or cores(), bars.update)
        try:
            with contextlib.closing(results):
                for result in results:
                    if isinstance(result, Crash):
                        crashes.append(result)
                    else:
                        found[result.contender] = result
                        bars.finish(result)
        except KeyboardInterrupt:
            interrupted = True
    if found:
        complete = not interrupted and not crashes
        result = to_json(
            name, found, _environment(), quick=options.quick, seed=options.seed, complete=complete
        )
        print_verdicts(name, found, sys.stdout, quick=options.quick, seed=options.seed)
        for path in filter(None, (folder / "result.json", options.json)):
            write_json(path, result)
        draw_experiment(folder / "plot.png", name, found, quick=options.quick)
        if not options.quiet:
            print(f"written: {folder / 'result.json'}, {folder / 'plot.png'}", file=sys.stderr)
    if interrupted:
        return INTERRUPTED
    if crashes:
        if options.verbose:
            print(*(crash.trace for crash in crashes), sep="\n", file=sys.stderr)
        first = crashes[0]
        raise UserError(f"{name}: {first.contender} did not finish: {first.reason}")
    return 0


def _environment() -> dict[str, Any]:
    """The machine and the versions that the figures were measured with."""
    from importlib.metadata import version

    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "openxlstm": __version__,
        "torch": version("torch"),
        "python": platform.python_version(),
    }
