"""From the text that an option names, fetched with a bar, to tokens."""

from typing import TYPE_CHECKING

from openxlstm.data.corpora import load_documents

if TYPE_CHECKING:
    from torch import Tensor

    from openxlstm.data.tokenizer import Tokenizer


def read_documents(source: str, *, quiet: bool) -> list[str]:
    """The documents of a corpus, file, folder or glob.

    Raises:
        UserError: if they cannot be had.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn(f"downloading {source}"), BarColumn(), DownloadColumn())
    console = Console(stderr=True)
    hidden = quiet or not console.is_terminal
    bar = Progress(*columns, console=console, disable=hidden, transient=True)
    task = bar.add_task("", visible=False)

    def report(done: int, total: int | None) -> None:
        bar.start()
        bar.update(task, completed=done, total=total, visible=True)

    try:
        return load_documents(source, progress=report)
    finally:
        bar.stop()


def to_tokens(
    documents: list[str], tokenizer: "Tokenizer", *, reset: bool
) -> "tuple[Tensor, Tensor | None]":
    """The ids (N,) of some documents, and where the state is emptied (N,); None for nowhere."""
    import torch

    from openxlstm.data.tokenizer import encode_documents

    ids, starts = encode_documents(tokenizer, documents)
    return torch.from_numpy(ids), torch.from_numpy(starts) if reset and starts is not None else None
