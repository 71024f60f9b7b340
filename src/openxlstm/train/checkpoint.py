"""All that a run needs to go on as if it had never stopped, in one safetensors file.

Tensors are named `model.…`, `optimizer.KEY.PARAMETER`, `state.…` (the carried recurrent state) and
`rng`. Where weights are averaged, `model.…` are the averages, which are what others read, and
`unaveraged.…` the weights that the optimizer steps. The plain values are JSON in the file's
metadata. One file, replaced atomically: a kill at any moment leaves the old checkpoint or the new.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from openxlstm import states
from openxlstm.errors import UserError
from openxlstm.lm.folder import put_weights, read_weights, save_weights
from openxlstm.lm.model import LanguageModel
from openxlstm.states import ModelState

METADATA = "openxlstm_checkpoint"
VERSION = 1


def save_checkpoint(
    path: Path,
    model: LanguageModel,
    optimizer: Optimizer,
    state: ModelState | None,
    values: dict[str, Any],
    average: LanguageModel | None = None,
) -> None:
    """Writes model, optimizer, carried state, torch's random state and JSON-ready `values`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {
        f"{prefix}.{name}": tensor
        for prefix, part in _models(model, average).items()
        for name, tensor in part.state_dict().items()
        if not (name == "head.weight" and model.config.tie_weights)
    }
    for parameter, slots in optimizer.state.items():
        for key, slot in slots.items():
            tensors[f"optimizer.{key}.{names[parameter]}"] = slot
    for index, part in enumerate(states.tensors(state)):
        tensors[f"state.{index}"] = part
    tensors["rng"] = torch.get_rng_state()
    metadata = {METADATA: json.dumps({"version": VERSION, **values})}
    save_weights(path, tensors, metadata=metadata)


def load_checkpoint(
    path: Path, model: LanguageModel, optimizer: Optimizer, average: LanguageModel | None = None
) -> tuple[ModelState | None, dict[str, Any]]:
    """Puts a checkpoint into model, average, optimizer and torch's random state; returns the rest.

    Raises:
        UserError: if the file is missing, damaged, or of another model.
    """
    tensors, metadata = read_weights(path)
    try:
        values = json.loads(metadata[METADATA])
        version = values.pop("version")
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError(f"{path} is not a training checkpoint") from None
    if version != VERSION:
        raise UserError(f"{path} is a checkpoint of version {version}; this openxlstm reads 1")
    for prefix, part in _models(model, average).items():
        names = [name for name in tensors if name.startswith(f"{prefix}.")]
        weights = {name.removeprefix(f"{prefix}."): tensors[name] for name in names}
        put_weights(part, weights, path, tied=model.config.tie_weights)
    _load_optimizer(path, tensors, model, optimizer)
    parts = [tensors[f"state.{i}"] for i in range(sum(n.startswith("state.") for n in tensors))]
    if "rng" not in tensors:
        raise UserError(f"{path} is damaged: it lacks the random state")
    torch.set_rng_state(tensors["rng"])
    if not parts:
        return None, values
    remaining = iter(parts)
    template = model.initial_state(parts[0].shape[0])
    return states.map_state(lambda part: next(remaining).to(part.device), template), values


def _models(model: LanguageModel, average: LanguageModel | None) -> dict[str, LanguageModel]:
    """What a checkpoint holds the weights of, by the first part of their names."""
    return {"model": model} if average is None else {"model": average, "unaveraged": model}


def _load_optimizer(
    path: Path, tensors: dict[str, Tensor], model: LanguageModel, optimizer: Optimizer
) -> None:
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        match name.split(".", 2):
            case ["optimizer", key, parameter_name]:
                parameter = parameters.get(parameter_name)
                if parameter is None or tensor.shape not in (parameter.shape, ()):
                    raise UserError(f"{path}: {name} does not fit the model")
                optimizer.state[parameter][key] = tensor.to(parameter.device)
    kinds = {frozenset(slots) for slots in optimizer.state.values()}
    if len(kinds) > 1 or len(optimizer.state) not in (0, len(parameters)):
        raise UserError(f"{path} is damaged: it lacks a part of the optimizer")
