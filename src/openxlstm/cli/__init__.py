"""The command line: one file per command, and the only room that may import all others."""

from openxlstm.cli.main import main

__all__ = ["main"]
