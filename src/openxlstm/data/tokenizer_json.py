"""Tokenizers of ours in the JSON of the package `tokenizers`, written and read without it, so that
whatever opens a `tokenizer.json`, `transformers` for one, opens that of a run.

A character that a tokenizer has never seen is an error there too: a `WordLevel` model raises one
where it has no token for what is unknown, and ours has none.
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
"""For transformers. No token is special that was not before: a run has none."""

_SETTINGS = ("truncation", "padding", "post_processor")
"""What a file may ask for and ours do not do."""


def write_tokenizer(folder: str | Path, content: str) -> None:
    """Writes `tokenizer.json` with that content, and `tokenizer_config.json` for transformers."""
    write_text(Path(folder) / CONFIG_NAME, to_text(_CONFIG))
    write_text(Path(folder) / FILE_NAME, content)


def to_text(values: dict[str, Any]) -> str:
    """JSON as in all files of a run."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def describe_characters(characters: str) -> dict[str, Any]:
    """The tokenizer that has a token for each of some characters, numbered in that order."""
    split = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}}  # each character, newlines too
    vocab = {character: number for number, character in enumerate(characters)}
    return _described(
        {**split, "behavior": "Isolated", "invert": False},
        {"type": "Fuse"},
        {"type": "WordLevel", "vocab": vocab, "unk_token": ""},
    )


def describe_bytes() -> dict[str, Any]:
    """The tokenizer that has a token for each byte: a BPE that has learned nothing."""
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
    """What GPT-2 calls each byte: the character of that number where one can see it, else one from
    U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return {chr(byte if byte in visible else next(others)): byte for byte in range(256)}


def described_characters(values: dict[str, Any]) -> str | None:
    """The characters that `describe_characters` described; None if these values are others."""
    vocab = _vocab(values)
    if vocab is None or sorted(vocab.values()) != list(range(len(vocab))):
        return None
    if any(len(token) != 1 for token in vocab):
        return None
    characters = "".join(sorted(vocab, key=vocab.__getitem__))
    return characters if _is(values, describe_characters(characters)) else None


def describes_bytes(values: dict[str, Any]) -> bool:
    """Whether `describe_bytes` described them."""
    return _vocab(values) == byte_tokens() and _is(values, describe_bytes())


def _vocab(values: dict[str, Any]) -> dict[str, int] | None:
    vocab = values["model"].get("vocab")
    if not isinstance(vocab, dict) or any(type(number) is not int for number in vocab.values()):
        return None
    return vocab


def _is(values: dict[str, Any], described: dict[str, Any]) -> bool:
    """Whether they are the same but for settings that nobody here follows."""
    settings = {name: described[name] for name in _SETTINGS}
    return {**values, **settings} == described
