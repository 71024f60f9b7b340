"""What holds for every recurrent layer, whatever its blocks, weights and inputs.

Each is checked in float64, where the operations are plain PyTorch, and in float32, where they are
the native backend's if it is here.
"""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rnn_cases import KINDS, I, content, make_rnn, random_state
from tolerances import assert_close
from torch import Tensor

from openxlstm import XLSTM
from openxlstm.states import XLSTMState

ONE_WAY = [kind for kind in KINDS if kind != "both ways"]
DTYPES = st.sampled_from([torch.float64, torch.float32])
SEEDS = st.integers(0, 2**31)
SIZES = st.tuples(st.integers(1, 4), st.integers(2, 24))
"""B and T."""

each_kind = pytest.mark.parametrize("kind", KINDS)
each_one_way = pytest.mark.parametrize("kind", ONE_WAY)


def case(
    kind: str, sizes: tuple[int, int], dtype: torch.dtype, seed: int
) -> tuple[XLSTM, Tensor, XLSTMState | None, Tensor | None]:
    """A layer, its input, and half of the time each a state to start from and resets."""
    torch.manual_seed(seed)
    rnn, (B, T) = make_rnn(kind, dtype=dtype), sizes
    x = torch.randn(B, T, I, dtype=dtype)
    state = random_state(rnn, B) if torch.rand(()) < 0.5 else None
    reset = torch.rand(B, T) < 0.2 if torch.rand(()) < 0.5 else None
    return rnn, x, state, reset


def assert_same(ours: tuple[Tensor, Any], expected: tuple[Tensor, Any]) -> None:
    """Outputs, and what the states hold."""
    tolerance = 1e-9 if ours[0].dtype == torch.float64 else 1e-4  # of single numbers, after many
    assert_close(ours[0], expected[0], "output", tolerance=tolerance)
    held = content(expected[1])
    for name, part in content(ours[1]).items():
        assert_close(part, held[name], name, tolerance=tolerance)


@each_one_way
@given(sizes=SIZES, cut=st.integers(1, 23), dtype=DTYPES, seed=SEEDS)
def test_split_anywhere_equals_whole(
    kind: str, sizes: tuple[int, int], cut: int, dtype: torch.dtype, seed: int
) -> None:
    rnn, x, state, reset = case(kind, sizes, dtype, seed)
    cut = min(cut, sizes[1] - 1)
    parts = [slice(None, cut), slice(cut, None)]
    outputs, carried = [], state
    for part in parts:
        y, carried = rnn(x[:, part], carried, reset=None if reset is None else reset[:, part])
        outputs.append(y)
    assert_same((torch.cat(outputs, dim=1), carried), rnn(x, state, reset=reset))


@each_one_way
@given(sizes=SIZES, dtype=DTYPES, seed=SEEDS)
def test_step_by_step_equals_sequence(
    kind: str, sizes: tuple[int, int], dtype: torch.dtype, seed: int
) -> None:
    rnn, x, state, reset = case(kind, sizes, dtype, seed)
    outputs, carried = [], state
    with torch.no_grad():
        for t in range(sizes[1]):
            now = None if reset is None else reset[:, t : t + 1]
            y, carried = rnn(x[:, t : t + 1], carried, reset=now)
            outputs.append(y)
        assert_same((torch.cat(outputs, dim=1), carried), rnn(x, state, reset=reset))


@each_kind
@given(sizes=SIZES, dtype=DTYPES, seed=SEEDS)
def test_samples_do_not_see_each_other(
    kind: str, sizes: tuple[int, int], dtype: torch.dtype, seed: int
) -> None:
    """Each alone gives what it gives among others."""
    rnn, x, state, reset = case(kind, sizes, dtype, seed)
    y, after = rnn(x, state, reset=reset)
    for b in range(sizes[0]):
        alone = rnn(
            x[b : b + 1],
            None if state is None else state.select([b]),
            reset=None if reset is None else reset[b : b + 1],
        )
        assert_same((y[b : b + 1], after.select([b])), alone)


@each_kind
@given(sizes=SIZES, seed=SEEDS)
def test_no_gradient_between_samples(kind: str, sizes: tuple[int, int], seed: int) -> None:
    rnn, x, state, reset = case(kind, sizes, torch.float32, seed)
    y, _ = rnn(x.requires_grad_(), state, reset=reset)
    (grad,) = torch.autograd.grad(y[-1].square().sum(), x)
    assert grad[:-1].eq(0).all()
    assert grad[-1].ne(0).any()


