"""Names and shapes of the weights: files out there have them, so they stay."""

from collections.abc import Callable

import pytest
from torch import nn

from openxlstm import XLSTM, MLSTMCell, SLSTMCell

PINNED = [
    pytest.param(
        lambda: XLSTM(4, 8, num_heads=2, layers="ms", bias=True),
        """
        in_proj.weight 8 4, in_proj.bias 8, stack.blocks.0.norm.weight 8,
        stack.blocks.0.layer.gate_weight 2 2 192, stack.blocks.0.layer.gate_bias 2 2,
        stack.blocks.0.layer.skip 64, stack.blocks.0.layer.up_proj.weight 128 8,
        stack.blocks.0.layer.up_proj.bias 128, stack.blocks.0.layer.conv.weight 64 4,
        stack.blocks.0.layer.conv.bias 64, stack.blocks.0.layer.q_proj.weight 16 4 4,
        stack.blocks.0.layer.q_proj.bias 64, stack.blocks.0.layer.k_proj.weight 16 4 4,
        stack.blocks.0.layer.k_proj.bias 64, stack.blocks.0.layer.v_proj.weight 16 4 4,
        stack.blocks.0.layer.v_proj.bias 64, stack.blocks.0.layer.norm.weight 64,
        stack.blocks.0.layer.down_proj.weight 8 64, stack.blocks.0.layer.down_proj.bias 8,
        stack.blocks.1.norm.weight 8, stack.blocks.1.layer.input_weight 2 4 4 4,
        stack.blocks.1.layer.recurrent_weight 2 4 4 4, stack.blocks.1.layer.bias 2 4 4,
        stack.blocks.1.layer.conv.weight 8 4, stack.blocks.1.layer.conv.bias 8,
        stack.blocks.1.layer.norm.weight 8, stack.blocks.1.ff_norm.weight 8,
        stack.blocks.1.ff.up_proj.weight 128 8, stack.blocks.1.ff.up_proj.bias 128,
        stack.blocks.1.ff.down_proj.weight 8 64, stack.blocks.1.ff.down_proj.bias 8,
        stack.norm.weight 8
        """,
        id="paper",
    ),
    pytest.param(
        lambda: XLSTM(4, 8, num_heads=2, layers="m", block="large", bias=True),
        """
        in_proj.weight 8 4, in_proj.bias 8, stack.blocks.0.norm.weight 8,
        stack.blocks.0.norm.bias 8, stack.blocks.0.layer.gate_weight 2 2 8,
        stack.blocks.0.layer.gate_bias 2 2, stack.blocks.0.layer.q_proj.weight 4 8,
        stack.blocks.0.layer.q_proj.bias 4, stack.blocks.0.layer.k_proj.weight 4 8,
        stack.blocks.0.layer.k_proj.bias 4, stack.blocks.0.layer.v_proj.weight 8 8,
        stack.blocks.0.layer.v_proj.bias 8, stack.blocks.0.layer.o_proj.weight 8 8,
        stack.blocks.0.layer.o_proj.bias 8, stack.blocks.0.layer.norm.weight 8,
        stack.blocks.0.layer.norm.bias 8, stack.blocks.0.layer.out_proj.weight 8 8,
        stack.blocks.0.layer.out_proj.bias 8, stack.blocks.0.ff_norm.weight 8,
        stack.blocks.0.ff_norm.bias 8, stack.blocks.0.ff.gate_proj.weight 64 8,
        stack.blocks.0.ff.gate_proj.bias 64, stack.blocks.0.ff.up_proj.weight 64 8,
        stack.blocks.0.ff.up_proj.bias 64, stack.blocks.0.ff.down_proj.weight 8 64,
        stack.blocks.0.ff.down_proj.bias 8, stack.norm.weight 8, stack.norm.bias 8
        """,
        id="large",
    ),
    pytest.param(
        lambda: XLSTM(4, 8, num_heads=2, layers="sm", block="bare", bias=True, bidirectional=True),
        """
        in_proj.weight 8 4, in_proj.bias 8, stack.blocks.0.layer.input_weight 2 4 4 4,
        stack.blocks.0.layer.recurrent_weight 2 4 4 4, stack.blocks.0.layer.bias 2 4 4,
        stack.blocks.1.proj.weight 8 8, stack.blocks.1.proj.bias 8,
        stack.blocks.1.layer.gate_weight 2 2 8, stack.blocks.1.layer.gate_bias 2 2,
        stack.blocks.1.layer.qkvo_proj.weight 32 8, stack.blocks.1.layer.qkvo_proj.bias 32,
        reverse_stack.blocks.0.layer.input_weight 2 4 4 4,
        reverse_stack.blocks.0.layer.recurrent_weight 2 4 4 4,
        reverse_stack.blocks.0.layer.bias 2 4 4, reverse_stack.blocks.1.proj.weight 8 8,
        reverse_stack.blocks.1.proj.bias 8, reverse_stack.blocks.1.layer.gate_weight 2 2 8,
        reverse_stack.blocks.1.layer.gate_bias 2 2,
        reverse_stack.blocks.1.layer.qkvo_proj.weight 32 8,
        reverse_stack.blocks.1.layer.qkvo_proj.bias 32
        """,
        id="bare",
    ),
    pytest.param(
        lambda: SLSTMCell(4, 8, num_heads=2),
        """
        in_proj.weight 8 4, in_proj.bias 8, layer.input_weight 2 4 4 4,
        layer.recurrent_weight 2 4 4 4, layer.bias 2 4 4
        """,
        id="SLSTMCell",
    ),
    pytest.param(
        lambda: MLSTMCell(4, 8, num_heads=2, bias=True),
        """
        in_proj.weight 8 4, in_proj.bias 8, layer.gate_weight 2 2 8, layer.gate_bias 2 2,
        layer.qkvo_proj.weight 32 8, layer.qkvo_proj.bias 32
        """,
        id="MLSTMCell",
    ),
]
"""How a module is made, and its weights, each with its sizes."""


@pytest.mark.parametrize(("make", "pinned"), PINNED)
def test_weights_keep_their_names_and_shapes(make: Callable[[], nn.Module], pinned: str) -> None:
    weights = make().state_dict()
    ours = [" ".join([name, *map(str, part.shape)]) for name, part in weights.items()]
    assert ours == " ".join(pinned.split()).split(", ")


def test_without_biases_the_rest_is_alike() -> None:
    """What `bias=False`, the default, leaves out."""
    full = XLSTM(4, 8, num_heads=2, layers="ms", bias=True).state_dict()
    lean = XLSTM(4, 8, num_heads=2, layers="ms").state_dict()
    left_out = {name for name in full if name not in lean}
    assert lean.keys() <= full.keys()
    assert all(name.endswith("_proj.bias") for name in left_out)
    assert all(lean[name].shape == full[name].shape for name in lean)
