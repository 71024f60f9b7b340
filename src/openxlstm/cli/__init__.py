"""The command line: one file a command, and the only place where the rooms meet."""

from openxlstm.cli.main import main

__all__ = ["main"]
