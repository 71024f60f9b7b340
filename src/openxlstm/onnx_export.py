"""A layer as an ONNX file: a step, or sequences of any length, with the state in and out."""

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
"""Warnings that torch's exporter gives of what it does itself."""


def export_onnx(
    module: XLSTM | SLSTMCell | MLSTMCell,
    path: str | Path,
    *,
    num_steps: int | None = None,
    batch_size: int | None = None,
    reset: bool = False,
) -> None:
    """Writes a layer or a cell, in evaluation mode, as an ONNX model that runs without openxlstm.

    Inputs are `x`, one `state.…` for each tensor of the state and, if asked for, `reset`; outputs
    are `y` and one `next_state.…` for each, in the same order. Shapes are those of the module's own
    call; an empty state is all zeros.

    Args:
        module: what to export; a recurrent layer from `num_steps` on, a cell always by the step.
        path: where the file goes. Weights beyond 2 GB go beside it, into `path`.data.
        num_steps: steps of a sequence; None for any number, 1 for a smaller and faster model of
            a single step.
        batch_size: samples; None for any number.
        reset: whether the model of a layer has an input for resets.

    Raises:
        UserError: if a package is missing, or `module` or an option is none that can be exported.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(
            f"export_onnx needs {' and '.join(missing)}: run `pip install openxlstm[onnx]`"
        )
    if not isinstance(module, XLSTM | SLSTMCell | MLSTMCell):
        raise UserError(
            f"export_onnx takes an XLSTM, an SLSTMCell or an MLSTMCell, not a "
            f"{type(module).__name__}; of a compiled module give it the one that was compiled"
        )
    for name, size in (("num_steps", num_steps), ("batch_size", batch_size)):
        if size is not None and size < 1:
            raise UserError(f"{name} must be at least 1 or None for any number, not {size}")
    is_cell = not isinstance(module, XLSTM)
    if is_cell and (reset or num_steps not in (None, 1)):
        raise UserError("a cell reads one step and has no resets: give it a state of zeros instead")

    was_training = module.training
    try:
        # With gradients the loop would be recorded with what its backward needs.
        with torch.no_grad(), warnings.catch_warnings():
            for message in OF_TORCH:
                warnings.filterwarnings("ignore", message)
            _export(module, path, num_steps, batch_size, reset)
    finally:
        module.train(was_training)


def _export(
    module: Any, path: str | Path, num_steps: int | None, batch_size: int | None, reset: bool
) -> None:
    # Sizes to record with: those that may vary must not be 1, which would be taken for a constant.
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
            node.metadata_props.clear()  # where the code stood on this machine
    program.save(path)


class _Flat(nn.Module):
    """The module with its state as a list of tensors, and None nowhere."""

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
