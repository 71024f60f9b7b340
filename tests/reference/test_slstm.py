"""The sLSTM of the reference against the paper, written out once more without a stabilizer."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_close
from torch import Tensor

from openxlstm.reference.slstm import initial_state, recurrent, step
from openxlstm.states import SLSTMState

LN2, LN3 = math.log(2), math.log(3)
FORGET_GATES = pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_state(B: int, NH: int, DH: int) -> SLSTMState:
    h, c, n, m = randn(4, B, NH, DH, seed=9)
    return SLSTMState(h.tanh(), c, n.abs() + 0.2, m)


def textbook(
    x: Tensor, R: Tensor, state: SLSTMState, forget_gate: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Equations 8-14 as printed, one head and sample and step at a time: h, and the last c and n.

    There is no m: the state is unpacked first.
    """
    B, T, NH, _, DH = x.shape
    output = torch.empty(B, T, NH, DH, dtype=x.dtype)
    h, c, n = state.h.clone(), state.c * state.m.exp(), state.n * state.m.exp()
    for b in range(B):
        for head in range(NH):
            for t in range(T):
                i, f, z, o = (x[b, t, head, g] + R[head, g] @ h[b, head] for g in range(4))
                i, z, o = i.exp(), z.tanh(), o.sigmoid()
                f = f.sigmoid() if forget_gate == "sigmoid" else f.exp()
                c[b, head] = f * c[b, head] + i * z
                n[b, head] = f * n[b, head] + i
                h[b, head] = o * c[b, head] / n[b, head]
                output[b, t, head] = h[b, head]
    return output, c, n


def test_two_steps_by_hand():
    """One head of width 1; only the forget gate reads h, with weight 4 ln 3."""
    x = torch.tensor(
        [
            [0.0, 0.7, math.atanh(0.5), 0.0],  # i = 1, z = 1/2, o = 1/2; nothing to forget yet
            [LN2, 0.0, math.atanh(-0.5), math.log(4)],  # i = 2, z = -1/2, o = 4/5
        ],
        dtype=torch.float64,
    ).view(1, 2, 1, 4, 1)
    R = torch.zeros(1, 4, 1, 1, dtype=torch.float64)
    R[0, 1] = 4 * LN3

    first = step(x[:, 0], R, initial_state(x))
    assert [part.item() for part in first] == pytest.approx([1 / 4, 1 / 2, 1, 0])  # h, c, n, m

    # f = σ(4 ln 3 · 1/4) = 3/4; c = 3/4·1/2 - 2·1/2 = -5/8; n = 3/4 + 2 = 11/4; m = ln 2
    second = step(x[:, 1], R, first)
    h = -2 / 11  # 4/5 · (-5/8) / (11/4)
    assert [part.item() for part in second] == pytest.approx([h, -5 / 16, 11 / 8, LN2])

    output, final = recurrent(x, R)
    assert output.flatten().tolist() == pytest.approx([1 / 4, h])
    assert torch.equal(torch.stack(final), torch.stack(second))


def test_exponential_forget_gate_by_hand():
    x = torch.tensor([0.0, LN3, math.atanh(0.5), 0.0], dtype=torch.float64).view(1, 1, 1, 4, 1)
    R = torch.zeros(1, 4, 1, 1, dtype=torch.float64)
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    # f = 3, i = 1: c = 3·1 + 1/2, n = 3·2 + 1, m = ln 3
    h, final = recurrent(x, R, None, SLSTMState(one, one, 2 * one, 0 * one), forget_gate="exp")
    assert h.item() == pytest.approx(1 / 4)
    assert [part.item() for part in final] == pytest.approx([1 / 4, 7 / 6, 7 / 3, LN3])


def test_recurrent_weight_is_head_gate_out_in():
    """The weight at [head 1, gate z, out 0, in 2] carries h[2] of head 1 to z[0] of head 1."""
    x = torch.zeros(1, 1, 2, 4, 3, dtype=torch.float64)
    R = torch.zeros(2, 4, 3, 3, dtype=torch.float64)
    R[1, 2, 0, 2] = 1.0
    state = initial_state(x)._replace(h=torch.arange(6.0, dtype=torch.float64).view(1, 2, 3))
    h, _ = recurrent(x, R, None, state)
    expected = torch.zeros(1, 1, 2, 3, dtype=torch.float64)
    expected[0, 0, 1, 0] = 0.5 * math.tanh(5)
    assert_close(h, expected)


