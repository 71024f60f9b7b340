"""Reads the configuration of another library strictly: an option is either used, or known to have
no effect on results, or an error that names it."""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from openxlstm.errors import UserError
from openxlstm.files import read_json

V = TypeVar("V")


class Options:
    """A table of options. `finish` raises an error if an option was neither read nor ignored.

    Args:
        values: the options by name.
        place: the origin of the table, for messages.
        prefix: prefix of the names in messages, for a table inside another.
    """

    def __init__(self, values: Mapping[str, Any], place: str, prefix: str = "") -> None:
        self.place, self.prefix = place, prefix
        self._values = dict(values)
        self._left = set(self._values)

    def take(self, name: str, default: V) -> V:
        """The value of an option, of the type of its default; an integer may stand for a float.

        Raises:
            UserError: on a value of another type.
        """
        self._left.discard(name)
        value = self._values.get(name, default)
        if isinstance(default, float) and type(value) in (int, str):
            value = _as_float(value)  # YAML reads 1e-6, without a point, as text
        if type(value) is not type(default):
            self.fail(name, f"must be of type {type(default).__name__}")
        return value

    def need(self, name: str, *others: str) -> int:
        """The value of a required positive integer, under one of its names.

        Raises:
            UserError: if it is missing or not a positive integer.
        """
        values = {key: self.raw(key) for key in (name, *others) if self.raw(key) is not None}
        if not values:
            raise UserError(f"{self.place} lacks the option {self.prefix}{name}: add it")
        for key, value in values.items():
            if type(value) is not int or value < 1:
                self.fail(key, "must be a whole number of 1 or more")
            if value != next(iter(values.values())):
                first = next(iter(values))
                self.fail(key, f"is not the same as {first}={values[first]!r}")
        return next(iter(values.values()))

    def raw(self, name: str, default: Any = None) -> Any:
        """The value of an option, unchecked."""
        self._left.discard(name)
        return self._values.get(name, default)

    def table(self, name: str) -> "Options | None":
        """A table inside this one; None if it is absent or null.

        Raises:
            UserError: if the value is not a table.
        """
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(name, "must be a table of options")
        return Options(value, self.place, f"{self.prefix}{name}.")

    def only(self, name: str, *values: Any) -> None:
        """Accepts an option with one of some values; the first is the default.

        Raises:
            UserError: on another value, which openxlstm does not support.
        """
        value = self.raw(name, values[0])
        if not any(type(value) is type(known) and value == known for known in values):
            known = " or ".join(map(repr, values))
            self.fail(name, f"has no counterpart in openxlstm, which supports only {known}")

    def ignore(self, names: Collection[str]) -> None:
        """Accepts options that have no effect in openxlstm."""
        self._left -= set(names)

    def finish(self, *, allow_unknown: bool = False) -> None:
        """Raises UserError if an option was neither read nor ignored."""
        if self._left and not allow_unknown:
            unknown = ", ".join(f"{self.prefix}{name}" for name in sorted(map(str, self._left)))
            raise UserError(
                f"{self.place} has options that openxlstm does not know: {unknown}; "
                "--allow-unknown skips them"
            )

    def fail(self, name: str, why: str) -> NoReturn:
        """Raises UserError about an option."""
        value = self._values.get(name)
        if isinstance(value, str) and "${" in value:
            why = "refers to an option that does not exist; write its value instead"
        raise UserError(f"{self.place}: {self.prefix}{name}={value!r} {why}")

    def __contains__(self, name: str) -> bool:
        return name in self._values


def read_table(path: Path) -> dict[str, Any]:
    """Reads the table in a JSON or YAML file.

    Raises:
        UserError: if the file is missing, damaged, or does not hold a table.
    """
    if path.suffix.lower() not in (".yaml", ".yml"):
        return read_json(path)
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: it does not hold a table of options")
    return values


def below_model(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a model: the whole table, or the table `model` in the configuration of a run.

    References such as ${dataset.kwargs.vocab_size} are resolved as in OmegaConf.
    """
    model = values.get("model")
    return _resolved(model if isinstance(model, dict) else values, values)


def factor_of(width: int, dim: int, given: float, rule: Callable[[float], int]) -> float:
    """A factor with rule(factor) == width: the given one if it fits, else about width/dim."""
    near = (given, width / dim, (width + 0.5) / dim, (width - 0.5) / dim)
    return next(factor for factor in near if rule(factor) == width)


def _resolved(value: Any, root: Mapping[str, Any]) -> Any:
    """A value with its references resolved; an invalid reference is kept."""
    if isinstance(value, dict):
        return {key: _resolved(part, root) for key, part in value.items()}
    if isinstance(value, list):
        return [_resolved(part, root) for part in value]
    reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
    if reference is None:
        return value
    found: Any = root
    for key in reference[1].split("."):
        if not isinstance(found, dict) or key not in found:
            return value
        found = found[key]
    return found


def _as_float(value: int | str) -> float | str:
    try:
        return float(value)
    except (ValueError, OverflowError):
        return str(value)
