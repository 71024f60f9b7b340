"""Bare blocks against the equations of arXiv:2405.04517, section 2, over the reference cells."""

import pytest
import torch
from rnn_cases import content, randomize
from tolerances import assert_close
from torch import Tensor

from openxlstm import XLSTM, ModelConfig, UserError
from openxlstm.config import StackConfig
from openxlstm.nn.bare import BareBlock, BareMLSTMLayer
from openxlstm.nn.slstm import SLSTMLayer
from openxlstm.nn.stack import Stack
from openxlstm.reference import mlstm as reference_mlstm
from openxlstm.reference import slstm as reference_slstm

B, T, D, NH = 2, 7, 16, 2
DH = D // NH


def config(layers: str, *, bias: bool = False) -> StackConfig:
    return StackConfig(embedding_dim=D, layers=layers, num_heads=NH, block="bare", bias=bias)


def heads(x: Tensor) -> Tensor:
    """(B, T, D) → (B, NH, T, DH), one head after another."""
    return torch.stack(x.split(DH, dim=-1), dim=1)


@pytest.mark.parametrize("bias", [False, True])
def test_mlstm_is_the_papers_equations(bias: bool) -> None:
    layer = randomize(BareMLSTMLayer(config("m", bias=bias)).double())
    x = torch.randn(B, T, D, dtype=torch.float64)
    weights = layer.qkvo_proj.weight.split(D)
    biases = layer.qkvo_proj.bias.split(D) if bias else (0.0,) * 4
    q, k, v, o = (x @ w.T + b for w, b in zip(weights, biases, strict=True))
    i_preact, f_preact = (
        (x @ layer.gate_weight[gate].T + layer.gate_bias[gate]).mT for gate in range(2)
    )
    h, final = reference_mlstm.recurrent(
        heads(q), heads(k), heads(v), i_preact, -torch.log1p(torch.exp(-f_preact))
    )
    y, state = layer(x)
    assert_close(y, torch.cat(h.unbind(1), dim=-1) / (1 + torch.exp(-o)))
    for name, part in content(final).items():
        assert_close(content(state.cell)[name], part, name)


def test_slstm_is_the_papers_equations() -> None:
    layer = randomize(SLSTMLayer(config("s")).double())
    x = torch.randn(B, T, D, dtype=torch.float64)
    by_head = [
        torch.stack([part @ layer.input_weight[head, gate].T for gate in range(4)], dim=2)
        for head, part in enumerate(x.split(DH, dim=-1))
    ]
    gates = torch.stack(by_head, dim=2) + layer.bias  # (B, T, NH, 4, DH)
    h, final = reference_slstm.recurrent(gates, layer.recurrent_weight)
    y, state = layer(x)
    assert_close(y, torch.cat(h.unbind(2), dim=-1))
    assert y.abs().max() < 1
    for name, part in content(final).items():
        assert_close(content(state.cell)[name], part, name)


def test_stack_is_its_layers_with_dense_maps_between() -> None:
    stack = randomize(Stack(config("sms")).double())
    x = torch.randn(B, T, D, dtype=torch.float64)
    expected = x
    for index, block in enumerate(stack.blocks):
        assert isinstance(block, BareBlock)
        assert (block.proj is None) == (index == 0)
        expected, _ = block.layer(expected if block.proj is None else block.proj(expected))
    assert torch.equal(stack(x)[0], expected)


def test_nothing_else_is_there() -> None:
    """No convolution, norm or feed-forward."""
    rnn = XLSTM(D, D, layers="sm", block="bare")
    assert {name: tuple(x.shape) for name, x in rnn.named_parameters()} == {
        "stack.blocks.0.layer.input_weight": (4, 4, 4, 4),
        "stack.blocks.0.layer.recurrent_weight": (4, 4, 4, 4),
        "stack.blocks.0.layer.bias": (4, 4, 4),
        "stack.blocks.1.proj.weight": (D, D),
        "stack.blocks.1.proj.bias": (D,),
        "stack.blocks.1.layer.qkvo_proj.weight": (4 * D, D),
        "stack.blocks.1.layer.gate_weight": (2, 4, D),
        "stack.blocks.1.layer.gate_bias": (2, 4),
    }


def test_a_language_model_needs_more() -> None:
    with pytest.raises(UserError, match="block='bare' has no norms and residuals"):
        ModelConfig(vocab_size=10, block="bare")
