"""Checkpoints: everything that a run needs to resume exactly.

A checkpoint is a folder, `checkpoints/step-00000250`, of safetensors files, one per process of the
job that wrote it, and of `checkpoint.json`: plain values, and the size and hash of each file.
torch.distributed.checkpoint writes and reads the tensors, so that any number of processes can
resume from it. A single rename puts it in place: after a kill at any moment, the earlier
checkpoints are intact, and the new one is complete or absent.

Tensors are named `model.…`, `optimizer.KEY.PARAMETER` and `state.N` (the carried recurrent state).
If weights are averaged, `model.…` are the averages, which `load_weights` reads, and `unaveraged.…`
the weights that the optimizer updates.
"""

import contextlib
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from openxlstm import states
from openxlstm.errors import UserError
from openxlstm.files import file_sha256, read_json, sync, write_json
from openxlstm.lm.model import LanguageModel
from openxlstm.states import ModelState
from openxlstm.train.processes import ALONE, Processes

CHECKPOINTS, VALUES = "checkpoints", "checkpoint.json"
VERSION = 2
DAMAGED = ".damaged"
"""Suffix of the name of a checkpoint that a run could not resume from."""

Models = dict[str, LanguageModel]
"""Models in a checkpoint, by the prefix of their tensors' names."""


def models_of(model: LanguageModel, average: LanguageModel | None) -> Models:
    """The models of a run, under the names that they have in a checkpoint."""
    return {"model": model} if average is None else {"model": average, "unaveraged": model}


# ---- files ------------------------------------------------------------------------------------


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first; some may be damaged."""
    found = (folder / CHECKPOINTS).glob("step-*")
    return sorted((path for path in found if re.fullmatch(r"step-\d+", path.name)), reverse=True)


def newest(folder: Path, report: Callable[[str], object] = warnings.warn) -> Path | None:
    """The newest intact checkpoint of a run, or None if there is none.

    Args:
        report: called with a line per newer checkpoint, which is damaged.
    """
    for path in checkpoints(folder):
        if (flaw := _flaw(path)) is None:
            return path
        report(f"the checkpoint {path} is damaged ({flaw})")
    return None


def set_aside(folder: Path, path: Path | None) -> None:
    """Renames a run's checkpoints that are newer than `path`, so that they are not read again."""
    for newer in checkpoints(folder):
        if path is None or newer > path:
            damaged = newer.with_name(newer.name + DAMAGED)
            shutil.rmtree(damaged, ignore_errors=True)
            newer.rename(damaged)


def _flaw(path: Path) -> str | None:
    """The first problem with the files of a checkpoint, or None. Reads all of them."""
    try:
        values = read_json(path / VALUES)
    except UserError as error:
        return str(error)
    if values.get("version", VERSION) != VERSION:
        raise UserError(f"{path} has version {values['version']}; this openxlstm reads {VERSION}")
    try:
        for name, (size, sha256) in values["files"].items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size:,} bytes instead of {size:,}"
            if file_sha256(file) != sha256:
                return f"{name} has changed"
    except OSError as error:
        return str(error)
    except (KeyError, TypeError, ValueError, AttributeError):
        return f"{VALUES} is not a checkpoint's"
    return None


def write_tensors(
    folder: Path,
    step: int,
    tensors: dict[str, Tensor],
    values: dict[str, Any],
    *,
    keep: int,
    processes: Processes = ALONE,
) -> None:
    """Writes a checkpoint, then removes all but the newest `keep`. All processes must call it.

    Args:
        folder: the run's folder, in a file system that all processes share.
        tensors: plain tensors that are the same in every process, or DTensors.
        values: JSON-serialisable; those of the first process are written.

    Raises:
        OSError: in every process, if there is no space or no permission. Earlier ones stay intact.
    """
    path = folder / CHECKPOINTS / f"step-{step:08}"
    unfinished = path.with_name(f".{path.name}.tmp")
    if processes.is_first:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(".step-*.tmp"):  # a run was killed while it wrote this
            shutil.rmtree(leftover)
        unfinished.mkdir()
    processes.wait()
    try:
        with _first_error():
            save(
                {name: tensor.detach() for name, tensor in tensors.items()},
                storage_writer=HuggingFaceStorageWriter(str(unfinished), save_distributed=True),
                no_dist=processes.mesh is None,
            )
        mine = unfinished.glob(f"shard-{processes.rank + 1:05}-*")
        hashes = processes.gather({f.name: (f.stat().st_size, file_sha256(f)) for f in mine})
        if processes.is_first:
            files = {name: facts for part in hashes for name, facts in part.items()}
            write_json(unfinished / VALUES, {"version": VERSION, **values, "files": files})
            if path.exists():  # intact or not, it is of the same step
                path.rename(unfinished.with_suffix(".old.tmp"))
            unfinished.rename(path)
            sync(path.parent)
            for old in checkpoints(folder)[keep:]:
                shutil.rmtree(old)
    finally:
        if processes.is_first:
            for leftover in path.parent.glob(".step-*.tmp"):
                shutil.rmtree(leftover, ignore_errors=True)
    processes.wait()


