"""Writes and reads the `tokenizer.json` of the package `tokenizers` without that package, so that
`transformers` and others can open the tokenizer of a run.

An unknown character is an error there, too: a `WordLevel` model without an unknown token raises
one.
"""

import json
from pathlib import Path
from typing import Any

from openxlstm.files import write_text

FILE_NAME, CONFIG_NAME = "tokenizer.json", "tokenizer_config.json"

_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    "model_input_names": ["input_ids", "attention_mask"],
    "padding_side": "left",
}
"""Options for transformers. A run has no special tokens."""

_SETTINGS = ("truncation", "padding", "post_processor")
"""Settings of a file that the character and byte tokenizers do not apply."""


def write_tokenizer(folder: str | Path, content: str) -> None:
    """Writes `tokenizer.json` with that content, and `tokenizer_config.json` for transformers."""
    write_text(Path(folder) / CONFIG_NAME, to_text(_CONFIG))
    write_text(Path(folder) / FILE_NAME, content)


def to_text(values: dict[str, Any]) -> str:
    """JSON, formatted as in all files of a run."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def describe_characters(characters: str) -> dict[str, Any]:
    """The description of a tokenizer with one token per character, numbered in order."""
    split = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}}  # each character, newlines too
    vocab = {character: number for number, character in enumerate(characters)}
    return _described(
        {**split, "behavior": "Isolated", "invert": False},
        {"type": "Fuse"},
        {"type": "WordLevel", "vocab": vocab, "unk_token": ""},
    )


def describe_bytes() -> dict[str, Any]:
    """The description of a tokenizer with one token per byte: a BPE without merges."""
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False, "vocab": byte_tokens(), "merges": [],
    }  # fmt: skip
    return _described({**by_bytes, "use_regex": False}, {**by_bytes, "use_regex": True}, model)


def _described(
    pre_tokenizer: dict[str, Any], decoder: dict[str, Any], model: dict[str, Any]
) -> dict[str, Any]:
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": pre_tokenizer, "post_processor": None,
        "decoder": decoder, "model": model,
    }  # fmt: skip


def byte_tokens() -> dict[str, int]:
    """GPT-2's name for each byte: its character if that is visible, else one from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return {chr(byte if byte in visible else next(others)): byte for byte in range(256)}


def described_characters(values: dict[str, Any]) -> str | None:
    """The characters, if `describe_characters` made this description; else None."""
    vocab = _vocab(values)
    if vocab is None or sorted(vocab.values()) != list(range(len(vocab))):
        return None
    if any(len(token) != 1 for token in vocab):
        return None
    characters = "".join(sorted(vocab, key=vocab.__getitem__))
    return characters if _is(values, describe_characters(characters)) else None


def describes_bytes(values: dict[str, Any]) -> bool:
    """Whether `describe_bytes` made this description."""
    return _vocab(values) == byte_tokens() and _is(values, describe_bytes())


def _vocab(values: dict[str, Any]) -> dict[str, int] | None:
    vocab = values["model"].get("vocab")
    if not isinstance(vocab, dict) or any(type(number) is not int for number in vocab.values()):
        return None
    return vocab


def _is(values: dict[str, Any], described: dict[str, Any]) -> bool:
    """Whether two descriptions are equal, apart from settings that are not applied here."""
    settings = {name: described[name] for name in _SETTINGS}
    return {**values, **settings} == described
