"""Translates tensors between openxlstm and other libraries, by the rows of `keymap`. Names and
shapes are checked at once; tensors are computed on access."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from openxlstm.errors import UserError
from openxlstm.interop.keymap import SAME, Row, Shape

Shapes = Mapping[str, Shape]


class LazyTensors(Mapping[str, Tensor]):
    """A mapping of tensors by name, each computed on every access."""

    def __init__(self, entries: Mapping[str, Callable[[], Tensor]]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> Tensor:
        return self._entries[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @classmethod
    def renamed(cls, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> "LazyTensors":
        """Renames tensors; `names` maps each new name to the old one."""
        return cls({name: partial(tensors.__getitem__, of) for name, of in names.items()})

    def map(self, change: Callable[[str, Tensor], Tensor]) -> "LazyTensors":
        """The same tensors, each changed by `change(name, tensor)` on access."""
        return LazyTensors({name: _changing(self, name, change) for name in self})


def to_ours(
    rows: Iterable[Row],
    theirs: Mapping[str, Tensor],
    ours: Shapes,
    place: str,
    *,
    may_lack: Collection[str] = (),
    ignore: Collection[str] = (),
    allow_unknown: bool = False,
    notes: list[str] | None = None,
) -> LazyTensors:
    """Translates the tensors of another library ("theirs") to openxlstm's ("ours").

    Args:
        rows: the key map; rows whose tensors the model does not have are skipped.
        theirs: the tensors of the checkpoint.
        ours: the shapes of the model's tensors.
        place: the name of the checkpoint in messages.
        may_lack: tensors of ours that become 0 if the checkpoint does not have them.
        ignore: tensors of theirs that are not parameters.
        allow_unknown: skip unknown tensors, instead of raising.
        notes: receives a note if tensors were skipped.

    Raises:
        UserError: if a tensor is missing, unknown, of another shape or not floating-point; the
            message names the first one.
    """
    entries: dict[str, Callable[[], Tensor]] = {}
    known = set(ignore)
    for entry in _rows_for(rows, ours):
        known |= set(entry.theirs)
        if set(entry.ours) <= set(may_lack) and not any(name in theirs for name in entry.theirs):
            dtype = next(iter(theirs.values())).dtype
            entries |= {name: _zeros(ours[name], dtype) for name in entry.ours}
            continue
        for name, shape in their_shapes(entry, ours).items():
            _check(name, shape, theirs, place)
        entries |= _reading(entry, theirs, [ours[name] for name in entry.ours])
    lost = set(ours) - set(entries)
    assert not lost, f"the key map has no row for {', '.join(sorted(lost))}"
    unknown = sorted(set(theirs) - known)
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    if unknown and notes is not None:
        notes.append(f"{unknown[0]}{more}, which the model does not have, was skipped")
    if unknown and not allow_unknown:
        raise UserError(
            f"{place} holds {unknown[0]}{more}, which the model does not have; "
            "--allow-unknown skips it"
        )
    return LazyTensors(entries)


def to_theirs(rows: Iterable[Row], ours: Mapping[str, Tensor]) -> LazyTensors:
    """Translates openxlstm's tensors to those of another library; skips those without a row."""
    entries: dict[str, Callable[[], Tensor]] = {}
    for entry in _rows_for(rows, ours):
        for index, name in enumerate(entry.theirs):
            entries[name] = _writing(entry, ours, index)
    return LazyTensors(entries)


def their_shapes(entry: Row, ours: Shapes) -> dict[str, Shape]:
    """The shapes of the other library's tensors in a row."""
    empty = [torch.empty(ours[name], device="meta") for name in entry.ours]
    written = entry.form.write(empty)
    return {name: tuple(part.shape) for name, part in zip(entry.theirs, written, strict=True)}


def _rows_for(rows: Iterable[Row], ours: Collection[str]) -> Iterator[Row]:
    for entry in rows:
        has = [name in ours for name in entry.ours]
        assert all(has) or not any(has), f"half of {', '.join(entry.ours)}"
        if all(has):
            yield entry


def _check(name: str, shape: Shape, theirs: Mapping[str, Tensor], place: str) -> None:
    if name not in theirs:
        raise UserError(f"{place} lacks the tensor {name} of shape {shape}: it holds another model")
    tensor = theirs[name]
    if tuple(tensor.shape) != shape:
        found = tuple(tensor.shape)
        raise UserError(f"{place} has {name} of shape {found}; the configuration needs {shape}")
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{place} has {name} of type {kind}; weights are floating-point numbers")


def _reading(
    entry: Row, theirs: Mapping[str, Tensor], shapes: Sequence[Shape]
) -> dict[str, Callable[[], Tensor]]:
    def part(index: int) -> Callable[[], Tensor]:
        if entry.form is SAME:  # as it is in the file, which may be mapped
            return lambda: theirs[entry.theirs[index]]
        return lambda: entry.form.read(their_tensors(), shapes)[index].contiguous()

    def their_tensors() -> list[Tensor]:
        return [theirs[name] for name in entry.theirs]

    return {name: part(index) for index, name in enumerate(entry.ours)}


def _writing(entry: Row, ours: Mapping[str, Tensor], index: int) -> Callable[[], Tensor]:
    return lambda: entry.form.write([ours[name] for name in entry.ours])[index].contiguous()


def _zeros(shape: Shape, dtype: torch.dtype) -> Callable[[], Tensor]:
    return lambda: torch.zeros(shape, dtype=dtype)


def _changing(
    tensors: Mapping[str, Tensor], name: str, change: Callable[[str, Tensor], Tensor]
) -> Callable[[], Tensor]:
    return lambda: change(name, tensors[name])
