"""The gated feed-forward against its formula; the native one for any shape and options."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from op_cases import (
    apart,
    call,
    check_few_rows,
    check_native,
    feedforward_inputs,
    needs_native,
)
from tolerances import assert_close
from torch import Tensor

from openxlstm.ops import gated_feedforward

ACTIVATIONS = pytest.mark.parametrize("activation", ["gelu", "silu"])


def formula(
    x: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    up_bias: Tensor | float = 0.0,
    down_bias: Tensor | float = 0.0,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | float = 0.0,
    *,
    norm: str,
    residual: bool,
    activation: str,
) -> Tensor:
    normed = x
    if norm_weight is not None:
        deviation = x - x.mean(-1, keepdim=True) if norm == "layer" else x
        normed = deviation / (deviation.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        normed = normed * (norm_weight + (norm == "layer")) + norm_bias
    gate, value = (normed @ up_weight.T + up_bias).chunk(2, dim=-1)
    if activation == "gelu":
        gate = gate * (1 + torch.erf(gate / math.sqrt(2))) / 2
    else:
        gate = gate / (1 + torch.exp(-gate))
    y = (gate * value) @ down_weight.T + down_bias
    return x + y if residual else y


@ACTIVATIONS
@pytest.mark.parametrize("with_biases", [False, True])
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("residual", [False, True])
def test_plain_is_the_formula(
    activation: str, with_biases: bool, with_norm: bool, norm: str, residual: bool
) -> None:
    x = feedforward_inputs((2, 3, 5), 7, with_biases=with_biases, with_norm=with_norm)
    if with_norm:
        x["norm_bias"] = x["norm_weight"].flip(0)
    options = {"residual": residual, "activation": activation, "norm": norm}
    expected = formula(**x, **options)
    for inputs in (x, apart(x)):
        assert_close(call(gated_feedforward, inputs, **options, backend="torch"), expected)


@needs_native
@settings(max_examples=100)
@given(
    shape=st.lists(st.integers(3, 6), min_size=2, max_size=3),
    D=st.integers(3, 40),
    F=st.integers(1, 70),
    with_biases=st.booleans(),
    with_norm=st.booleans(),
    norm=st.sampled_from(["layer", "rms"]),
    two=st.booleans(),
    residual=st.booleans(),
    activation=st.sampled_from(["gelu", "silu"]),
    eps=st.sampled_from([1e-5, 0.1]),
    seed=st.integers(0, 999),
)
@example([250], 33, 65, True, True, "layer", False, True, "gelu", 1e-5, 0)
@example([250], 33, 65, True, True, "rms", True, True, "silu", 1e-5, 0)
@example([2, 65], 20, 40, False, False, "layer", False, False, "silu", 1e-5, 0)
@example([9], 300, 10, True, True, "rms", False, True, "silu", 1e-5, 0)
def test_native_is_the_plain(
    shape: list[int], D: int, F: int, with_biases: bool, with_norm: bool, norm: str, two: bool,
    residual: bool, activation: str, eps: float, seed: int,
) -> None:  # fmt: skip
    x = feedforward_inputs((*shape, D), F, with_biases=with_biases, with_norm=with_norm, seed=seed)
    options = {"norm": norm, "residual": residual, "activation": activation, "eps": eps}
    check_native(gated_feedforward, apart(x) if two else x, **options)


@needs_native
@pytest.mark.parametrize("bias", ["up_bias", "down_bias"])
def test_native_with_one_bias(bias: str) -> None:
    x = feedforward_inputs((11, 5), 9)
    del x[bias]
    check_native(gated_feedforward, x)


@needs_native
@pytest.mark.parametrize("bias", ["up_bias", "value_bias"])
def test_native_with_a_bias_of_one_half(bias: str) -> None:
    x = apart(feedforward_inputs((11, 5), 9))
    del x[bias]
    check_native(gated_feedforward, x)


@needs_native
@ACTIVATIONS
def test_large_gates_are_finite(activation: str) -> None:
    """Far out the activation is the identity or nothing, and so is its slope."""
    x = feedforward_inputs((12, 5), 9, with_norm=False)
    x["up_weight"] *= 300
    check_native(gated_feedforward, x, activation=activation)


@needs_native
def test_few_rows_are_left_to_torch() -> None:
    check_few_rows(gated_feedforward, *(feedforward_inputs((rows, 5), 7) for rows in (8, 9)))
