"""Which parameters weight decay is for, by name."""

import pytest
import torch
from torch import nn

from openxlstm.config import ModelConfig
from openxlstm.lm.model import LanguageModel

DECAYED = {
    # block 0, an mLSTM
    "stack.blocks.0.layer.gate_weight",
    "stack.blocks.0.layer.up_proj.weight",
    "stack.blocks.0.layer.conv.weight",
    "stack.blocks.0.layer.q_proj.weight",
    "stack.blocks.0.layer.k_proj.weight",
    "stack.blocks.0.layer.v_proj.weight",
    "stack.blocks.0.layer.down_proj.weight",
    # block 1, an sLSTM
    "stack.blocks.1.layer.input_weight",
    "stack.blocks.1.layer.conv.weight",
    "stack.blocks.1.ff.up_proj.weight",
    "stack.blocks.1.ff.down_proj.weight",
}
KEPT = {
    "token_embedding.weight",  # which the tied head is
    "position_embedding.weight",
    "stack.blocks.0.norm.weight",
    "stack.blocks.0.layer.gate_bias",
    "stack.blocks.0.layer.skip",
    "stack.blocks.0.layer.norm.weight",
    "stack.blocks.0.layer.up_proj.bias",
    "stack.blocks.0.layer.conv.bias",
    "stack.blocks.0.layer.q_proj.bias",
    "stack.blocks.0.layer.k_proj.bias",
    "stack.blocks.0.layer.v_proj.bias",
    "stack.blocks.0.layer.down_proj.bias",
    "stack.blocks.1.norm.weight",
    "stack.blocks.1.layer.recurrent_weight",
    "stack.blocks.1.layer.bias",
    "stack.blocks.1.layer.conv.bias",
    "stack.blocks.1.layer.norm.weight",
    "stack.blocks.1.ff_norm.weight",
    "stack.blocks.1.ff.up_proj.bias",
    "stack.blocks.1.ff.down_proj.bias",
    "stack.norm.weight",
}


def model(*, tie_weights: bool) -> LanguageModel:
    return LanguageModel(
        ModelConfig(
            vocab_size=7, embedding_dim=16, layers="ms", num_heads=2, bias=True, num_positions=5,
            tie_weights=tie_weights,
        )
    )  # fmt: skip


def names(module: nn.Module, group: dict) -> list[str]:
    by_identity = {id(parameter): name for name, parameter in module.named_parameters()}
    return [by_identity[id(parameter)] for parameter in group["params"]]


def test_what_decays_with_tied_weights() -> None:
    tied = model(tie_weights=True)
    decayed, kept = tied.parameter_groups(0.25)
    assert decayed["weight_decay"] == 0.25
    assert kept["weight_decay"] == 0
    assert set(names(tied, decayed)) == DECAYED
    assert set(names(tied, kept)) == KEPT


def test_a_head_of_its_own_decays() -> None:
    untied = model(tie_weights=False)
    decayed, kept = untied.parameter_groups(0.25)
    assert set(names(untied, decayed)) == DECAYED | {"head.weight"}
    assert set(names(untied, kept)) == KEPT


@pytest.mark.parametrize("tie_weights", [False, True])
def test_every_parameter_is_in_one_group_in_order(tie_weights: bool) -> None:
    """The order is the module's, so that an optimizer's state fits in every run."""
    module = model(tie_weights=tie_weights)
    order = [name for name, _ in module.named_parameters()]
    decayed, kept = (names(module, group) for group in module.parameter_groups(0.1))
    assert sorted([*decayed, *kept]) == sorted(order)
    assert decayed == [name for name in order if name in decayed]
    assert kept == [name for name in order if name in kept]


def test_frozen_parameters_are_left_out() -> None:
    module = model(tie_weights=False)
    module.head.weight.requires_grad_(False)
    groups = module.parameter_groups(0.1)
    assert "head.weight" not in names(module, groups[0]) + names(module, groups[1])
    torch.optim.AdamW(groups)  # takes them as they are
