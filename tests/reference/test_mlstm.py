"""The three forms of the mLSTM against the paper and against each other."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_close
from torch import Tensor

from openxlstm.reference.mlstm import chunkwise, initial_state, parallel, recurrent, step
from openxlstm.states import MLSTMState

LN2 = math.log(2)
Form = Callable[..., tuple[Tensor, MLSTMState]]
FORMS: dict[str, Form] = {
    "recurrent": recurrent,
    "parallel": parallel,
    "chunks of 1": partial(chunkwise, chunk_size=1),
    "chunks of 3": partial(chunkwise, chunk_size=3),
}
EACH_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


class Inputs(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    log_i: Tensor
    log_f: Tensor


def random_inputs(
    B: int = 2, NH: int = 2, T: int = 5, DQK: int = 3, DHV: int = 4, *, seed: int = 0
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Inputs(
        randn(B, NH, T, DQK), randn(B, NH, T, DQK), randn(B, NH, T, DHV), randn(B, NH, T),
        F.logsigmoid(2 * randn(B, NH, T) + 1),
    )  # fmt: skip


def random_state(B: int = 2, NH: int = 2, DQK: int = 3, DHV: int = 4) -> MLSTMState:
    generator = torch.Generator().manual_seed(9)
    shapes = ((B, NH, DQK, DHV), (B, NH, DQK), (B, NH))
    return MLSTMState(
        *(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    )


def textbook(x: Inputs, state: MLSTMState) -> tuple[Tensor, Tensor, Tensor]:
    """Equations 19-21 as printed, one head and sample and step at a time: h, and the last C and n.

    There is no m: the state is unpacked first.
    """
    B, NH, T, DQK = x.q.shape
    output = torch.empty_like(x.v)
    C, n = state.C * state.m[..., None, None].exp(), state.n * state.m[..., None].exp()
    for b in range(B):
        for head in range(NH):
            at = (b, head)
            for t in range(T):
                q, k, v, log_i, log_f = (part[b, head, t] for part in x)
                C[at] = log_f.exp() * C[at] + log_i.exp() * torch.outer(k, v)
                n[at] = log_f.exp() * n[at] + log_i.exp() * k
                q = q / math.sqrt(DQK)
                output[b, head, t] = C[at].T @ q / max(abs(n[at] @ q), 1.0)
    return output, C, n


def content(state: MLSTMState) -> tuple[Tensor, Tensor]:
    return state.C * state.m[..., None, None].exp(), state.n * state.m[..., None].exp()


def test_two_steps_by_hand():
    """Keys of width 4, so that q is halved; a value of width 1."""
    C, n = torch.zeros(1, 1, 4, 1, dtype=torch.float64), torch.zeros(1, 1, 4, dtype=torch.float64)

    def at(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).view(1, 1, -1)

    def gate(value: float) -> Tensor:
        return torch.tensor([[value]], dtype=torch.float64)

    # i = 2 writes 2·3 = 6 at the first key; q/2 = 1 there: h = 6 / max(2, 1) = 3
    h, state = step(
        at([2.0, 0, 0, 0]), at([1.0, 0, 0, 0]), at([3.0]), gate(LN2), gate(-LN2),
        MLSTMState(C, n, gate(0.0)),
    )  # fmt: skip
    assert h.item() == pytest.approx(3.0)
    assert state.m.item() == pytest.approx(LN2)
    assert state.C.flatten().tolist() == pytest.approx([3.0, 0, 0, 0])  # 6 / exp(m)
    assert state.n.flatten().tolist() == pytest.approx([1.0, 0, 0, 0])

    # f = 1/2 leaves 3; i = 1 writes -4 at the second key; h = (3·1/4 - 4·1/4) / max(1/2, 1)
    h, state = step(
        at([0.5, 0.5, 0, 0]), at([0.0, 1.0, 0, 0]), at([-4.0]), gate(0.0), gate(-LN2), state
    )
    assert h.item() == pytest.approx(-0.25)
    assert state.m.item() == pytest.approx(0.0)
    assert state.C.flatten().tolist() == pytest.approx([3.0, -4.0, 0, 0])
    assert state.n.flatten().tolist() == pytest.approx([1.0, 1.0, 0, 0])


@EACH_FORM
def test_m_by_hand(form: Form):
    """m follows the larger of what decays and what is written, from 0 and again after a reset."""
    x = random_inputs(B=1, NH=1, T=5)._replace(
        log_i=torch.tensor([[[-5.0, 2.0, -9.0, -9.0, -7.0]]], dtype=torch.float64),
        log_f=torch.tensor([[[-1.0, -1.0, -3.0, -0.5, -4.0]]], dtype=torch.float64),
    )
    reset = torch.tensor([[False, False, False, True, False]])
    expected = [-1.0, 2.0, -1.0, -0.5, -4.5]
    for T in range(1, 6):
        cut = Inputs(*(part[:, :, :T] for part in x))
        _, state = form(*cut, reset=reset[:, :T])
        assert state.m.item() == pytest.approx(expected[T - 1])


@EACH_FORM
@pytest.mark.parametrize("with_state", [False, True])
def test_equals_the_textbook(form: Form, with_state: bool):
    x = random_inputs(T=7)
    state = random_state() if with_state else None
    h, final = form(*x, state)
    expected = textbook(x, state or initial_state(x.q, x.v))
    for name, actual, truth in zip("hCn", (h, *content(final)), expected, strict=True):
        assert_close(actual, truth, name)


@given(
    B=st.integers(1, 3),
    NH=st.integers(1, 3),
    T=st.integers(1, 12),
    DQK=st.integers(1, 5),
    DHV=st.integers(1, 5),
    chunk_size=st.integers(1, 15),
    with_state=st.booleans(),
    density=st.sampled_from([None, 0.1, 0.5, 1.0]),
    eps=st.sampled_from([0.0, 1e-6, 0.1]),
    seed=st.integers(0, 999),
)
def test_forms_agree(
    B: int, NH: int, T: int, DQK: int, DHV: int, chunk_size: int, with_state: bool,
    density: float | None, eps: float, seed: int,
):  # fmt: skip
    """In h and in the state, m included: they are one function."""
    x = random_inputs(B, NH, T, DQK, DHV, seed=seed)
    state = random_state(B, NH, DQK, DHV) if with_state else None
    draws = torch.rand(B, T, generator=torch.Generator().manual_seed(seed))
    reset = None if density is None else draws < density
    h, final = recurrent(*x, state, reset=reset, eps=eps)
    for form in (parallel, partial(chunkwise, chunk_size=chunk_size)):
        h_form, final_form = form(*x, state, reset=reset, eps=eps)
        assert_close(h_form, h, "h")
        for name, actual, truth in zip(MLSTMState._fields, final_form, final, strict=True):
            assert_close(actual, truth, name)


def test_eps_is_added_to_the_denominator():
    x = random_inputs(B=1, NH=1, T=1)
    (h, _), (h_eps, state) = recurrent(*x), recurrent(*x, eps=0.5)
    q = x.q[0, 0, 0] / math.sqrt(3)
    denominator = max(abs(state.n[0, 0] @ q), math.exp(-state.m.item()))
    assert_close(h_eps * (denominator + 0.5), h * denominator)


@EACH_FORM
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_gradient_is_true(form: Form, eps: float):
    """Of every input and all parts of the state, and through h and all parts of the state."""
    reset = torch.tensor([[False, False, True, False], [False, False, False, False]])

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        h, final = form(*tensors[:5], MLSTMState(*tensors[5:]), reset=reset, eps=eps)
        return h, *final

    inputs = [*random_inputs(NH=1, T=4, DQK=2, DHV=2), *random_state(NH=1, DQK=2, DHV=2)]
    assert torch.autograd.gradcheck(function, [part.requires_grad_() for part in inputs])


@given(shift=st.floats(-20, 20), form=st.sampled_from(list(FORMS.values())))
def test_m_is_a_gauge(shift: float, form: Form):
    x, state = random_inputs(), random_state()
    shifted = MLSTMState(state.C * math.exp(-shift), state.n * math.exp(-shift), state.m + shift)
    (h, final), (h_shifted, final_shifted) = form(*x, state), form(*x, shifted)
    assert_close(h_shifted, h, "h")
    for name, actual, truth in zip("Cn", content(final_shifted), content(final), strict=True):
        assert_close(actual, truth, name)


@EACH_FORM
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates_of_50_stay_finite(form: Form, forget_gate: str, dtype: torch.dtype):
    x = random_inputs(T=40)
    i_sign, f_sign = x.log_i.sign(), random_inputs(T=40, seed=1).log_i.sign()
    ones = torch.ones_like(i_sign)
    signs = [(i_sign, f_sign), (ones, ones), (ones, -ones), (-ones, -ones)]
    if forget_gate == "sigmoid" or dtype == torch.float64:
        # m, which starts at 0, grows with f: i = exp(-50 - 50) is more than float32 can hold.
        signs.append((-ones, ones))
    for i, f in signs:
        log_f = F.logsigmoid(50 * f) if forget_gate == "sigmoid" else 50 * f
        gated = x._replace(log_i=50 * i, log_f=log_f)
        inputs = [part.to(dtype, copy=True).requires_grad_() for part in gated]
        h, final = form(*inputs)
        gradients = torch.autograd.grad(h.sum() + sum(part.sum() for part in final), inputs)
        for tensor in (h, *final, *gradients):
            assert tensor.dtype == dtype
            assert tensor.isfinite().all()


@EACH_FORM
@given(seed=st.integers(0, 99), with_state=st.booleans(), density=st.sampled_from([0.2, 0.5, 1.0]))
def test_reset_starts_a_new_sequence(form: Form, seed: int, with_state: bool, density: float):
    B, T = 2, 7
    x = random_inputs(B, T=T, seed=seed)
    state = random_state(B) if with_state else None
    reset = torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < density
    h, final = form(*x, state, reset=reset)
    for b in range(B):
        begins = sorted({0, *reset[b].nonzero().flatten().tolist()})
        pieces, last = [], None
        for begin, end in zip(begins, [*begins[1:], T], strict=True):
            kept = None if state is None or reset[b, begin] else state.select([b])
            piece = Inputs(*(part[b : b + 1, :, begin:end] for part in x))
            h_piece, last = recurrent(*piece, kept)
            pieces.append(h_piece)
        assert_close(h[b : b + 1], torch.cat(pieces, dim=2), "h", tolerance=1e-13)
        assert last is not None
        for name, part, alone in zip(MLSTMState._fields, final, last, strict=True):
            assert_close(part[b : b + 1], alone, name, tolerance=1e-13)


@EACH_FORM
def test_heads_samples_and_later_steps_do_not_matter(form: Form):
    x = random_inputs(B=2, NH=2, T=6)
    h, _ = form(*x)
    for seen, unseen in (
        ((slice(None), 0), (slice(None), 1)),  # heads
        ((0,), (1,)),  # samples
        ((slice(None), slice(None), slice(0, 3)), (slice(None), slice(None), slice(3, 6))),  # steps
    ):
        other = Inputs(*(part.clone() for part in x))
        for part in other:
            part[unseen] -= 1.0
        h_other, _ = form(*other)
        assert_close(h_other[seen], h[seen], tolerance=1e-14)
        assert not torch.equal(h_other[unseen], h[unseen])
