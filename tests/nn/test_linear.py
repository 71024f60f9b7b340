"""Block-diagonal maps against one product a block."""

import pytest
import torch
from tolerances import assert_close
from torch import Tensor

from openxlstm.nn.linear import HeadwiseLinear

SIZES = [
    (1, 1), (1, 3), (2, 1), (7, 1), (64, 1), (130, 1), (5, 3), (12, 4), (32, 4), (33, 4), (96, 4),
    (3, 16), (4, 32), (2, 33), (3, 63), (3, 64), (2, 65), (2, 128),
]  # fmt: skip
"""(blocks, side of a block)"""


def by_einsum(x: Tensor, weight: Tensor) -> Tensor:
    groups = x.unflatten(-1, (weight.shape[0], weight.shape[2]))
    return torch.einsum("hoi,...hi->...ho", weight, groups).flatten(-2)


@pytest.mark.parametrize(("num_blocks", "side"), SIZES)
@pytest.mark.parametrize("shape", [(1,), (2, 1), (3, 7)], ids=["1", "2x1", "3x7"])
@pytest.mark.parametrize("bias", [False, True])
def test_headwise_linear_is_a_product_a_block(
    num_blocks: int, side: int, shape: tuple[int, ...], bias: bool
) -> None:
    dim = num_blocks * side
    linear = HeadwiseLinear(dim, num_blocks, model_dim=8, bias=bias).double()
    if linear.bias is not None:
        torch.nn.init.normal_(linear.bias)
    x = torch.randn(*shape, dim, dtype=torch.float64, requires_grad=True)
    y = linear(x)
    expected = by_einsum(x, linear.weight)
    expected = expected if linear.bias is None else expected + linear.bias
    assert_close(y, expected, "y")

    inputs, upstream = [x, *linear.parameters()], torch.randn_like(y)
    actual = torch.autograd.grad(y, inputs, upstream)
    truth = torch.autograd.grad(expected, inputs, upstream)
    for name, ours, theirs in zip(("x", "weight", "bias"), actual, truth, strict=False):
        assert_close(ours, theirs, f"gradient of {name}")


def test_a_strided_input_is_accepted() -> None:
    linear = HeadwiseLinear(12, 3, model_dim=8).double()
    x = torch.randn(12, 5, 9, dtype=torch.float64).permute(2, 1, 0)[::2]
    assert_close(linear(x), by_einsum(x, linear.weight))


def test_groups_do_not_see_each_other() -> None:
    linear = HeadwiseLinear(12, 3, model_dim=8)
    x = torch.zeros(6, 12)
    x[:, 4:8] = torch.randn(6, 4)
    y = linear(x)
    assert y[:, 4:8].any()
    assert not y[:, :4].any()
    assert not y[:, 8:].any()
