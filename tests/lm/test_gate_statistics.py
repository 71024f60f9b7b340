"""The gates of a model's blocks, and that looking at them changes nothing."""

import pytest
import torch
from lm_cases import make_model
from torch import Tensor, nn

from openxlstm.lm.gate_statistics import gate_statistics
from openxlstm.nn.gates import gates_of, statistics
from openxlstm.states import LayerState


def random_ids() -> Tensor:
    return torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mask", [False, True])
def test_each_block_is_seen_with_what_it_reads(mask: bool) -> None:
    model, ids = make_model(layers="msm"), random_ids()
    reset = ids == 3 if mask else None
    found = gate_statistics(model, ids, reset)
    assert list(found) == ["block 0 (mLSTM)", "block 1 (sLSTM)", "block 2 (mLSTM)"]
    read: list[Tensor] = []
    for block in model.stack.blocks:
        block.get_submodule("layer").register_forward_hook(
            lambda _, inputs, __: read.append(inputs[0])
        )
    model(ids, reset=reset)
    for block, x, seen in zip(model.stack.blocks, read, found.values(), strict=True):
        gates = gates_of(block.get_submodule("layer"), x, reset)
        assert gates is not None
        assert statistics(gates) == seen


def test_large_blocks_are_seen_too() -> None:
    found = gate_statistics(make_model(layers="mm", block="large"), random_ids())
    assert list(found) == ["block 0 (mLSTM)", "block 1 (mLSTM)"]


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_changed(training: bool) -> None:
    model, ids = make_model(layers="ms", dropout=0.5).train(training), random_ids()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = gate_statistics(model, ids)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training == training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert gate_statistics(model, ids) == found, "without dropout"
    model(ids)[0].sum().backward()  # and it can be trained on


def test_an_unknown_block_is_left_out() -> None:
    class Other(nn.Module):
        def forward(
            self, x: Tensor, state: LayerState | None = None, reset: Tensor | None = None
        ) -> tuple[Tensor, LayerState | None]:
            return x, state

    model = make_model(layers="msm")
    model.stack.blocks[0] = Other()
    model.stack.blocks[2].layer = Other()
    assert list(gate_statistics(model, random_ids())) == ["block 1 (sLSTM)"]


def test_compiled_blocks_are_seen_too() -> None:
    model = make_model(layers="ms")
    found = gate_statistics(model, random_ids())

    def backend(*_: object) -> None:
        raise AssertionError("nothing is compiled for a look")

    for block in model.stack.blocks:
        block.compile(backend=backend)
    assert gate_statistics(model, random_ids()) == found
