"""sLSTM with its projections against the reference cell; the native one for any shape."""

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from op_cases import (
    BATCHES,
    RESETS,
    assert_all_close,
    check_few_rows,
    check_native,
    make_reset,
    needs_native,
    results,
    slstm_layer_inputs,
)
from torch import Tensor

from openxlstm.ops import slstm_layer
from openxlstm.reference import slstm as reference
from openxlstm.states import SLSTMState

FORGET_GATES = pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])


def naive(
    convolved: Tensor,
    raw: Tensor,
    input_weight: Tensor,
    bias: Tensor,
    recurrent_weight: Tensor,
    state: SLSTMState | None = None,
    **options: Any,
) -> tuple[Tensor, SLSTMState]:
    """The reference cell over gates that are projected one by one."""
    heads = [x.unflatten(-1, (len(bias), -1)) for x in (convolved, convolved, raw, raw)]
    gates = [
        torch.einsum("bthi,hoi->btho", x, input_weight[:, gate]) + bias[:, gate]
        for gate, x in enumerate(heads)
    ]
    return reference.recurrent(torch.stack(gates, dim=3), recurrent_weight, None, state, **options)


def same_input(raw: Tensor, **arguments: Any) -> tuple[Tensor, SLSTMState]:
    """The layer without a convolution: one tensor for all gates."""
    return slstm_layer(raw, raw, **arguments)


@FORGET_GATES
@pytest.mark.parametrize("reset", ["none", "random"])
@pytest.mark.parametrize("with_state", [False, True])
def test_plain_is_the_reference(forget_gate: str, reset: str, with_state: bool) -> None:
    x = slstm_layer_inputs(2, 7, 2, 3, with_state=with_state, empty=0.3)
    options = {"reset": make_reset(reset, 2, 7), "forget_gate": forget_gate}
    actual = results(slstm_layer, x, backend="torch", **options)
    assert_all_close(actual, results(naive, x, **options))


@needs_native
@settings(max_examples=100)
@given(
    batch=BATCHES,
    NH=st.integers(1, 3),
    DH=st.integers(1, 40),
    with_state=st.booleans(),
    empty=st.sampled_from([0.0, 0.5, 1.0]),
    reset=RESETS,
    forget_gate=st.sampled_from(["sigmoid", "exp"]),
    seed=st.integers(0, 999),
)
@example((2, 130), 2, 33, True, 0.0, "random", "sigmoid", 0)
@example((1, 250), 1, 20, False, 0.0, "adjacent", "exp", 0)
@example((13, 17), 1, 96, True, 0.5, "last", "sigmoid", 0)
@example((1, 20), 1, 200, True, 0.0, "none", "sigmoid", 0)
def test_native_is_the_plain(
    batch: tuple[int, int], NH: int, DH: int, with_state: bool, empty: float, reset: str,
    forget_gate: str, seed: int,
) -> None:  # fmt: skip
    x = slstm_layer_inputs(*batch, NH, DH, with_state=with_state, empty=empty, seed=seed)
    check_native(slstm_layer, x, reset=make_reset(reset, *batch), forget_gate=forget_gate)


@needs_native
@pytest.mark.parametrize("only", range(5))
@pytest.mark.parametrize("with_state", [False, True])
def test_loss_on_one_output(only: int, with_state: bool) -> None:
    """h, or one part of the state: a gradient that is missing counts as 0."""
    x = slstm_layer_inputs(3, 9, 2, 5, with_state=with_state, empty=0.3)
    check_native(slstm_layer, x, only=only, reset=make_reset("random", 3, 9))


@needs_native
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_one_input_for_all_gates(backend: str) -> None:
    """Its gradient is the sum of both, and the weights see it in both places."""
    x = slstm_layer_inputs(3, 9, 2, 5)
    x["convolved"] = x["raw"]
    both = results(slstm_layer, x, backend="torch")
    both["draw"] = both["draw"] + both.pop("dconvolved")
    del x["convolved"]
    if backend == "torch":
        assert_all_close(results(same_input, x, backend="torch"), both)
    else:
        check_native(same_input, x)


@needs_native
@FORGET_GATES
def test_extreme_gates_are_finite(forget_gate: str) -> None:
    x = slstm_layer_inputs(2, 60, 2, 5)
    x["bias"] = 50 * x["bias"].sign()
    narrow = {name: part.float() for name, part in x.items()}
    after = results(slstm_layer, narrow, forget_gate=forget_gate, backend="native")
    assert all(part.isfinite().all() for part in after.values())


@needs_native
def test_few_rows_are_left_to_torch() -> None:
    check_few_rows(slstm_layer, *(slstm_layer_inputs(1, T, 2, 5) for T in (8, 9)))
