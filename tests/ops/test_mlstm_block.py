"""The mLSTM block in one against its three ops, for any shape; and what it leaves to them."""

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
    mlstm_block_inputs,
    needs_native,
    results,
)
from torch import Tensor

from openxlstm.ops import mlstm, mlstm_block, mlstm_input, mlstm_output
from openxlstm.ops.dispatch import BackendError
from openxlstm.states import ConvState, MLSTMState, tensors

# Tests have a large norm_eps, without which the norm hides what scales h: the normalizer's gradient
# would be made of nothing but rounding.
OUTPUTS = ("y", "conv state", "C", "n", "m")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """With more of them it leaves single samples to the three ops."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_plain_is_the_three_ops() -> None:
    x = mlstm_block_inputs(2, 5, 7, 24, 3)
    x["down_bias"] = torch.randn(7).double()
    reset = make_reset("random", 2, 5)

    def three(
        x: Tensor, norm_weight: Tensor, skip: Tensor, down_weight: Tensor, down_bias: Tensor,
        before: ConvState, state: MLSTMState, **weights: Any,
    ) -> Any:  # fmt: skip
        (q, k, v, log_i, log_f, c, z), after = mlstm_input(
            x, state=before, reset=reset, backend="torch", **weights
        )
        h, final = mlstm(q, k, v, log_i, log_f, state, reset=reset, eps=0.1, backend="torch")
        y = mlstm_output(
            h, c, z, norm_weight, skip, down_weight, down_bias, eps=0.2, backend="torch"
        )
        return y, after, final

    actual = results(mlstm_block, x, reset=reset, eps=0.1, norm_eps=0.2, backend="torch")
    assert_all_close(actual, results(three, x))


@needs_native
@settings(max_examples=100)
@given(
    batch=BATCHES,
    D=st.integers(1, 40),
    heads=st.sampled_from([(16, 1), (16, 2), (32, 4), (48, 3), (80, 5), (16, 4)]),
    K=st.integers(0, 8),
    with_state=st.booleans(),
    reset=RESETS,
    seed=st.integers(0, 999),
)
@example((2, 150), 33, (48, 3), 4, True, "random", 0)
@example((3, 130), 20, (64, 1), 4, False, "none", 0)
@example((9, 1), 5, (16, 2), 8, True, "first", 0)
def test_native_is_the_plain(
    batch: tuple[int, int], D: int, heads: tuple[int, int], K: int, with_state: bool, reset: str,
    seed: int,
) -> None:  # fmt: skip
    x = mlstm_block_inputs(*batch, D, *heads, K, with_state=with_state, seed=seed)
    check_native(mlstm_block, x, reset=make_reset(reset, *batch), norm_eps=1.0)


@needs_native
@pytest.mark.parametrize("only", range(len(OUTPUTS)), ids=OUTPUTS)
@pytest.mark.parametrize("reset", ["none", "random"])
def test_loss_on_one_output(only: int, reset: str) -> None:
    """A gradient that is missing counts as 0; those of the states count too."""
    x = mlstm_block_inputs(5, 9, 7, 16, 2)
    check_native(mlstm_block, x, only=only, reset=make_reset(reset, 5, 9), norm_eps=1.0)


@needs_native
def test_the_state_goes_on_in_the_next_call() -> None:
    """Two calls are one, in all gradients: they pass through the states between them."""

    def in_two(x: Tensor, before: ConvState, state: MLSTMState, **weights: Any) -> Any:
        first, *between = mlstm_block(
            x[:, :7], before=before, state=state, norm_eps=1.0, backend="native", **weights
        )
        weights |= dict(zip(("before", "state"), between, strict=True))
        second, *after = mlstm_block(x[:, 7:], norm_eps=1.0, backend="native", **weights)
        return torch.cat([first, second], 1), *after

    x = mlstm_block_inputs(3, 12, 7, 16, 2)
    narrow = {name: part.float() for name, part in x.items()}
    expected = results(mlstm_block, x, norm_eps=1.0, backend="torch")
    assert_all_close(results(in_two, narrow), expected, 1e-4)


@needs_native
@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ({"E": 24}, {}, "the inner width 24 is not a multiple of 16"),
        ({"T": 16385, "E": 16}, {}, "the samples are too long"),
        ({}, {"eps": 1e-6}, "no eps"),
    ],
)
def test_what_it_leaves_to_the_three(
    sizes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    usual: dict[str, Any] = {"B": 2, "T": 9, "D": 5, "E": 32, "NH": 2}
    x = mlstm_block_inputs(**usual | sizes)
    x = {name: part.float() for name, part in x.items()}
    with pytest.raises(BackendError, match=f"'native' cannot run mlstm_block here: .*{message}"):
        call(mlstm_block, x, backend="native", **options)
    chosen, apart = (
        tensors(call(mlstm_block, x, backend=name, **options)) for name in (None, "apart")
    )
    assert all(map(torch.equal, chosen, apart))


@needs_native
def test_a_thread_takes_whole_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    x = {name: part.float() for name, part in mlstm_block_inputs(2, 9, 5, 32, 2).items()}
    with pytest.raises(BackendError, match="2 are too few for 3 of them"):
        call(mlstm_block, x, backend="native")


@needs_native
def test_few_rows_are_left_to_the_three() -> None:
    check_few_rows(
        mlstm_block, *(mlstm_block_inputs(1, T, 5, 16, 2) for T in (8, 9)), other="apart"
    )
