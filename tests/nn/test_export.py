"""`torch.export` of XLSTM and the cells: programs for any batch and length, on any machine."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from openxlstm import XLSTM, MLSTMCell, SLSTMCell
from openxlstm.states import map_state, tensors

# What torch.export warns of, and writes to its log in a way that fails, is its own affair.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

KINDS = [
    pytest.param({"layers": "ms", "block": "paper"}, id="paper"),
    pytest.param({"layers": "m", "block": "large"}, id="large", marks=pytest.mark.slow),
    pytest.param({"layers": "sm", "block": "bare"}, id="bare", marks=pytest.mark.slow),
]
BATCH, TIME = Dim("batch"), Dim("time")


def layer(**options: Any) -> XLSTM:
    return XLSTM(4, 16, num_heads=2, batch_first=True, **options)


def some(module: XLSTM, batch: int, steps: int) -> tuple[Tensor, Any, Tensor]:
    """x, a state and resets."""
    with torch.no_grad():
        _, state = module(torch.randn(batch, 3, 4))
    return torch.randn(batch, steps, 4), state, torch.rand(batch, steps) < 0.2


def exported(module: XLSTM, *, strict: bool = False) -> ExportedProgram:
    x, state, reset = some(module, 3, 7)
    shapes = {
        "x": {0: BATCH, 1: TIME},
        "state": map_state(lambda part: {0: BATCH}, state),  # pyright: ignore[reportArgumentType]
        "reset": {0: BATCH, 1: TIME},
        "lengths": None,
    }
    given = {"reset": reset, "lengths": None}
    return torch.export.export(module, (x, state), given, dynamic_shapes=shapes, strict=strict)


def check(program: Any, module: XLSTM) -> None:
    """The program does what the module does, for batches and lengths of all kinds."""
    for batch, steps in ((3, 7), (1, 1), (2, 32), (2, 70)):
        x, state, reset = some(module, batch, steps)
        with torch.no_grad():
            y, after = program(x, state, reset=reset, lengths=None)
            expected = module(x, state, reset=reset)
        assert type(after) is type(state)
        pairs = zip([y, *tensors(after)], tensors(expected), strict=True)
        for ours, right in pairs:
            torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)


def operators(program: ExportedProgram) -> set[str]:
    nodes = [
        node
        for graph in program.graph_module.modules()
        if isinstance(graph, torch.fx.GraphModule)
        for node in graph.graph.nodes
    ]
    return {str(node.target) for node in nodes if node.op == "call_function"}


@pytest.mark.parametrize("options", KINDS)
@torch.no_grad()
def test_any_batch_and_length(options: dict[str, Any], tmp_path: Path) -> None:
    """Also after a file; no operator of this machine is in it."""
    module = layer(**options)
    program = exported(module)
    check(program.module(), module)
    assert not any("openxlstm" in name for name in operators(program))
    path = tmp_path / "layer.pt2"
    torch.export.save(program, path)
    check(torch.export.load(path).module(), module)


@pytest.mark.slow
@torch.no_grad()
def test_after_an_export_of_a_fixed_length() -> None:
    """What torch keeps of the one is no rule for the other."""
    module = layer(layers="ms", block="bare")
    for steps in (40, 9):
        x, state, reset = some(module, 2, steps)
        torch.export.export(module, (x, state), {"reset": reset})
    check(exported(module).module(), module)


@torch.no_grad()
def test_both_directions() -> None:
    module = layer(layers="s", block="bare", bidirectional=True)
    check(exported(module).module(), module)


@pytest.mark.parametrize("layers", ["s", pytest.param("ms", marks=pytest.mark.slow)])
@torch.no_grad()
def test_strict(layers: str) -> None:
    """With gradients torch's own scan fails here, where a size is free."""
    module = layer(layers=layers, block="bare")
    check(exported(module, strict=True).module(), module)


@pytest.mark.parametrize("kind", [SLSTMCell, MLSTMCell])
@pytest.mark.parametrize("strict", [False, True])
@torch.no_grad()
def test_cells(kind: Any, strict: bool) -> None:
    cell = kind(4, 16, num_heads=2)
    x = torch.randn(3, 4)
    _, state = cell(x)
    state = state.detach()
    shapes = {"x": {0: BATCH}, "state": map_state(lambda part: {0: BATCH}, state)}  # pyright: ignore[reportArgumentType]
    program = torch.export.export(cell, (x, state), dynamic_shapes=shapes, strict=strict)
    ours, right = program.module()(x[:1], state.select([0])), cell(x[:1], state.select([0]))
    for one, other in zip(tensors(ours), tensors(right), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_lengths() -> None:
    """Without a state, as data: another batch of samples needs no other program."""
    module = layer(layers="s", block="bare")
    x, lengths = torch.randn(3, 7, 4), torch.tensor([7, 2, 5])
    shapes = {"x": {0: BATCH, 1: TIME}, "state": None, "reset": None, "lengths": {0: BATCH}}
    program = torch.export.export(
        module, (x,), {"state": None, "reset": None, "lengths": lengths}, dynamic_shapes=shapes
    )
    x, lengths = torch.randn(4, 9, 4), torch.tensor([1, 9, 3, 8])
    y, _ = program.module()(x, state=None, reset=None, lengths=lengths)
    torch.testing.assert_close(y, module(x, lengths=lengths)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"layers": "s", "block": "bare"}, id="s"),
        pytest.param({"layers": "ms", "block": "paper"}, id="ms", marks=pytest.mark.slow),
    ],
)
def test_a_program_can_be_trained(options: dict[str, Any]) -> None:
    """If it was exported with gradients on."""
    module = layer(**options)
    x, state, reset = some(module, 2, 9)
    program: Any = exported(copy.deepcopy(module)).module()
    program(x, state, reset=reset, lengths=None)[0].pow(2).sum().backward()
    module(x, state, reset=reset)[0].pow(2).sum().backward()
    grads = {name: parameter.grad for name, parameter in program.named_parameters()}
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_a_file_is_read_by_another_process(tmp_path: Path) -> None:
    """That has seen the kinds of state, and nothing else of openxlstm."""
    module = SLSTMCell(4, 8)
    program = torch.export.export(module, (torch.ones(3, 4), module.initial_state(3)))
    torch.export.save(program, tmp_path / "cell.pt2")
    code = (
        "import torch\nfrom openxlstm.states import SLSTMState\n"
        "program = torch.export.load('cell.pt2').module()\n"
        "state = SLSTMState(*torch.zeros(4, 3, 4, 2).unbind(0))\n"
        "h, after = program(torch.ones(3, 4), state)\n"
        "assert type(after) is SLSTMState\n"
        "print(h.sum().item())"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout) == pytest.approx(module(torch.ones(3, 4))[0].sum().item(), rel=1e-4)


def test_states_by_torchs_own_means(tmp_path: Path) -> None:
    """A state is a value that `torch.load` reads without running code."""
    _, state = layer(layers="ms")(torch.randn(2, 3, 4))
    torch.save(state.detach(), tmp_path / "state.pt")
    again = torch.load(tmp_path / "state.pt", weights_only=True)
    assert type(again) is type(state)
    for one, other in zip(tensors(again), tensors(state), strict=True):
        assert torch.equal(one, other)
