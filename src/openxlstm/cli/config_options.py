"""Command-line options made from the fields of configurations, in titled groups.

A field becomes an option of its name: `embedding_dim` is `--embedding-dim`, with the text under the
field as its help. An option that is not given leaves the preset's value.
"""

import functools
import operator
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, fields, make_dataclass
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from openxlstm.cli.options import parse
from openxlstm.config import BLOCK_CONFIGS, StackConfig
from openxlstm.config.blocks import BlockField
from openxlstm.errors import UserError
from openxlstm.strict import Config, field_docs

O = TypeVar("O")
C = TypeVar("C", bound=Config)

OPTION_NAMES = {"sources": "data"}
"""Fields whose option has another name."""


def _boolean(words: list[str]) -> bool:
    if len(words) > 1:
        raise ValueError(f"one value at most, not {' '.join(words)}")
    return words != ["False"]


BOOLEAN = PrimitiveConstructorSpec(
    nargs="*",
    metavar="[{True,False}]",
    instance_from_str=_boolean,
    is_instance=lambda value: isinstance(value, bool),
    str_from_instance=lambda value: [str(value)],
    choices=("True", "False"),
)
"""`--option` and `--option True` are the same."""

Boolean = Annotated[bool | None, BOOLEAN, tyro.conf.FlagConversionOff]
"""An option that is True, False or not given."""


def parse_with_configs(
    options: type[O],
    command: str,
    arguments: Sequence[str],
    configs: Sequence[type[Config]],
    groups: Mapping[str, Sequence[str]],
    *,
    values: Mapping[str, Any],
    source: str,
    notes: Mapping[str, str] = {},
) -> tuple[O, dict[str, Any]]:
    """The options of a command: those that it declares, and those of configurations.

    Args:
        options: the options that the command declares, a dataclass.
        configs: classes whose fields are options as well, unless the command declares one of that
            name or no group names it.
        groups: names of options by the title of their group in the help. The first group has no
            title: "".
        values: by name of an option, its value if it is not given. The help shows it.
        source: where `values` are from.
        notes: by name of an option, a sentence to add to its help.

    Returns:
        The options that the command declares, and by name those of configurations that are given.

    Raises:
        UserError: on an argument that is unknown, missing or of the wrong form.
    """
    own = _defaults(options)
    defaults = functools.reduce(operator.or_, map(_defaults, configs)) | own
    kinds = {name: kind for cls in configs for name, kind in _config_options(cls)}
    kinds |= typing.get_type_hints(options, include_extras=True)
    docs = {
        OPTION_NAMES.get(name, name): text
        for cls in (*configs, options)
        for name, text in field_docs(cls).items()
    }

    def option(name: str) -> tuple[str, Any, Any]:
        words = _in_options(" ".join(filter(None, (docs[name], notes.get(name)))), docs)
        value, label = values.get(name, defaults[name]), source if name in values else "default"
        is_shown = value not in (None, "", ()) and not (name in own and value is False)
        hint = f"({label}: {in_words(value)})" if is_shown else ""
        about = tyro.conf.arg(help=words, help_behavior_hint=hint)
        return name, Annotated[kinds[name], about], field(default=own.get(name))

    def group(title: str, names: Sequence[str]) -> tuple[str, Any, Any]:
        made = make_dataclass("Group", map(option, names), frozen=True)
        about = tyro.conf.arg(name=title, help=""), tyro.conf.OmitArgPrefixes
        return _slug(title), Annotated[made, *about], field(default=made())  # pyright: ignore[reportInvalidTypeForm]

    titled = {title: names for title, names in groups.items() if title}
    options_and_groups = [*map(option, groups[""]), *(group(*item) for item in titled.items())]
    made = make_dataclass(options.__name__, options_and_groups, frozen=True)
    made.__doc__ = options.__doc__
    found = vars(parse(made, command, arguments))
    for title in titled:
        found |= vars(found.pop(_slug(title)))
    given = {name: v for name, v in found.items() if name not in own and v is not None}
    return options(**{name: found[name] for name in own}), given


def fields_of(config: Config) -> dict[str, Any]:
    """The fields of a configuration and of its block, by the names of their options."""
    values = {OPTION_NAMES.get(name, name): getattr(config, name) for name in config.names()}
    if isinstance(config, StackConfig):
        values |= {**vars(config.block), "block": config.block.kind}
    return values


def changed(config: C, given: Mapping[str, Any]) -> C:
    """A configuration with those of the given options that are its own, or its block's.

    Raises:
        UserError: if an option belongs to another kind of block, or does not fit the rest.
    """
    changes = {
        name: given[OPTION_NAMES.get(name, name)]
        for name in config.names()
        if OPTION_NAMES.get(name, name) in given
    }
    if isinstance(config, StackConfig):
        kind = changes.get("block", config.block.kind)
        own = set(BLOCK_CONFIGS[kind].names())
        for other, block in BLOCK_CONFIGS.items():
            for name in sorted(set(block.names()) & set(given)):
                if name not in own:
                    raise UserError(
                        f"{flag(name)} is an option of --block {other}, but the block is {kind}"
                    )
                changes[name] = given[name]
    return config.replace(**changes)


def in_words(value: object) -> str:
    """The value of an option as it is typed."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def flag(name: str) -> str:
    """An option as it is typed."""
    return f"--{name.replace('_', '-')}"


def _config_options(cls: type[Config]) -> Iterator[tuple[str, Any]]:
    """Names and types of the options of a class, each of which may be left out."""
    hints = typing.get_type_hints(cls)
    for name in cls.names():
        kind, extras = hints[name], []
        if kind is BlockField:
            kind = Literal["paper", "large"]  # a language model cannot have bare blocks
        elif kind is bool:
            kind = Boolean
        elif typing.get_origin(kind) is tuple:
            extras = [tyro.conf.arg(metavar=f"{typing.get_args(kind)[0].__name__.upper()} ...")]
        yield OPTION_NAMES.get(name, name), Annotated[kind | None, *extras, ""]


def _defaults(cls: type) -> dict[str, Any]:
    return {OPTION_NAMES.get(each.name, each.name): each.default for each in fields(cls)}


def _in_options(text: str, names: Iterable[str]) -> str:
    """A text in which names of fields are those of their options."""
    return re.sub(r"\b[a-z]+(?:_[a-z]+)+\b", lambda m: flag(m[0]) if m[0] in names else m[0], text)


def _slug(title: str) -> str:
    return f"{title.replace(' ', '_')}_options"