def read_tensors(path: Path, tensors: dict[str, Tensor], *, processes: Processes = ALONE) -> None:
    """Fills tensors, plain ones or DTensors, with those of the same names in a checkpoint.

    Raises:
        OSError: if a file cannot be read.
    """
    with _first_error():
        load(
            tensors,
            storage_reader=HuggingFaceStorageReader(str(path)),
            no_dist=processes.mesh is None,
        )


def shapes(path: Path) -> dict[str, torch.Size]:
    """Names and shapes of the tensors in a checkpoint."""
    found = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    return {
        name: torch.Size(tensor.size)
        for name, tensor in found.items()
        if isinstance(tensor, TensorStorageMetadata)
    }


@contextlib.contextmanager
def _first_error() -> Iterator[None]:
    """Raises the error of one process in place of torch's exception that wraps all of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process alone
        try:
            yield
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            raise next((c for c in causes if isinstance(c, OSError)), causes[0]) from None


# ---- models, optimizer and state --------------------------------------------------------------


def save_checkpoint(
    folder: Path,
    step: int,
    models: Models,
    optimizer: Optimizer,
    state: ModelState | None,
    values: dict[str, Any],
    *,
    keep: int,
    processes: Processes = ALONE,
) -> None:
    """Writes a run's checkpoint: models, optimizer, carried state and JSON-serialisable `values`.

    Raises:
        OSError: like `write_tensors`.
    """
    names: dict[Tensor, str] = {p: name for name, p in _stepped(models).named_parameters()}
    tensors = _weights(models)
    for parameter, slots in optimizer.state.items():
        for key, slot in slots.items():
            tensors[f"optimizer.{key}.{names[parameter]}"] = slot
    tensors |= _named(_whole_rows(state, processes))
    write_tensors(folder, step, tensors, values, keep=keep, processes=processes)


def load_checkpoint(
    path: Path, models: Models, optimizer: Optimizer, *, processes: Processes = ALONE
) -> tuple[ModelState | None, dict[str, Any]]:
    """Loads a checkpoint into models and optimizer; returns this process's rows of the carried
    state, and the values.

    Raises:
        UserError: if it is of another model, or these processes cannot share its batch evenly.
    """
    found = shapes(path)
    tensors, model = _weights(models), _stepped(models)
    expected = {name: tensor.shape for name, tensor in tensors.items()}
    parameters = dict(model.named_parameters())
    for name, shape in found.items():
        match name.split(".", 2):
            case ["optimizer", key, parameter] if parameter in parameters:
                of = parameters[parameter]
                slot = torch.zeros_like(of) if shape == of.shape else torch.zeros(())
                optimizer.state[of][key] = tensors[name] = slot
                expected[name] = slot.shape
    state = None
    if rows := found.get("state.0"):
        if rows[0] % processes.world_size:
            raise UserError(
                f"{path} has the states of {rows[0]} sequences, which {processes.world_size} "
                "processes cannot share evenly: start another number of processes"
            )
        empty = model.initial_state(rows[0] // processes.world_size)
        state = states.map_state(torch.clone, empty)
        parts = _named(_whole_rows(state, processes))
        tensors |= parts
        expected |= {name: part.shape for name, part in parts.items()}
    _compare(path, found, expected)
    kinds = {frozenset(slots) for slots in optimizer.state.values()}
    if len(kinds) > 1 or len(optimizer.state) not in (0, len(parameters)):
        raise UserError(f"{path} is damaged: it lacks a part of the optimizer")
    read_tensors(path, tensors, processes=processes)
    values = read_json(path / VALUES)
    return state, {key: value for key, value in values.items() if key not in ("version", "files")}


def load_weights(path: Path, model: LanguageModel) -> None:
    """Loads a checkpoint's evaluated weights into a model, in this process alone.

    Raises:
        UserError: if they belong to another model.
    """
    tensors = _weights({"model": model})
    found = {name: shape for name, shape in shapes(path).items() if name.startswith("model.")}
    _compare(path, found, {name: tensor.shape for name, tensor in tensors.items()})
    read_tensors(path, tensors)


def _stepped(models: Models) -> LanguageModel:
    """The model that the optimizer updates."""
    return models.get("unaveraged", models["model"])


def _weights(models: Models) -> dict[str, Tensor]:
    return {
        f"{prefix}.{name}": tensor
        for prefix, model in models.items()
        for name, tensor in model.state_dict().items()
        if not (name == "head.weight" and model.config.tie_weights)
    }


def _whole_rows(state: states.S, processes: Processes) -> states.S:
    """A state whose rows are split among the processes, as DTensors."""
    mesh = processes.mesh
    if mesh is None:
        return state
    return states.map_state(lambda part: DTensor.from_local(part, mesh, [Shard(0)]), state)


def _named(state: ModelState | None) -> dict[str, Tensor]:
    return {f"state.{index}": part for index, part in enumerate(states.tensors(state))}


def _compare(path: Path, found: dict[str, torch.Size], expected: dict[str, torch.Size]) -> None:
    """Raises UserError with the name of the first tensor that does not fit the model."""
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            raise UserError(f"{path} lacks the tensor {name}: it is a checkpoint of another model")
        if name not in expected:
            raise UserError(f"{path} holds {name}, which the model does not have")
        if found[name] != expected[name]:
            raise UserError(
                f"{path} has {name} of shape {tuple(found[name])}; "
                f"the model needs {tuple(expected[name])}"
            )
