"""In front of the mLSTM's cell, against its formula; the native one for any shape."""

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from op_cases import (
    BATCHES,
    RESETS,
    assert_all_close,
    call,
    check_few_rows,
    check_native,
    make_reset,
    mlstm_input_inputs,
    needs_native,
    results,
)
from torch import Tensor

from openxlstm.ops import causal_conv, mlstm_input
from openxlstm.ops.dispatch import BackendError
from openxlstm.states import ConvState

OUTPUTS = ["q", "k", "v", "log_i", "log_f", "c", "z", "state"]


def formula(
    x: Tensor,
    up_weight: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    state: ConvState | None = None,
    *,
    biases: tuple[Tensor, ...] = (),
    reset: Tensor | None = None,
) -> Any:
    """With the blocks written out as matrices; the convolution is tested elsewhere."""
    a_and_z, *qkv_biases = biases if biases else (torch.zeros(()),) * 4
    a, z = (x @ up_weight.T + a_and_z).chunk(2, dim=-1)
    c, state = (a, None) if conv_weight is None else causal_conv(
        a, conv_weight, conv_bias, state, reset=reset, backend="torch"
    )  # fmt: skip
    c = c / (1 + torch.exp(-c))
    sources = ((c, q_weight), (c, k_weight), (a, v_weight))
    joined = [
        branch @ torch.block_diag(*weight).T + bias
        for (branch, weight), bias in zip(sources, qkv_biases, strict=True)
    ]
    gates = torch.einsum("btc,ghc->gbht", torch.cat(joined, -1), gate_weight)
    i_preact, f_preact = gates + gate_bias[:, None, :, None]
    NH = gate_bias.shape[1]
    q, k, v = (torch.stack(y.chunk(NH, -1), dim=1) for y in joined)
    return (q, k, v, i_preact, -torch.log1p(torch.exp(-f_preact)), c, z), state


@pytest.mark.parametrize("K", [0, 1, 4])
@pytest.mark.parametrize("side", [1, 3, 4])
@pytest.mark.parametrize("with_biases", [False, True])
def test_plain_is_the_formula(K: int, side: int, with_biases: bool) -> None:
    x = mlstm_input_inputs(2, 5, 7, 24, 3, K, side=side, with_biases=with_biases)
    reset = make_reset("random", 2, 5)
    actual = results(mlstm_input, x, reset=reset, backend="torch")
    assert_all_close(actual, results(formula, x, reset=reset))


@needs_native
@settings(max_examples=100)
@given(
    batch=BATCHES,
    D=st.integers(1, 40),
    heads=st.sampled_from([(16, 1), (16, 2), (32, 4), (48, 3), (80, 5), (16, 16)]),
    K=st.integers(0, 8),
    with_state=st.booleans(),
    reset=RESETS,
    seed=st.integers(0, 999),
)
@example((2, 130), 33, (48, 3), 4, True, "random", 0)
@example((1, 250), 20, (32, 2), 8, False, "adjacent", 0)
@example((2, 65), 300, (16, 4), 0, False, "none", 0)
@example((9, 1), 5, (16, 2), 8, True, "first", 0)
@example((3, 64), 5, (16, 2), 1, True, "random", 0)
def test_native_is_the_plain(
    batch: tuple[int, int], D: int, heads: tuple[int, int], K: int, with_state: bool, reset: str,
    seed: int,
) -> None:  # fmt: skip
    x = mlstm_input_inputs(*batch, D, *heads, K, with_state=with_state, seed=seed)
    check_native(mlstm_input, x, reset=make_reset(reset, *batch))


@needs_native
@pytest.mark.parametrize("only", range(len(OUTPUTS)), ids=OUTPUTS)
@pytest.mark.parametrize("T", [2, 9])
def test_loss_on_one_output(only: int, T: int) -> None:
    """A gradient that is missing counts as 0; that of the convolution's state counts too."""
    x = mlstm_input_inputs(5, T, 7, 16, 2, 4)
    check_native(mlstm_input, x, only=only, reset=make_reset("last", 5, T))


@needs_native
def test_the_state_goes_on_in_the_next_call() -> None:
    """Two calls are one, in all gradients: they pass through the state between them."""

    def in_two(x: Tensor, state: ConvState, **arguments: Any) -> Any:
        first, between = mlstm_input(x[:, :7], state=state, backend="native", **arguments)
        second, after = mlstm_input(x[:, 7:], state=between, backend="native", **arguments)
        q, k, v, log_i, log_f = (torch.cat(p, 2) for p in zip(first[:5], second[:5], strict=True))
        c, z = (torch.cat(p, 1) for p in zip(first[5:], second[5:], strict=True))
        return (q, k, v, log_i, log_f, c, z), after

    x = mlstm_input_inputs(3, 12, 7, 16, 2, 4)
    narrow = {name: part.float() for name, part in x.items()}
    assert_all_close(results(in_two, narrow), results(mlstm_input, x, backend="torch"), 1e-4)


@needs_native
def test_extreme_gates() -> None:
    x = mlstm_input_inputs(2, 9, 7, 16, 2, 4)
    x["gate_bias"] = torch.tensor([[80.0, -80.0], [200.0, -200.0]]).double()
    check_native(mlstm_input, x)


@needs_native
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 8}, "projections are of blocks of 4, not of 8"),
        ({"E": 24}, "the inner width 24 is not a multiple of 16"),
        ({"with_biases": True}, "biases in the projections"),
        ({"K": 9}, "a convolution over 9 steps is too long"),
    ],
)
def test_refusals_name_their_reason(options: dict[str, Any], message: str) -> None:
    sizes: dict[str, Any] = {"B": 2, "T": 9, "D": 5, "E": 32, "NH": 2, "K": 4}
    x = mlstm_input_inputs(**sizes | options)
    x = {name: part.float() for name, part in x.items()}
    with pytest.raises(BackendError, match=f"'native' cannot run mlstm_input here: .*{message}"):
        call(mlstm_input, x, backend="native")
    call(mlstm_input, x)  # by another


@needs_native
def test_few_rows_are_left_to_torch() -> None:
    check_few_rows(mlstm_input, *(mlstm_input_inputs(1, T, 5, 16, 2, 4) for T in (8, 9)))