@FORGET_GATES
@pytest.mark.parametrize("with_state", [False, True])
def test_equals_the_textbook(forget_gate: str, with_state: bool):
    x, R, bias = randn(2, 6, 3, 4, 5), randn(3, 4, 5, 5, seed=1) / 3, randn(3, 4, 5, seed=2)
    state = random_state(2, 3, 5) if with_state else None
    h, final = recurrent(x, R, bias, state, forget_gate=forget_gate)
    h_expected, c, n = textbook(x + bias, R, state or initial_state(x), forget_gate)
    assert_close(h, h_expected, "h")
    assert_close(final.h, h_expected[:, -1], "final h")
    assert_close(final.c * final.m.exp(), c, "c")
    assert_close(final.n * final.m.exp(), n, "n")


def test_bias_is_added_to_x():
    x, R, bias = randn(2, 4, 2, 4, 3), randn(2, 4, 3, 3, seed=1), randn(2, 4, 3, seed=2)
    assert_close(recurrent(x, R, bias)[0], recurrent(x + bias, R)[0])


@FORGET_GATES
def test_gradient_is_true(forget_gate: str):
    """Of x, R, bias and all parts of the state, and through h and all parts of the state."""
    R, bias = randn(2, 4, 2, 2, seed=1), randn(2, 4, 2, seed=2)
    reset = torch.tensor([[False, False, True], [False, False, False]])

    def function(x: Tensor, R: Tensor, bias: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        h, final = recurrent(x, R, bias, SLSTMState(*state), reset=reset, forget_gate=forget_gate)
        return h, *final

    inputs = [randn(2, 3, 2, 4, 2), R, bias, *random_state(2, 2, 2)]
    assert torch.autograd.gradcheck(function, [part.requires_grad_() for part in inputs])


@given(shift=st.floats(-20, 20), forget_gate=st.sampled_from(["sigmoid", "exp"]))
def test_m_is_a_gauge(shift: float, forget_gate: str):
    x, R, state = randn(2, 5, 2, 4, 3), randn(2, 4, 3, 3, seed=1), random_state(2, 2, 3)
    shifted = SLSTMState(
        state.h, state.c * math.exp(-shift), state.n * math.exp(-shift), state.m + shift
    )
    h, final = recurrent(x, R, None, state, forget_gate=forget_gate)
    h_shifted, final_shifted = recurrent(x, R, None, shifted, forget_gate=forget_gate)
    assert_close(h_shifted, h, "h")
    assert_close(final_shifted.c * final_shifted.m.exp(), final.c * final.m.exp(), "c")
    assert_close(final_shifted.n * final_shifted.m.exp(), final.n * final.m.exp(), "n")


@FORGET_GATES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates_of_50_stay_finite(forget_gate: str, dtype: torch.dtype):
    sign = randn(2, 40, 2, 4, 3).sign()
    for x in (50 * sign, 50 * sign[:, :1].expand(-1, 40, -1, -1, -1), 50 * sign.abs()):
        x = x.to(dtype, copy=True).requires_grad_()
        R = randn(2, 4, 3, 3, seed=1).to(dtype).requires_grad_()
        h, final = recurrent(x, R, forget_gate=forget_gate)
        assert h.dtype == dtype
        assert h.abs().max() <= 1  # o·c/n, a mean of z
        gradients = torch.autograd.grad(h.sum() + sum(part.sum() for part in final[1:]), [x, R])
        for tensor in (*final, *gradients):
            assert tensor.dtype == dtype
            assert tensor.isfinite().all()


class TestEmptyMemory:
    """Where n is 0 there is no scale to keep: m is the input gate's, whatever m was before."""

    def test_it_is_told_element_by_element(self):
        """A used state beside an empty one, as after a reset of one sample (trap T6)."""
        x, R = randn(2, 4, 2, 4, 3) - 3, randn(2, 4, 3, 3, seed=1)
        empty, used = initial_state(x[:1]), random_state(1, 2, 3)
        mixed = SLSTMState(*(torch.cat(parts) for parts in zip(empty, used, strict=True)))
        h, final = recurrent(x, R, None, mixed)
        for sample, state in ((slice(0, 1), empty), (slice(1, 2), used)):
            h_alone, final_alone = recurrent(x[sample], R, None, state)
            assert torch.equal(h[sample], h_alone)
            assert all(torch.equal(a[sample], b) for a, b in zip(final, final_alone, strict=True))
        assert torch.equal(step(x[:, 0], R, mixed).m[0], x[0, 0, :, 0])

    def test_low_input_gate_still_writes(self):
        """Were m at least the 0 that it starts from, i = exp(-800) would leave h = 0/0."""
        x = randn(1, 1, 1, 4, 2)
        x[..., 0, :] = -800.0
        h, final = recurrent(x, torch.zeros(1, 4, 2, 2, dtype=torch.float64))
        _, _, z, o = x[0, 0, 0]
        assert_close(h[0, 0, 0], o.sigmoid() * z.tanh())
        assert torch.equal(final.n, torch.ones(1, 1, 2, dtype=torch.float64))

    def test_c_and_m_of_an_empty_place_are_not_read(self):
        x, R, state = randn(2, 3, 2, 4, 3), randn(2, 4, 3, 3, seed=1), random_state(2, 2, 3)
        n = state.n.clone()
        n[0, 1, 2] = 0.0
        c, m = state.c.clone(), state.m.clone()
        c[0, 1, 2], m[0, 1, 2] = 7.0, 40.0
        h, _ = recurrent(x, R, None, state._replace(n=n))
        h_other, _ = recurrent(x, R, None, SLSTMState(state.h, c, n, m))
        assert torch.equal(h, h_other)


@given(seed=st.integers(0, 99), with_state=st.booleans(), density=st.sampled_from([0.2, 0.5, 1.0]))
def test_reset_starts_a_new_sequence(seed: int, with_state: bool, density: float):
    B, T = 2, 7
    x, R = randn(B, T, 2, 4, 3, seed=seed), randn(2, 4, 3, 3, seed=seed + 1)
    state = random_state(B, 2, 3) if with_state else None
    reset = torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < density
    h, final = recurrent(x, R, None, state, reset=reset)
    for b in range(B):
        begins = sorted({0, *reset[b].nonzero().flatten().tolist()})
        pieces, last = [], None
        for begin, end in zip(begins, [*begins[1:], T], strict=True):
            kept = None if state is None or reset[b, begin] else state.select([b])
            h_piece, last = recurrent(x[b : b + 1, begin:end], R, None, kept)
            pieces.append(h_piece)
        assert_close(h[b : b + 1], torch.cat(pieces, dim=1), "h", tolerance=1e-14)
        assert last is not None
        for name, part, alone in zip(SLSTMState._fields, final, last, strict=True):
            assert_close(part[b : b + 1], alone, name, tolerance=1e-14)


def test_heads_and_samples_do_not_see_each_other():
    x, R = randn(3, 5, 2, 4, 3), randn(2, 4, 3, 3, seed=1)
    h, final = recurrent(x, R)
    other = x.clone()
    other[:, :, 1] += 1.0
    h_other, final_other = recurrent(other, R)
    assert torch.equal(h[:, :, 0], h_other[:, :, 0])
    assert torch.equal(final.c[:, 0], final_other.c[:, 0])
    assert not torch.equal(h[:, :, 1], h_other[:, :, 1])
    other = x.clone()
    other[2] += 1.0
    assert torch.equal(h[:2], recurrent(other, R)[0][:2])


def test_hidden_state_mixes_the_units_of_a_head():
    """What makes an sLSTM: each unit reads every other of its head at the step before."""
    x, R = randn(1, 2, 1, 4, 3), randn(1, 4, 3, 3, seed=1)
    other = x.clone()
    other[0, 0, 0, 2, 0] += 1.0  # z of unit 0 at the first step
    difference = recurrent(other, R)[0] - recurrent(x, R)[0]
    assert difference[0, 0, 0].ne(0).tolist() == [True, False, False]
    assert difference[0, 1, 0].ne(0).all()
