"""Behind the mLSTM's cell, against its formula; the native one for any shape."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from op_cases import (
    BATCHES,
    assert_all_close,
    call,
    check_few_rows,
    check_native,
    mlstm_output_inputs,
    needs_native,
    results,
)
from tolerances import assert_close
from torch import Tensor

from openxlstm.ops import mlstm_output


def formula(
    h: Tensor,
    c: Tensor,
    z: Tensor,
    norm_weight: Tensor,
    skip: Tensor,
    down_weight: Tensor,
    down_bias: Tensor | float = 0.0,
    *,
    eps: float = 1e-5,
) -> Tensor:
    heads = []
    for head in h.unbind(1):
        deviation = head - head.mean(-1, keepdim=True)
        heads.append(deviation / (deviation.square().mean(-1, keepdim=True) + eps).sqrt())
    normed = torch.cat(heads, -1) * (1 + norm_weight)
    return ((normed + skip * c) * (z / (1 + torch.exp(-z)))) @ down_weight.T + down_bias


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("eps", [1e-5, 0.2])
def test_plain_is_the_formula(with_bias: bool, eps: float) -> None:
    x = mlstm_output_inputs(2, 3, 2, 5, 7, with_bias=with_bias)
    actual = call(mlstm_output, x, eps=eps, backend="torch")
    assert_close(actual, call(formula, x, eps=eps))


@needs_native
@settings(max_examples=100)
@given(
    batch=BATCHES,
    heads=st.sampled_from([(1, 16), (2, 8), (2, 24), (3, 16), (4, 4), (4, 20), (16, 3), (5, 32)]),
    D=st.integers(1, 40),
    with_bias=st.booleans(),
    eps=st.sampled_from([1e-5, 0.1]),
    seed=st.integers(0, 999),
)
@example((2, 130), (2, 24), 33, True, 1e-5, 0)
@example((1, 250), (4, 20), 20, False, 1e-5, 0)
def test_native_is_the_plain(
    batch: tuple[int, int], heads: tuple[int, int], D: int, with_bias: bool, eps: float, seed: int
) -> None:
    x = mlstm_output_inputs(*batch, *heads, D, with_bias=with_bias, seed=seed)
    check_native(mlstm_output, x, eps=eps)


@pytest.mark.parametrize("heads", [(1, 12), (2, 14), (4, 7)])
def test_any_inner_width(heads: tuple[int, int]) -> None:
    """Whoever computes it, with the gradients of rows that are no whole vectors."""
    x = mlstm_output_inputs(2, 9, *heads, 2)
    actual = results(mlstm_output, {name: part.float() for name, part in x.items()})
    assert_all_close(actual, results(mlstm_output, x), 1e-4)


@needs_native
def test_few_rows_are_left_to_torch() -> None:
    check_few_rows(mlstm_output, *(mlstm_output_inputs(1, T, 2, 8, 5) for T in (8, 9)))
