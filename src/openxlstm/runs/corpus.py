"""From what a `DataConfig` names, fetched with a bar, to a tokenizer and tokens."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from openxlstm.config import DataConfig
from openxlstm.data.corpora import CORPORA, load_documents, split, split_documents
from openxlstm.errors import UserError

if TYPE_CHECKING:
    from openxlstm.data.shards import TokenFolder, Verify
    from openxlstm.data.tokenizer import Tokenizer
    from openxlstm.data.tokens import Tokens

HINT = 30
"""Characters of a text that are shown as a prompt to start with."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is trained on, or held out, of each source."""

    tokens: "tuple[Tokens, ...]"
    """One row for each source, in order."""
    characters: float
    """That all of them stand for; of tokens on disk, about."""

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
    sources: "tuple[list[str] | TokenFolder, ...]"
    """The documents of each source, or the tokens."""
    sha256: str
    """Of all of them, to know them by."""

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
        lines = (
            re.search(r"\S.*", text) for source in self.sources for text in self._texts(source)
        )
        return next((line[0][:HINT].rstrip() for line in lines if line), "")

    def _texts(self, source: "list[str] | TokenFolder") -> list[str]:
        """Its documents; of tokens, only how they begin."""
        import numpy as np

        if isinstance(source, list):
            return source
        ids = np.empty(min(4 * HINT, len(source.tokens)), np.int64)
        source.tokens.read(0, ids)
        return [self.tokenizer.decode(ids)]

    def _part(self, number: int | None) -> Part:
        rows = [self._row(source, number) for source in self.sources]
        keep = self.data.reset_at_documents
        return Part(
            tokens=tuple(row if keep else row.as_one_document() for row, _ in rows),
            characters=sum(characters for _, characters in rows),
        )

    def _row(self, source: "list[str] | TokenFolder", number: int | None) -> "tuple[Tokens, float]":
        """The tokens of a part of a source, and how many characters they stand for.

        A text is cut at a character, tokens on disk at a token.
        """
        from openxlstm.data.tokenizer import encode_documents

        cut = self.data.val_fraction, self.data.val_split
        if isinstance(source, list):
            part = source if number is None else split_documents(source, *cut)[number]
            return encode_documents(self.tokenizer, part), sum(map(len, part))
        row = source.tokens if number is None else split(source.tokens, *cut)[number]
        return row, source.characters * len(row) / len(source.tokens)


def open_corpus(
    data: DataConfig,
    *,
    tokenizer: "Tokenizer | None" = None,
    verify: "Verify" = "hashes",
    quiet: bool = False,
) -> Corpus:
    """Opens all the sources that `data` names.

    Args:
        tokenizer: that of a run that is there already. Without it, that of the tokens on disk is
            used; without such, one is made for the text, or loaded, as `data` says.
        verify: what of tokens on disk is checked.
        quiet: no bars.

    Raises:
        UserError: if a source or a tokenizer cannot be had, or they do not fit together.
    """
    from openxlstm.data.shards import TokenFolder, find_token_folder
    from openxlstm.data.tokenizer import KINDS, find_tokenizer

    def open_source(source: str) -> "list[str] | TokenFolder":
        folder = None if source in CORPORA else find_token_folder(source)
        if folder is None:
            return _read_documents(source, data.field, quiet=quiet)
        return _open_tokens(folder, verify, quiet=quiet)

    sources = tuple(map(open_source, data.sources))
    folders = [source for source in sources if isinstance(source, TokenFolder)]
    if tokenizer is None and folders and data.tokenizer in KINDS:
        tokenizer = folders[0].tokenizer
    if tokenizer is None:
        texts = (text for source in sources if isinstance(source, list) for text in source)
        options = {"vocab_size": data.bpe_vocab_size} if data.tokenizer == "bpe" else {}
        tokenizer = find_tokenizer(data.tokenizer, texts, **options)
    if any(folder.tokenizer.to_json() != tokenizer.to_json() for folder in folders):
        raise UserError(
            "the sources are tokenized in different ways, or otherwise than the model expects: "
            "run openxlstm tokenize with --tokenizer and the folder of the model or of the tokens"
        )
    digests = [
        _text_sha256(source) if isinstance(source, list) else source.sha256 for source in sources
    ]
    sha256 = digests[0] if len(digests) == 1 else _text_sha256(digests)
    return Corpus(data=data, tokenizer=tokenizer, sources=sources, sha256=sha256)


def _read_documents(source: str, field: str, *, quiet: bool) -> list[str]:
    """The documents of a corpus, file, folder or glob."""
    with _bar(f"downloading {source}", quiet=quiet) as report:
        return load_documents(source, field=field, progress=report)


def _open_tokens(folder: Path, verify: "Verify", *, quiet: bool) -> "TokenFolder":
    """The tokens in a folder, once they are checked."""
    from openxlstm.data.shards import open_token_folder

    with _bar(f"checking {folder}", quiet=quiet) as report:
        return open_token_folder(folder, verify, report)


@contextmanager
def _bar(description: str, *, quiet: bool) -> Iterator[Callable[[int, int | None], None]]:
    """A bar of bytes on standard error, if that is a terminal, from the first report on."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn(escape(description)), BarColumn(), DownloadColumn())
    console = Console(stderr=True)
    hidden = quiet or not console.is_terminal
    bar = Progress(*columns, console=console, disable=hidden, transient=True)
    task = bar.add_task("", visible=False)

    def report(done: int, total: int | None) -> None:
        bar.start()
        bar.update(task, completed=done, total=total, visible=True)

    try:
        yield report
    finally:
        bar.stop()


def _text_sha256(documents: Sequence[str]) -> str:
    """The SHA-256 of the joined text as UTF-8."""
    digest = hashlib.sha256()
    for text in documents:
        digest.update(text.encode())
    return digest.hexdigest()
