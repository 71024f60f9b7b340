"""Reading the text that an option names, with a bar while it is fetched."""

from openxlstm.data.corpora import load_documents


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
