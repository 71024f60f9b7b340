"""The sLSTM block in one against the ops that it consists of, for any shape; and what it leaves to
them."""

from collections.abc import Iterator
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
    needs_native,
    results,
    slstm_block_inputs,
)
from torch import Tensor

from openxlstm.ops import causal_conv, gated_feedforward, layer_norm, slstm_block, slstm_layer
from openxlstm.ops.dispatch import BackendError
from openxlstm.ops.native.slstm_block import num_tasks
from openxlstm.states import ConvState, SLSTMState, tensors

# Tests have a large eps, without which the norm of few numbers is steep where they are alike.
OUTPUTS = ("y", "conv state", "h", "c", "n", "m")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """With more of them it leaves single samples to the others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_plain_is_its_parts() -> None:
    x = slstm_block_inputs(2, 5, 3, 4, 7)
    reset = make_reset("random", 2, 5)

    def parts(
        x: Tensor, norm_weight: Tensor, head_norm_weight: Tensor, ff_norm_weight: Tensor,
        up_weight: Tensor, down_weight: Tensor, up_bias: Tensor, down_bias: Tensor,
        conv_weight: Tensor, conv_bias: Tensor, before: ConvState, state: SLSTMState,
        **weights: Tensor,
    ) -> Any:  # fmt: skip
        options: dict[str, Any] = {"eps": 0.2, "backend": "torch"}
        raw = layer_norm(x, norm_weight, **options)
        convolved, after = causal_conv(
            raw, conv_weight, conv_bias, before, reset=reset, activation="silu", backend="torch"
        )
        h, final = slstm_layer(
            convolved, raw, **weights, state=state, reset=reset, forget_gate="exp", backend="torch"
        )
        x = x + layer_norm(h.flatten(-2), head_norm_weight, 3, **options)
        normed = layer_norm(x, ff_norm_weight, **options)
        ff = up_weight, down_weight, up_bias, down_bias
        return x + gated_feedforward(normed, *ff, backend="torch"), after, final

    actual = results(slstm_block, x, reset=reset, forget_gate="exp", eps=0.2, backend="torch")
    assert_all_close(actual, results(parts, x))


@needs_native
@settings(max_examples=100)
@given(
    batch=BATCHES,
    heads=st.sampled_from([(1, 16), (2, 8), (4, 8), (3, 16), (5, 32), (16, 1)]),
    F=st.integers(1, 40),
    K=st.integers(0, 8),
    with_state=st.booleans(),
    with_biases=st.booleans(),
    empty=st.sampled_from([0.0, 0.5]),
    reset=RESETS,
    forget_gate=st.sampled_from(["sigmoid", "exp"]),
    seed=st.integers(0, 999),
)
@example((2, 150), (3, 16), 33, 4, True, True, 0.0, "random", "sigmoid", 0)
@example((1, 200), (2, 24), 17, 8, True, False, 0.5, "random", "exp", 0)
@example((13, 40), (2, 16), 20, 4, False, False, 0.0, "none", "sigmoid", 0)
@example((9, 1), (1, 16), 5, 8, True, True, 0.0, "first", "sigmoid", 0)
def test_native_is_the_plain(
    batch: tuple[int, int], heads: tuple[int, int], F: int, K: int, with_state: bool,
    with_biases: bool, empty: float, reset: str, forget_gate: str, seed: int,
) -> None:  # fmt: skip
    x = slstm_block_inputs(
        *batch, *heads, F, K, with_state=with_state, with_biases=with_biases, empty=empty, seed=seed
    )
    check_native(slstm_block, x, reset=make_reset(reset, *batch), forget_gate=forget_gate, eps=1.0)


@needs_native
@pytest.mark.parametrize("only", range(len(OUTPUTS)), ids=OUTPUTS)
@pytest.mark.parametrize("reset", ["none", "random"])
def test_loss_on_one_output(only: int, reset: str) -> None:
    """A gradient that is missing counts as 0; those of the states count too."""
    x = slstm_block_inputs(5, 40, 2, 8, 7)
    check_native(slstm_block, x, only=only, reset=make_reset(reset, 5, 40), eps=1.0)


@needs_native
def test_the_state_goes_on_in_the_next_call() -> None:
    """Two calls are one, in all gradients: they pass through the states between them."""

    def in_two(x: Tensor, before: ConvState, state: SLSTMState, **weights: Any) -> Any:
        first, *between = slstm_block(
            x[:, :7], before=before, state=state, eps=1.0, backend="native", **weights
        )
        weights |= dict(zip(("before", "state"), between, strict=True))
        second, *after = slstm_block(x[:, 7:], eps=1.0, backend="native", **weights)
        return torch.cat([first, second], 1), *after

    x = slstm_block_inputs(3, 12, 2, 8, 7)
    narrow = {name: part.float() for name, part in x.items()}
    expected = results(slstm_block, x, eps=1.0, backend="torch")
    assert_all_close(results(in_two, narrow), expected, 1e-4)


@needs_native
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"DH": 12}, "the width 24 is not a multiple of 16"),
        ({"F": 6000}, "the weights are too many"),
        ({"K": 9}, "a convolution over 9 steps is too long"),
    ],
)
def test_what_it_leaves_to_the_others(sizes: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {"B": 2, "T": 9, "NH": 2, "DH": 16, "F": 5}
    x = {name: part.float() for name, part in slstm_block_inputs(**usual | sizes).items()}
    with pytest.raises(BackendError, match=f"'native' cannot run slstm_block here: .*{message}"):
        call(slstm_block, x, backend="native")
    chosen, apart = (tensors(call(slstm_block, x, backend=name)) for name in (None, "apart"))
    assert all(map(torch.equal, chosen, apart))


@needs_native
def test_a_thread_takes_whole_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    x = {name: part.float() for name, part in slstm_block_inputs(2, 9, 2, 8, 5).items()}
    with pytest.raises(BackendError, match="2 are too few for 3 of them"):
        call(slstm_block, x, backend="native")


@pytest.mark.parametrize("B", range(1, 70))
def test_tasks_are_small_and_even(B: int) -> None:
    tasks = num_tasks(B)
    assert -(-B // 6) <= tasks <= B
    assert tasks % 2 == 0 or B == 1
    assert tasks % 4 == 0 or B < 16
    assert tasks % 8 == 0 or B < 32


@needs_native
def test_few_rows_are_left_to_the_others() -> None:
    few, enough = (slstm_block_inputs(1, T, 2, 8, 5) for T in (8, 9))
    check_few_rows(slstm_block, few, enough, other="apart")
