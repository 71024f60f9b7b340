"""Exports a layer to ONNX: a step, or sequences of any length, with the state in and out."""

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openxlstm.errors import UserError
from openxlstm.nn.cells import MLSTMCell, SLSTMCell
from openxlstm.nn.rnn import XLSTM
from openxlstm.states import map_state, names, tensors

PACKAGES = ("onnx", "onnxscript")

OF_TORCH = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "# The axis name: (batch|time) will not be used",
)
"""Warnings that torch's exporter raises about its own code."""


def export_onnx(
    module: XLSTM | SLSTMCell | MLSTMCell,
    path: str | Path,
    *,
    num_steps: int | None = None,
    batch_size: int | None = None,
    reset: bool = False,
) -> None:
    """Writes a layer or a cell, in evaluation mode, as an ONNX model that runs without openxlstm.

    The inputs are `x`, one `state.…` per tensor of the state and, with `reset=True`, `reset`. The
    outputs are `y` and one `next_state.…` per state input, in the same order. Shapes are those of
    the module's own call; an empty state is all zeros.

    Args:
        module: the layer or cell to export. A cell is always exported as a single step.
        path: the file to write. Weights beyond 2 GB are written to `path`.data.
        num_steps: length of the sequences; None for any length, 1 for a smaller and faster model
            of a single step.
        batch_size: number of samples; None for any number.
        reset: whether the exported layer has an input for resets.

    Raises:
        UserError: if a package is missing, or `module` or an option cannot be exported.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(
            f"export_onnx needs {' and '.join(missing)}: run `pip install openxlstm[onnx]`"
        )
    if not isinstance(module, XLSTM | SLSTMCell | MLSTMCell):
        raise UserError(
            f"export_onnx takes an XLSTM, an SLSTMCell or an MLSTMCell, not a "
            f"{type(module).__name__}; for a compiled module, pass the original module"
        )
    for name, size in (("num_steps", num_steps), ("batch_size", batch_size)):
        if size is not None and size < 1:
            raise UserError(f"{name} must be at least 1 or None for any number, not {size}")
    is_cell = not isinstance(module, XLSTM)
    if is_cell and (reset or num_steps not in (None, 1)):
        raise UserError("a cell reads one step and has no resets: pass a state of zeros instead")

    was_training = module.training
    try:
        # With gradients, the exported loop would contain tensors saved for the backward pass.
        with torch.no_grad(), warnings.catch_warnings():
            for message in OF_TORCH:
                warnings.filterwarnings("ignore", message)
            _export(module, path, num_steps, batch_size, reset)
    finally:
        module.train(was_training)


def _export(
    module: Any, path: str | Path, num_steps: int | None, batch_size: int | None, reset: bool
) -> None:
    # Example sizes. A variable size must not be 1, which torch would treat as a constant.
    B, T = batch_size or 3, num_steps or 5
    batch = torch.export.Dim("batch") if batch_size is None else None
    time = torch.export.Dim("time") if num_steps is None else None
    if not isinstance(module, XLSTM):
        sizes, dims = (B,), (batch,)
    elif module.batch_first:
        sizes, dims = (B, T), (batch, time)
    else:
        sizes, dims = (T, B), (time, batch)
    free = {place: dim for place, dim in enumerate(dims) if dim is not None}
    parameter = next(module.parameters())
    state = module.initial_state(B)
    parts = [part.clone() for part in tensors(state)]

    x = torch.zeros(*sizes, module.input_size, dtype=parameter.dtype, device=parameter.device)
    arguments, shapes = [x, parts], [free, [{} if batch is None else {0: batch} for _ in parts]]
    if reset:
        arguments.append(torch.zeros(sizes, dtype=torch.bool, device=parameter.device))
        shapes.append(free)
    described = names(state)
    program = torch.onnx.export(
        _Flat(module, state).eval(),
        tuple(arguments),
        dynamo=True,
        input_names=["x", *(f"state.{name}" for name in described), *(["reset"] if reset else [])],
        output_names=["y", *(f"next_state.{name}" for name in described)],
        dynamic_shapes=tuple(shapes),
        verbose=False,
    )
    assert program is not None
    for graph in (program.model.graph, *program.model.functions.values()):
        for node in graph.all_nodes():
            node.metadata_props.clear()  # paths on this machine
    program.save(path)


class _Flat(nn.Module):
    """The module with its state as a flat list of tensors, without None."""

    def __init__(self, module: nn.Module, like: Any) -> None:
        super().__init__()
        self.module, self.like = module, like

    def forward(
        self, x: Tensor, parts: list[Tensor], reset: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        given = iter(parts)
        state = map_state(lambda _: next(given), self.like)
        options = {} if reset is None else {"reset": reset}
        y, after = self.module(x, state, **options)
        return y, *tensors(after)
