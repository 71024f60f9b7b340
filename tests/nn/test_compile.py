"""`torch.compile` sees through XLSTM and the cells as one graph, and keeps it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from openxlstm import XLSTM, MLSTMCell, SLSTMCell
from openxlstm.ops.native import backend as native
from openxlstm.states import detach, tensors

# Tracing an autograd.Function, torch warns of what it does itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

KINDS = [
    pytest.param({"layers": "ms", "block": "paper"}, id="paper"),
    pytest.param({"layers": "m", "block": "large"}, id="large"),
    pytest.param({"layers": "sm", "block": "bare"}, id="bare"),
]
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
LENGTHS = torch.tensor([4, 9, 1])


@pytest.fixture(autouse=True)
def _afresh() -> None:
    torch._dynamo.reset()


def layer(**options: Any) -> XLSTM:
    return XLSTM(4, 16, num_heads=2, batch_first=True, **options)


def results(run: Any, module: nn.Module, *arguments: Any, **options: Any) -> list[Tensor]:
    """y, the state, and the gradients of both to every parameter."""
    y, state = run(*arguments, **options)
    parts = tensors(state)
    loss = y.pow(2).sum() + sum(part.sum() for part in parts)
    grads = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
    return [y, *parts, *(grad for grad in grads if grad is not None)]


def assert_same(ours: list[Tensor], expected: list[Tensor]) -> None:
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", KINDS)
def test_one_graph(options: dict[str, Any], backend: str) -> None:
    """With what a call may be given: a state, resets, lengths; outputs, states and gradients."""
    module = layer(bidirectional=options["block"] != "large", **options)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    x, reset = torch.randn(3, 9, 4), torch.rand(3, 9) < 0.3
    state = detach(module(x)[1])
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((x, state), {"reset": reset}),
        ((x,), {"lengths": LENGTHS, "reset": reset}),
    ]
    for arguments, given in calls:
        assert_same(
            results(compiled, module, *arguments, **given),
            results(module, module, *arguments, **given),
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [SLSTMCell, MLSTMCell])
def test_cells(kind: Any, backend: str) -> None:
    cell = kind(4, 16, num_heads=2)
    compiled = torch.compile(cell, fullgraph=True, backend=backend)
    x = torch.randn(3, 4)
    state = cell(x)[1].detach()
    for arguments in ((x,), (x, state), (x[0],)):
        assert_same(results(compiled, cell, *arguments), results(cell, cell, *arguments))


@pytest.mark.skipif(native.missing() is not None, reason="other backends unroll the loop")
@pytest.mark.parametrize("options", KINDS)
def test_any_batch_and_length_in_two_compilations(options: dict[str, Any]) -> None:
    """The second size makes torch compile for all of them; that holds from then on."""
    module = layer(**options)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    for batch, steps in ((3, 7), (4, 9)):
        compiled(torch.randn(batch, steps, 4))
    with torch._dynamo.config.patch(error_on_recompile=True):  # pyright: ignore[reportAttributeAccessIssue]
        for batch, steps in ((5, 11), (2, 30), (3, 100)):
            x = torch.randn(batch, steps, 4)
            torch.testing.assert_close(compiled(x)[0], module(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", KINDS)
def test_a_stream_compiles_twice(options: dict[str, Any]) -> None:
    """Once from the empty state and once from another: no step after that."""
    module = layer(**options)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    state = None
    for _ in range(2):
        _, state = compiled(torch.randn(1, 1, 4), state)
        state = detach(state)
    with torch._dynamo.config.patch(error_on_recompile=True):  # pyright: ignore[reportAttributeAccessIssue]
        for _ in range(4):
            x = torch.randn(1, 1, 4)
            expected, _ = module(x, state)
            y, state = compiled(x, state)
            state = detach(state)
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [SLSTMCell, MLSTMCell])
def test_a_stream_of_a_cell_compiles_once(kind: Any) -> None:
    """From `initial_state`, which stands for None."""
    cell = kind(4, 16, num_heads=2)
    compiled = torch.compile(cell, fullgraph=True, backend="eager")
    with torch.no_grad():
        _, state = compiled(torch.randn(1, 4), cell.initial_state(1))
        with torch._dynamo.config.patch(error_on_recompile=True):  # pyright: ignore[reportAttributeAccessIssue]
            for _ in range(4):
                _, state = compiled(torch.randn(1, 4), state)


@pytest.mark.skipif(native.missing() is not None, reason="aot_autograd mixes dtypes without them")
def test_under_autocast() -> None:
    """In one graph too; the stream and the state stay float32."""
    module = layer(layers="ms")
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 9, 4)
    with torch.autocast("cpu", torch.bfloat16):
        (y, state), (expected, _) = compiled(x), module(x)
    assert {part.dtype for part in [y, *tensors(state)]} == {torch.float32}
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)


class TestNotInOneGraph:
    """What depends on data says so with fullgraph=True, and works without.

    Without gradients, since torch looks for those of tensors that have none where a graph breaks.
    """

    @torch.no_grad()
    def test_lengths_with_a_state(self) -> None:
        module = layer(layers="s", block="bare")
        x, lengths = torch.randn(3, 9, 4), torch.tensor([9, 4, 9])
        state = detach(module(x)[1])
        with pytest.raises(Exception, match="lengths without a state, or a state without lengths"):
            torch.compile(module, fullgraph=True, backend="eager")(x, state, lengths=lengths)
        torch._dynamo.reset()
        y, _ = torch.compile(module, backend="eager")(x, state, lengths=lengths)
        torch.testing.assert_close(y, module(x, state, lengths=lengths)[0])

    @torch.no_grad()
    def test_packed(self) -> None:
        module = layer(layers="s", block="bare")
        x = pack_padded_sequence(
            torch.randn(3, 9, 4), LENGTHS, batch_first=True, enforce_sorted=False
        )
        with pytest.raises(Exception, match="give the padded tensor and lengths"):
            torch.compile(module, fullgraph=True, backend="eager")(x)
        torch._dynamo.reset()
        y, _ = torch.compile(module, backend="eager")(x)
        torch.testing.assert_close(y.data, module(x)[0].data)