@each_kind
@given(sizes=SIZES, dtype=DTYPES, seed=SEEDS)
def test_a_permuted_batch_gives_a_permuted_result(
    kind: str, sizes: tuple[int, int], dtype: torch.dtype, seed: int
) -> None:
    rnn, x, state, reset = case(kind, sizes, dtype, seed)
    order = torch.randperm(sizes[0])
    y, after = rnn(x, state, reset=reset)
    permuted = rnn(
        x[order],
        None if state is None else state.select(order),
        reset=None if reset is None else reset[order],
    )
    assert_same(permuted, (y[order], after.select(order)))


@each_one_way
@given(sizes=SIZES, cut=st.integers(1, 23), dtype=DTYPES, seed=SEEDS)
def test_the_future_is_not_seen(
    kind: str, sizes: tuple[int, int], cut: int, dtype: torch.dtype, seed: int
) -> None:
    """Another future gives the same, but for the gauge's rounding, and no gradient at all."""
    rnn, x, state, reset = case(kind, sizes, dtype, seed)
    cut = min(cut, sizes[1] - 1)
    other = torch.cat([x[:, :cut], 10 * torch.randn_like(x[:, cut:])], dim=1)
    y, _ = rnn(x.requires_grad_(), state, reset=reset)
    y_other, _ = rnn(other, state, reset=reset)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    assert_close(y[:, :cut], y_other[:, :cut], tolerance=tolerance)
    (grad,) = torch.autograd.grad(y[:, :cut].square().sum(), x)
    assert grad[:, cut:].eq(0).all()


@each_kind
@given(
    sizes=SIZES, dtype=DTYPES, seed=SEEDS,
    rubbish=st.sampled_from([0.0, 1e30, float("nan"), float("inf")]),
)  # fmt: skip
def test_padding_changes_nothing(
    kind: str, sizes: tuple[int, int], rubbish: float, dtype: torch.dtype, seed: int
) -> None:
    """Neither outputs, nor final states, nor gradients, whatever stands in it."""
    rnn, x, state, reset = case(kind, sizes, dtype, seed)
    B, T = sizes
    lengths = torch.randint(1, T + 1, (B,))
    padding = torch.arange(T) >= lengths[:, None]
    x = x.masked_fill(padding[..., None], rubbish).requires_grad_()
    y, after = rnn(x, state, reset=reset, lengths=lengths)
    upstream = torch.randn_like(y)
    (grad,) = torch.autograd.grad(y, x, upstream)
    assert y[padding].eq(0).all()
    assert grad[padding].eq(0).all()
    for b, length in enumerate(lengths.tolist()):
        alone = x[b : b + 1, :length].detach().requires_grad_()
        expected = rnn(
            alone,
            None if state is None else state.select([b]),
            reset=None if reset is None else reset[b : b + 1, :length],
        )
        assert_same((y[b : b + 1, :length], after.select([b])), expected)
        (grad_alone,) = torch.autograd.grad(expected[0], alone, upstream[b : b + 1, :length])
        tolerance = 1e-9 if dtype == torch.float64 else 1e-4
        assert_close(grad[b : b + 1, :length], grad_alone, "gradient", tolerance=tolerance)


@each_kind
@given(sizes=SIZES, at=st.integers(1, 23), dtype=DTYPES, seed=SEEDS)
def test_a_reset_is_a_new_start(
    kind: str, sizes: tuple[int, int], at: int, dtype: torch.dtype, seed: int
) -> None:
    """What stands before it changes nothing after it; with both directions the other way, too."""
    rnn, x, state, _ = case(kind, sizes, dtype, seed)
    B, T = sizes
    at = min(at, T - 1)
    reset = torch.zeros(B, T, dtype=torch.bool)
    reset[:, at] = True
    y, after = rnn(x, state, reset=reset)
    y_first, after_first = rnn(x[:, :at], None if rnn.bidirectional else state)
    y_second, after_second = rnn(x[:, at:], None)
    if rnn.bidirectional:  # without a state, which would enter at both ends
        y, after = rnn(x, None, reset=reset)
        after_second = XLSTMState(after_second.forward, after_first.reverse)
    assert_same((y, after), (torch.cat([y_first, y_second], dim=1), after_second))
