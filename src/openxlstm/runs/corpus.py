"""The text of a run, from the sources that a `DataConfig` names: tokenizer and tokens."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from openxlstm.config import DataConfig
from openxlstm.data.corpora import CORPORA, load_documents, split, split_documents
from openxlstm.errors import UserError

if TYPE_CHECKING:
    from openxlstm.data.shards import TokenFolder, Verify
    from openxlstm.data.tokenizer import Tokenizer
    from openxlstm.data.tokens import Tokens

HINT = 30
"""Most characters of `Corpus.hint`."""

ShowBytes = Callable[[str, int, int | None], None]
"""Called with what is being read, how many bytes of it have been, and of how many, if known."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The training or the validation part of each source."""

    tokens: "tuple[Tokens, ...]"
    """One per source, in order."""
    characters: float
    """Characters of text that the tokens stand for; an estimate for tokens on disk."""

    def __len__(self) -> int:
        return sum(map(len, self.tokens))

    @property
    def characters_per_token(self) -> float:
        return self.characters / max(len(self), 1)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """All sources of a run, opened. Its parts are tokenized when they are first asked for."""

    data: DataConfig
    tokenizer: "Tokenizer"
    sources: "tuple[list[str] | TokenFolder, ...]"
    """Per source its documents, or its tokens on disk."""
    sha256: str
    """SHA-256 of all sources: a resumed run checks that its text is the same."""

    @cached_property
    def train(self) -> Part:
        """The training part."""
        return self._part(0)

    @cached_property
    def val(self) -> Part:
        """The validation part."""
        return self._part(1)

    @cached_property
    def whole(self) -> Part:
        """The whole text, not split."""
        return self._part(None)

    @cached_property
    def hint(self) -> str:
        """The first words of the text, to be used as an example of a prompt."""
        lines = (
            re.search(r"\S.*", text) for source in self.sources for text in self._texts(source)
        )
        return next((line[0][:HINT].rstrip() for line in lines if line), "")

    def _texts(self, source: "list[str] | TokenFolder") -> list[str]:
        """A source's documents; only the first characters of tokens on disk."""
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

        Text is split at a character, tokens on disk at a token.
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
    progress: ShowBytes | None = None,
) -> Corpus:
    """Opens all the sources that `data` names.

    Args:
        tokenizer: the tokenizer of an existing run. By default the one of tokens on disk, if `data`
            names any, else one that is made for the text or loaded, as `data.tokenizer` says.
        verify: the check of tokens on disk.
        progress: called while a source is downloaded or checked.

    Raises:
        UserError: if a source or a tokenizer cannot be read, or they do not fit together.
    """
    from openxlstm.data.shards import TokenFolder, find_token_folder, open_token_folder
    from openxlstm.data.tokenizer import KINDS, find_tokenizer

    def open_source(source: str) -> "list[str] | TokenFolder":
        folder = None if source in CORPORA else find_token_folder(source)
        if folder is None:
            report = _report(f"downloading {source}", progress)
            return load_documents(source, field=data.field, progress=report)
        return open_token_folder(folder, verify, _report(f"checking {folder}", progress))

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
            "the sources are tokenized differently, or not as the model expects: run openxlstm "
            "tokenize with --tokenizer and the folder of the model or of the tokens"
        )
    digests = [
        _text_sha256(source) if isinstance(source, list) else source.sha256 for source in sources
    ]
    sha256 = digests[0] if len(digests) == 1 else _text_sha256(digests)
    return Corpus(data=data, tokenizer=tokenizer, sources=sources, sha256=sha256)


def _report(what: str, progress: ShowBytes | None) -> Callable[[int, int | None], None]:
    return (lambda done, total: None) if progress is None else partial(progress, what)


def _text_sha256(documents: Sequence[str]) -> str:
    """The SHA-256 of the joined texts as UTF-8."""
    digest = hashlib.sha256()
    for text in documents:
        digest.update(text.encode())
    return digest.hexdigest()
