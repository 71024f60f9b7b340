"""States as plain values: named tuples that can be cut, moved, picked from and joined."""

import pytest
import torch
from torch import Tensor

from openxlstm import states
from openxlstm.states import (
    ConvState,
    LayerState,
    MLSTMState,
    ModelState,
    SLSTMState,
    StackState,
)


def make(batch_size: int, seed: int = 0) -> ModelState:
    """A state of an mLSTM without convolution and an sLSTM with one."""
    draw = torch.Generator().manual_seed(seed)

    def part(*shape: int) -> Tensor:
        return torch.randn(batch_size, *shape, generator=draw)

    mlstm = LayerState(None, MLSTMState(part(2, 3, 4), part(2, 3), part(2)))
    slstm = LayerState(ConvState(part(3, 6)), SLSTMState(*(part(2, 3) for _ in range(4))))
    position = torch.arange(batch_size) + 10
    return ModelState(StackState((mlstm, slstm)), position)


def equal(a: ModelState, b: ModelState) -> bool:
    pairs = zip(states.tensors(a), states.tensors(b), strict=True)
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


def test_types_and_holes_are_kept() -> None:
    doubled = states.map_state(lambda x: 2 * x, make(2))
    assert isinstance(doubled, ModelState)
    assert isinstance(doubled.stack, StackState)
    assert isinstance(doubled.stack.blocks[0].cell, MLSTMState)
    assert doubled.stack.blocks[0].conv is None
    assert isinstance(doubled.stack.blocks[1].conv, ConvState)
    assert isinstance(doubled.stack.blocks[1].cell, SLSTMState)
    assert doubled.position.tolist() == [20, 22]
    assert states.map_state(torch.neg, None) is None


def test_several_states_in_step() -> None:
    total = states.map_state(torch.add, make(2, 0), make(2, 1))
    parts = zip(*map(states.tensors, (make(2, 0), make(2, 1), total)), strict=True)
    assert all(torch.equal(a + b, c) for a, b, c in parts)


def test_states_of_different_models_do_not_fit() -> None:
    one = StackState(make(2).stack.blocks[:1])
    with pytest.raises(ValueError, match="zip"):
        states.map_state(torch.add, make(2).stack, one)


def test_tensors_come_in_a_fixed_order() -> None:
    state = make(2)
    mlstm, slstm = state.stack.blocks
    assert slstm.conv is not None
    expected = [*mlstm.cell, slstm.conv.x, *slstm.cell, state.position]
    assert [id(x) for x in states.tensors(state)] == [id(x) for x in expected]
    assert states.tensors(None) == []


def test_bytes() -> None:
    floats = 2 * 3 * 4 + 2 * 3 + 2 + 3 * 6 + 4 * 2 * 3
    assert states.state_bytes(make(5)) == 5 * (4 * floats + 8)
    assert states.state_bytes(None) == 0


@pytest.mark.parametrize("samples", [[2, 0, 2], torch.tensor([2, 0, 2]), (2, 0, 2)], ids=type)
def test_select_picks_samples_in_order(samples: list[int] | Tensor) -> None:
    state = make(3)
    picked = state.select(samples)
    for part, source in zip(states.tensors(picked), states.tensors(state), strict=True):
        assert torch.equal(part, torch.stack([source[2], source[0], source[2]]))


def test_select_of_nobody_and_of_a_stranger() -> None:
    assert len(make(3).select([]).position) == 0
    with pytest.raises((IndexError, RuntimeError)):
        make(3).select([3])


def test_stack_undoes_select() -> None:
    state = make(4)
    assert equal(states.stack([state.select([0, 1]), state.select([2]), state.select([3])]), state)


def test_detach_cuts_every_part() -> None:
    state = states.map_state(
        lambda x: x.requires_grad_() * 1 if x.is_floating_point() else x, make(2)
    )
    cut = state.detach()
    assert not any(x.requires_grad for x in states.tensors(cut))
    assert equal(cut, make(2))


def test_to_leaves_whole_numbers_whole() -> None:
    moved = make(2).to(torch.float64)
    assert {x.dtype for x in states.tensors(moved)} == {torch.float64, torch.int64}
    assert moved.position.tolist() == [10, 11]
    assert equal(moved.to(torch.float32), make(2))
    away = make(2).to("meta")
    assert {x.device.type for x in states.tensors(away)} == {"meta"}
    away = make(2).to(device="meta", dtype=torch.bfloat16)
    assert {x.dtype for x in states.tensors(away)} == {torch.bfloat16, torch.int64}


@pytest.mark.parametrize("kind", ["stack", "layer", "cell", "conv"])
def test_every_level_has_the_methods(kind: str) -> None:
    state = make(3)
    layer = state.stack.blocks[1]
    part = {"stack": state.stack, "layer": layer, "cell": layer.cell, "conv": layer.conv}[kind]
    assert part is not None
    picked = part.select([1]).to(torch.float64).detach()
    assert type(picked) is type(part)
    assert {len(x) for x in states.tensors(picked)} == {1}
