"""Dataclasses that are made of dictionaries, strictly: a key that a class does not know, or a value
of the wrong type, is an error rather than a silent default."""

import ast
import dataclasses
import functools
import inspect
import itertools
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, Self

from openxlstm.errors import UserError


def require(condition: bool, message: str) -> None:
    """Raises a `UserError` with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def field_docs(cls: type) -> dict[str, str]:
    """The text under each field of a dataclass and of its bases, as one line, by name."""
    docs = {}
    for base in reversed(cls.__mro__):
        body = _class_bodies(base.__module__).get(base.__name__, [])
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                match text:
                    case ast.Expr(value=ast.Constant(value=str(words))):
                        docs[field.target.id] = " ".join(words.split())
    return docs


@functools.cache
def _class_bodies(module: str) -> dict[str, list[ast.stmt]]:
    """The statements of each class at the top level of a module, from its source."""
    if not module.startswith("openxlstm."):
        return {}
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}


def check_fields(
    config: Any,
    *,
    positive: Iterable[str] = (),
    not_negative: Iterable[str] = (),
    shares: Iterable[str] = (),
) -> None:
    """Checks numeric fields by name; None is accepted.

    Args:
        positive: finite and more than 0.
        not_negative: finite and 0 or more.
        shares: in [0, 1).

    Raises:
        UserError: that names the first field that is out of range.
    """
    ranges: list[tuple[Iterable[str], Callable[[float], bool], str]] = [
        (positive, lambda x: 0 < x < math.inf, "positive"),
        (not_negative, lambda x: 0 <= x < math.inf, "0 or more"),
        (shares, lambda x: 0 <= x < 1, "in [0, 1)"),
    ]
    for names, holds, words in ranges:
        for name in names:
            value = getattr(config, name)
            require(value is None or holds(value), f"{name} must be {words}, not {value}")


class Config:
    """Dictionary in, dictionary out, for every configuration class."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return dataclasses.asdict(self)  # pyright: ignore[reportArgumentType]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The configuration that `to_dict` wrote.

        Raises:
            UserError: on an unknown or missing key, or on a value of the wrong type.
        """
        require(isinstance(values, dict), f"{cls.__name__} needs a table of options")
        fields = {field.name: field for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
        unknown = sorted(set(values) - set(fields))
        require(
            not unknown,
            f"{cls.__name__} has no option {', '.join(map(repr, unknown))}; it has: "
            + ", ".join(fields),
        )
        missing = [
            name
            for name, field in fields.items()
            if name not in values
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        require(not missing, f"{cls.__name__} lacks {', '.join(map(repr, missing))}")
        hints = typing.get_type_hints(cls)
        return cls(**{name: _checked(cls, name, hints[name], v) for name, v in values.items()})

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(field.name for field in dataclasses.fields(cls))  # pyright: ignore[reportArgumentType]

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked like a new one."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]


def _checked(cls: type, name: str, hint: Any, value: Any) -> Any:
    """`value` as the type `hint`, or a UserError that names the option."""
    if hasattr(hint, "__set__"):
        return value  # a descriptor checks it when it is set
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        require(value in choices, f"{name} must be {_either(choices)}, not {value!r}")
        return value
    if typing.get_origin(hint) is tuple:  # tuple[kind, ...], which JSON writes as a list
        kind = typing.get_args(hint)[0]
        require(
            isinstance(value, list | tuple), f"{cls.__name__}.{name} must be a list, not {value!r}"
        )
        return tuple(_checked(cls, name, kind, item) for item in value)
    accepted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    accepted = tuple(typing.get_origin(kind) or kind for kind in accepted)  # dict[…] is a dict
    if float in accepted and type(value) is int:
        require(abs(value) <= 2**53, f"{cls.__name__}.{name} is out of range")
        return float(value)  # JSON writes 1.0 as it likes
    require(
        type(value) in accepted,
        f"{cls.__name__}.{name} must be {_either([t.__name__ for t in accepted])}, not {value!r}",
    )
    return value


def _either(choices: typing.Sequence[Any]) -> str:
    return " or ".join(map(str, choices))
