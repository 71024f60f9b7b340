"""One step at a time: the cells beside the layer that they are steps of, and `nn.LSTMCell`."""

from typing import Any

import pytest
import torch
from rnn_cases import content, randomize
from tolerances import assert_close
from torch import nn

from openxlstm import XLSTM, MLSTMCell, SLSTMCell

B, T, I, H = 3, 6, 5, 16
CELLS = {"s": SLSTMCell, "m": MLSTMCell}
each_cell = pytest.mark.parametrize("kind", CELLS)


def make(kind: str, **options: Any) -> Any:
    return randomize(CELLS[kind](I, H, num_heads=2, **options)).double()


@each_cell
def test_steps_are_those_of_a_bare_layer(kind: str) -> None:
    cell = make(kind)
    rnn = XLSTM(I, H, layers=kind, num_heads=2, block="bare", batch_first=True).double()
    renamed = {
        f"stack.blocks.0.{k}" if k.startswith("layer") else k: v
        for k, v in cell.state_dict().items()
    }
    rnn.load_state_dict(renamed)
    x = torch.randn(B, T, I, dtype=torch.float64)
    state, steps = None, []
    for x_t in x.unbind(1):
        h, state = cell(x_t, state)
        steps.append(h)
    y, after = rnn(x)
    assert_close(torch.stack(steps, dim=1), y)
    for name, part in content(after.forward.blocks[0].cell).items():
        assert_close(content(state)[name], part, name)


@each_cell
def test_shapes_are_those_of_lstm_cell(kind: str) -> None:
    theirs, ours = nn.LSTMCell(I, H), CELLS[kind](I, H)
    for x in (torch.randn(B, I), torch.randn(I)):
        assert ours(x)[0].shape == theirs(x)[0].shape
        assert ours(x, ours(x)[1])[0].shape == theirs(x)[0].shape


@each_cell
def test_empty_state_is_none(kind: str) -> None:
    cell, x = make(kind), torch.randn(B, I, dtype=torch.float64)
    assert_close(cell(x, cell.initial_state(B))[0], cell(x)[0])


@each_cell
def test_gradients_go_through_steps(kind: str) -> None:
    cell = make(kind)
    x = torch.randn(B, I, dtype=torch.float64, requires_grad=True)
    _, state = cell(x)
    h, _ = cell(torch.randn(B, I, dtype=torch.float64), state)
    h.square().sum().backward()
    assert x.grad is not None
    assert x.grad.ne(0).all()
    unused = [name for name, p in cell.named_parameters() if p.grad is None]
    assert unused == []


@each_cell
def test_projection_is_an_option(kind: str) -> None:
    assert CELLS[kind](H, H).in_proj is None
    assert CELLS[kind](H, H, project_input=True).in_proj is not None


def test_options() -> None:
    assert SLSTMCell(I, H).layer.recurrent_weight.eq(0).all()
    cell = SLSTMCell(I, H, recurrent_init="uniform", forget_gate="exp", dtype=torch.float64)
    assert cell.layer.recurrent_weight.ne(0).all()
    assert cell.layer.forget_gate == "exp"
    assert {p.dtype for p in cell.parameters()} == {torch.float64}
    assert MLSTMCell(I, H, bias=True).layer.qkvo_proj.bias is not None
    assert MLSTMCell(I, H).layer.qkvo_proj.bias is None


@each_cell
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(B, H), r"x must be \(B, I\) or \(I,\) with I = 5"),
        (torch.randn(B, 1, I), r"x must be \(B, I\) or \(I,\)"),
        (torch.randn(0, I), "size 0"),
        (torch.randn(B, I).double(), "x must be torch.float32"),
        (torch.full((B, I), float("nan")), "x must be finite"),
    ],
)
def test_a_mistake_in_x_is_named(kind: str, x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CELLS[kind](I, H)(x)


@each_cell
def test_a_mistake_in_the_state_is_named(kind: str) -> None:
    cell, x = CELLS[kind](I, H), torch.randn(B, I)
    with pytest.raises(ValueError, match=r"state must be of type .LSTMState.*not of type tuple"):
        cell(x, (torch.zeros(B, H), torch.zeros(B, H)))
    with pytest.raises(ValueError, match=r"state\.\w must be \(3, .*not \(1, "):
        cell(x, cell(x[0])[1])
    (other,) = set(CELLS) - {kind}
    with pytest.raises(ValueError, match="state must be of type"):
        cell(x, CELLS[other](I, H)(x)[1])


@each_cell
def test_a_mistake_in_the_constructor_is_named(kind: str) -> None:
    with pytest.raises(ValueError, match="hidden_size=10 is not a multiple of num_heads=4"):
        CELLS[kind](I, 10)
    with pytest.raises(ValueError, match="input_size must be a positive integer"):
        CELLS[kind](0, H)
    with pytest.raises(ValueError, match="forget_gate must be sigmoid or exp, not 'tanh'"):
        SLSTMCell(I, H, forget_gate="tanh")
