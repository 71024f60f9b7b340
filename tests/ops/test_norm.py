"""Norms, of rows and of heads, against their formulas; the native ones for any shape."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from op_cases import Inputs, call, check_native, needs_native, norm_inputs, results
from tolerances import assert_close
from torch import Tensor

from openxlstm.ops import layer_norm, rms_norm


def formula(x: Tensor, weight: Tensor, num_groups: int, eps: float) -> Tensor:
    groups = []
    for part in x.chunk(num_groups, dim=-1):
        deviation = part - part.mean(-1, keepdim=True)
        groups.append(deviation / (deviation.square().mean(-1, keepdim=True) + eps).sqrt())
    return torch.cat(groups, -1) * (1 + weight)


@pytest.mark.parametrize("num_groups", [1, 3, 12])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_plain_is_the_formula(num_groups: int, eps: float) -> None:
    x = norm_inputs((2, 5, 12))
    expected = formula(**x, num_groups=num_groups, eps=eps)
    actual = layer_norm(**x, num_groups=num_groups, eps=eps, backend="torch")
    assert_close(actual, expected)


@needs_native
@settings(max_examples=100)
@given(
    shape=st.lists(st.integers(1, 9), max_size=3),
    num_groups=st.integers(1, 5),
    width=st.integers(1, 40),
    eps=st.sampled_from([1e-5, 1e-2, 1.0]),
    seed=st.integers(0, 999),
)
@example(shape=[130], num_groups=1, width=33, eps=1e-5, seed=0)
@example(shape=[2, 125], num_groups=3, width=16, eps=1e-5, seed=0)
@example(shape=[65], num_groups=1, width=300, eps=1e-5, seed=0)
def test_native_is_the_plain(
    shape: list[int], num_groups: int, width: int, eps: float, seed: int
) -> None:
    # One or two numbers less their mean are nearly nothing, or all alike: only eps is in the way.
    eps = eps if width > 2 else 1.0
    x = norm_inputs((*shape, num_groups * width), seed=seed)
    check_native(layer_norm, x, num_groups=num_groups, eps=eps)


@needs_native
def test_a_large_mean_is_no_loss() -> None:
    """The variance is that of what is left of a row, not a difference of large squares."""
    x = norm_inputs((3, 50))
    x["x"] = (1000 + x["x"]).float().double()
    y = layer_norm(x["x"].float(), x["weight"].float(), backend="native")
    assert_close(y, call(layer_norm, x, backend="torch"), tolerance=1e-3)


@needs_native
@pytest.mark.parametrize("num_groups", [1, 4])
def test_a_row_of_equals_is_zero(num_groups: int) -> None:
    """And its gradient is finite."""
    x: Inputs = {"x": torch.full((3, 20), 0.5), "weight": torch.ones(20)}
    after = results(layer_norm, x, num_groups=num_groups, backend="native")
    assert not after["output 0"].any()
    assert after["dx"].isfinite().all()
    assert after["dx"].any()


@needs_native
def test_few_rows_are_no_reason_to_refuse() -> None:
    """There are no weights to pack."""
    x = {name: part.float() for name, part in norm_inputs((1, 21)).items()}
    native = call(layer_norm, x, backend="native")
    assert torch.equal(call(layer_norm, x), native)
    assert not torch.equal(call(layer_norm, x, backend="torch"), native)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_plain_rms_is_the_formula(with_bias: bool, eps: float) -> None:
    x = norm_inputs((2, 5, 12), with_bias=with_bias)
    expected = x["x"] / (x["x"].square().mean(-1, keepdim=True) + eps).sqrt() * x["weight"]
    assert_close(rms_norm(**x, eps=eps, backend="torch"), expected + x.get("bias", 0.0))


@needs_native
@settings(max_examples=100)
@given(
    shape=st.lists(st.integers(1, 9), max_size=3),
    D=st.integers(1, 80),
    with_bias=st.booleans(),
    eps=st.sampled_from([1e-5, 1.0]),
    seed=st.integers(0, 999),
)
@example(shape=[130], D=33, with_bias=True, eps=1e-6, seed=0)
@example(shape=[65], D=300, with_bias=False, eps=1e-6, seed=0)
def test_native_rms_is_the_plain(
    shape: list[int], D: int, with_bias: bool, eps: float, seed: int
) -> None:
    eps = eps if D > 2 else 1.0  # of one number only the sign is left
    check_native(rms_norm, norm_inputs((*shape, D), with_bias=with_bias, seed=seed), eps=eps)


def test_rms_of_bfloat16_is_taken_in_float32() -> None:
    x = {name: part.bfloat16() for name, part in norm_inputs((3, 300), with_bias=True).items()}
    y = call(rms_norm, x)
    assert y.dtype == torch.bfloat16
    wide = call(rms_norm, {name: part.double() for name, part in x.items()})
    assert_close(y, wide, tolerance=1e-2)
    root = rms_norm(x["x"], torch.ones(300).bfloat16()).double()
    exact = rms_norm(x["x"].double(), torch.ones(300).double())
    assert (root - exact).abs().max() <= exact.abs().max() / 2**8  # rounded once
