"""A stepper says, step by step, what the layer says, and minds whose state is whose."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_cases import needs_native, run_with_isa
from rnn_cases import KINDS, I, content, make_rnn, random_state
from tolerances import assert_close

from openxlstm import XLSTM
from openxlstm.ops.native import step as native_step

ONE_WAY = [kind for kind in KINDS if kind != "both ways"]
each_one_way = pytest.mark.parametrize("kind", ONE_WAY)


@each_one_way
@given(B=st.integers(1, 4), T=st.integers(1, 8), seed=st.integers(0, 2**31), empty=st.booleans())
def test_steps_are_those_of_the_sequence(kind: str, B: int, T: int, seed: int, empty: bool) -> None:
    """Beside the same weights in float64, resets included."""
    torch.manual_seed(seed)
    rnn = make_rnn(kind, dtype=torch.float32)
    x, reset = torch.randn(B, T, I), torch.rand(B, T) < 0.2
    state = None if empty else random_state(rnn, B)
    stepper = rnn.stepper(B, state)
    ys = [stepper.step(x[:, t], reset[:, t]) for t in range(T)]
    truth = rnn.double()
    y, after = truth(x.double(), None if state is None else state.to(torch.float64), reset=reset)
    assert_close(torch.stack(ys, dim=1), y, tolerance=1e-4)
    expected = content(after)
    for name, part in content(stepper.state).items():
        assert_close(part, expected[name], name, tolerance=1e-4)


@needs_native
@each_one_way
def test_it_is_native_where_it_can_be(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rnn = make_rnn(kind, dtype=torch.float32)
    assert rnn.stepper(2).fallback_reason is None
    calls = []
    monkeypatch.setattr(
        "openxlstm.nn.native_steps.step", lambda *plan: (calls.append(1), native_step.step(*plan))
    )
    rnn.stepper(2).step(torch.randn(2, I))
    assert calls == [1]


@needs_native
@pytest.mark.parametrize("isa", ["avx2", "vector"])
def test_other_instruction_sets(isa: str) -> None:
    code = (
        "import torch, openxlstm\n"
        "torch.manual_seed(0)\n"
        "for kind in ('paper', 'bare', 'large'):\n"
        "    layers = 'mm' if kind == 'large' else 'sms'\n"
        "    rnn = openxlstm.XLSTM(3, 24, layers=layers, block=kind, batch_first=True)\n"
        "    x = torch.randn(2, 6, 3)\n"
        "    stepper = rnn.stepper(2)\n"
        "    y = torch.stack([stepper.step(x[:, t]) for t in range(6)], dim=1)\n"
        "    torch.testing.assert_close(y, rnn(x)[0], rtol=1e-4, atol=1e-5)\n"
        "print('close')\n"
    )
    assert "close" in run_with_isa(isa, code)


@needs_native
@given(
    B=st.integers(1, 4),
    options=st.fixed_dictionaries(
        {
            "bias": st.booleans(),
            "num_heads": st.sampled_from([1, 2]),
            "eps": st.sampled_from([0.0, 0.1]),
            "qk_dim_factor": st.sampled_from([0.5, 2.0]),
            "v_dim_factor": st.sampled_from([0.5, 5.0]),
            "norm_eps": st.sampled_from([1e-6, 0.1]),
            "gate_soft_cap": st.sampled_from([0.0, 2.0]),
            "final_norm": st.booleans(),
        }
    ),
)
def test_any_mixture_of_options_of_large_blocks(B: int, options: dict[str, Any]) -> None:
    rnn = make_rnn("large", dtype=torch.float32, **options)
    x, stepper = torch.randn(B, 5, I), rnn.stepper(B)
    ys = [stepper.step(x[:, t]) for t in range(5)]
    y, _ = rnn.double()(x.double())
    assert_close(torch.stack(ys, dim=1), y, tolerance=1e-4)


@each_one_way
def test_of_bfloat16(kind: str) -> None:
    """Features and answers are bfloat16; what is between is wider."""
    rnn = make_rnn(kind, dtype=torch.bfloat16)
    x, stepper = torch.randn(2, 6, I).bfloat16(), rnn.stepper(2)
    y = torch.stack([stepper.step(x[:, t]) for t in range(6)], dim=1)
    assert y.dtype == torch.bfloat16
    assert_close(y, rnn.double()(x.double())[0], tolerance=2e-2)
    stepper.state  # noqa: B018


@each_one_way
def test_without_a_projection(kind: str) -> None:
    options: dict[str, Any] = {"num_heads": 2, **KINDS[kind]}
    rnn = XLSTM(I * 4, I * 4, batch_first=True, **options).eval()
    x = torch.randn(2, 3, I * 4)
    stepper = rnn.stepper(2)
    ys = torch.stack([stepper.step(x[:, t]) for t in range(3)], dim=1)
    torch.testing.assert_close(ys, rnn(x)[0], rtol=1e-4, atol=1e-5)


@each_one_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_goes_in_and_comes_out_as_a_value(kind: str, dtype: torch.dtype) -> None:
    rnn = make_rnn(kind, dtype=dtype)
    x = torch.randn(2, 6, I, dtype=dtype)
    state = random_state(rnn, 2)
    before = content(state)
    before = {name: part.clone() for name, part in before.items()}
    stepper = rnn.stepper(2, state)
    first = stepper.step(x[:, 0])
    kept = first.clone()
    middle = stepper.state
    y = stepper.step(x[:, 1])
    assert torch.equal(first, kept)  # an answer is not overwritten
    assert all(torch.equal(part, before[name]) for name, part in content(state).items())
    again = rnn.stepper(2, middle).step(x[:, 1])
    assert torch.equal(again, y)
    torch.testing.assert_close(rnn(x[:, :2], state)[0][:, 1], y, rtol=1e-3, atol=1e-5)


def test_weights_are_the_layers_own() -> None:
    rnn = make_rnn("s", dtype=torch.float32)
    x, stepper = torch.randn(1, I), rnn.stepper()
    before = stepper.step(x)
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.mul_(1.5)
    after = rnn.stepper().step(x)
    assert not torch.allclose(before, after)
    trained = make_rnn("s", dtype=torch.float32)
    stepper = trained.stepper()
    trained.load_state_dict(rnn.state_dict())
    assert torch.equal(stepper.step(x), after)


def test_no_gradient_and_no_dropout() -> None:
    rnn = XLSTM(I, 16, layers="sm", dropout=0.5)
    x = torch.randn(1, I, requires_grad=True)
    y = rnn.stepper().step(x)
    assert not y.requires_grad
    assert torch.equal(rnn.eval().stepper().step(x), y)


def test_mistakes_are_named() -> None:
    rnn = make_rnn("s", dtype=torch.float32)
    stepper = rnn.stepper(2)
    for x in (torch.randn(I), torch.randn(1, I), torch.randn(2, 1, I), torch.randn(2, I).double()):
        with pytest.raises(ValueError, match=r"x must be \(2, 3\) torch.float32 on cpu, not"):
            stepper.step(x)
    with pytest.raises(ValueError, match=r"reset must be \(2,\) torch.bool"):
        stepper.step(torch.randn(2, I), torch.zeros(2))
    with pytest.raises(ValueError, match=r"must be \(3, .*not \(2, "):
        rnn.stepper(3, random_state(rnn, 2))
    with pytest.raises(ValueError, match="it cannot be stepped"):
        make_rnn("both ways").stepper()
