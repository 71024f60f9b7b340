"""From what a `DataConfig` names, fetched with a bar, to a tokenizer and tokens."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from openxlstm.config import DataConfig
from openxlstm.data.corpora import load_documents, split_documents

if TYPE_CHECKING:
    from openxlstm.data.tokenizer import Tokenizer
    from openxlstm.data.tokens import Tokens

HINT = 30
"""Characters of a text that are shown as a prompt to start with."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is trained on, or held out, of each source."""

    tokens: "tuple[Tokens, ...]"
    """One row for each source, in order."""
    characters: int
    """That all of them stand for."""

    def __len__(self) -> int:
        return sum(map(len, self.tokens))

    @property
    def characters_per_token(self) -> float:
        return self.characters / max(len(self), 1)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """All that a run reads. Its parts are made when they are first asked for."""

    data: DataConfig
    tokenizer: "Tokenizer"
    sources: tuple[Sequence[str], ...]
    """The documents of each source."""
    sha256: str
    """Of all that was read, to know it by."""

    @cached_property
    def train(self) -> Part:
        """What is trained on."""
        return self._part(0)

    @cached_property
    def val(self) -> Part:
        """What is held out."""
        return self._part(1)

    @cached_property
    def whole(self) -> Part:
        """Both in one, uncut."""
        return self._part(None)

    @cached_property
    def hint(self) -> str:
        """The first words of it."""
        lines = (re.search(r"\S.*", text) for source in self.sources for text in source)
        return next((line[0][:HINT].rstrip() for line in lines if line), "")

    def _part(self, number: int | None) -> Part:
        from openxlstm.data.tokenizer import encode_documents

        rows, characters, data = [], 0, self.data
        for documents in self.sources:
            if number is not None:
                documents = split_documents(documents, data.val_fraction, data.val_split)[number]
            row = encode_documents(self.tokenizer, documents)
            rows.append(row if data.reset_at_documents else row.as_one_document())
            characters += sum(map(len, documents))
        return Part(tokens=tuple(rows), characters=characters)


def open_corpus(
    data: DataConfig, *, tokenizer: "Tokenizer | None" = None, quiet: bool = False
) -> Corpus:
    """Opens all the sources that `data` names.

    Args:
        tokenizer: that of a run that is there already; without it, one is made for the text, or
            loaded, as `data` says.

    Raises:
        UserError: if a source or a tokenizer cannot be had, or they do not fit together.
    """
    from openxlstm.data.tokenizer import find_tokenizer

    sources = tuple(_read_documents(source, quiet=quiet) for source in data.sources)
    if tokenizer is None:
        texts = (text for documents in sources for text in documents)
        tokenizer = find_tokenizer(data.tokenizer, texts)
    digests = [_text_sha256(documents) for documents in sources]
    sha256 = digests[0] if len(digests) == 1 else _text_sha256(digests)
    return Corpus(data=data, tokenizer=tokenizer, sources=sources, sha256=sha256)


def _read_documents(source: str, *, quiet: bool) -> list[str]:
    """The documents of a corpus, file, folder or glob."""
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


def _text_sha256(documents: Sequence[str]) -> str:
    """The SHA-256 of the joined text as UTF-8."""
    digest = hashlib.sha256()
    for text in documents:
        digest.update(text.encode())
    return digest.hexdigest()
