"""sLSTM, every backend: the answers and gradients of the reference, for any shape and layout."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from op_cases import SLSTMInputs as Inputs
from op_cases import assert_all_close, everything, make_reset
from op_cases import slstm_inputs as random_inputs
from tolerances import assert_close
from torch import Tensor

from openxlstm.ops import slstm
from openxlstm.ops.slstm import BACKENDS
from openxlstm.reference.slstm import recurrent
from openxlstm.states import SLSTMState, map_state

EACH_BACKEND = pytest.mark.parametrize(
    "backend", [b.name for b in BACKENDS if b.name not in ("reference", "native", "scan")]
)
"""Those that compute in float64; `test_native.py` has the other."""
FORGET_GATES = pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
LOW = [torch.bfloat16, torch.float16]


OPTIONS = {
    "x": st.builds(
        random_inputs,
        B=st.integers(1, 3),
        T=st.integers(1, 20),
        NH=st.integers(1, 3),
        DH=st.integers(1, 6),
        seed=st.integers(0, 999),
        with_state=st.booleans(),
        with_bias=st.booleans(),
        empty=st.sampled_from([0.0, 0.4, 1.0]),
    ),
    "reset": st.sampled_from(["none", "first", "last", "adjacent", "random"]),
    "forget_gate": st.sampled_from(["sigmoid", "exp"]),
}


class TestAgainstReference:
    @EACH_BACKEND
    @settings(max_examples=100)
    @given(**OPTIONS)
    def test_float64(self, backend: str, x: Inputs, reset: str, forget_gate: str):
        options = {"reset": make_reset(reset, *x.x.shape[:2]), "forget_gate": forget_gate}
        actual = everything(slstm, x, **options, backend=backend)
        assert_all_close(actual, everything(recurrent, x, **options))

    @EACH_BACKEND
    @settings(max_examples=100)
    @given(**OPTIONS)
    def test_float32(self, backend: str, x: Inputs, reset: str, forget_gate: str):
        options = {"reset": make_reset(reset, *x.x.shape[:2]), "forget_gate": forget_gate}
        actual = everything(slstm, x.map(Tensor.float), **options, backend=backend)
        assert {part.dtype for part in actual.values()} == {torch.float32}
        assert_all_close(actual, everything(recurrent, x, **options))

    @EACH_BACKEND
    def test_long_sequence(self, backend: str):
        x = random_inputs(T=300, DH=8)
        actual = everything(slstm, x.map(Tensor.float), backend=backend)
        assert_all_close(actual, everything(recurrent, x), 1e-4)

    @EACH_BACKEND
    @pytest.mark.parametrize("output", ["output", *SLSTMState._fields])
    @pytest.mark.parametrize("with_state", [False, True])
    def test_loss_on_one_output(self, backend: str, output: str, with_state: bool):
        """A gradient that is missing counts as 0, and so it does if work is saved for it."""
        reset = make_reset("random", 2, 7)

        def gradients(function: Callable[..., Any], **options: Any) -> tuple[Tensor, ...]:
            x = random_inputs(with_state=with_state).map(Tensor.requires_grad_)
            h, state = function(*x.arguments, reset=reset, **options)
            loss = (h if output == "output" else getattr(state, output)).square().sum()
            inputs = [part for part in x if part is not None]
            return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)

        actual, expected = gradients(slstm, backend=backend), gradients(recurrent)
        for name, part, truth in zip(Inputs._fields, actual, expected, strict=False):
            assert_close(part, truth, f"d{name}")

    @EACH_BACKEND
    @pytest.mark.parametrize("name", Inputs._fields)
    def test_gradient_of_one_input(self, backend: str, name: str):
        def gradient(function: Callable[..., Any], **options: Any) -> Tensor:
            x = random_inputs()
            wanted = getattr(x, name).requires_grad_()
            h, state = function(*x.arguments, **options)
            return torch.autograd.grad(h.square().sum() + state.c.square().sum(), wanted)[0]

        assert_close(gradient(slstm, backend=backend), gradient(recurrent))

    @EACH_BACKEND
    @FORGET_GATES
    def test_gradcheck(self, backend: str, forget_gate: str):
        reset = torch.tensor([[False, False, True, False]])

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            arguments = Inputs(*tensors).arguments
            h, state = slstm(*arguments, reset=reset, forget_gate=forget_gate, backend=backend)
            return h, *state

        x = random_inputs(B=1, T=4, DH=2)
        assert torch.autograd.gradcheck(function, [part.requires_grad_() for part in x])  # pyright: ignore[reportOptionalMemberAccess]


class TestLowPrecision:
    @EACH_BACKEND
    @pytest.mark.parametrize("dtype", LOW, ids=str)
    def test_h_has_the_dtype_of_x_and_states_are_float32(self, backend: str, dtype: torch.dtype):
        x = random_inputs(T=20, with_state=False).map(lambda part: part.to(dtype))
        h, state = slstm(*x.arguments, backend=backend)
        assert h.dtype == dtype
        assert {part.dtype for part in state} == {torch.float32}
        h_true, state_true = recurrent(*x.map(Tensor.double).arguments)
        assert_close(h, h_true, "h", tolerance=1e-2)
        for name, part, truth in zip(SLSTMState._fields, state, state_true, strict=True):
            assert_close(part, truth, name)  # inputs are widened, not the state narrowed
        h_next, _ = slstm(x.x, x.recurrent_weight, x.bias, state, backend=backend)
        assert h_next.dtype == dtype

    @EACH_BACKEND
    @pytest.mark.parametrize("dtype", LOW, ids=str)
    @pytest.mark.parametrize("wide_weights", [False, True])
    def test_gradients_have_the_dtype_of_their_inputs(
        self, backend: str, dtype: torch.dtype, wide_weights: bool
    ):
        x = random_inputs(T=20).map(Tensor.float)
        narrow = x._replace(x=x.x.to(dtype))
        if not wide_weights:
            assert x.bias is not None
            weights = {"recurrent_weight": x.recurrent_weight.to(dtype), "bias": x.bias.to(dtype)}
            narrow = narrow._replace(**weights)
        actual = everything(slstm, narrow, backend=backend)
        for name, part in narrow._asdict().items():
            assert actual[f"d{name}"].dtype == part.dtype
        assert_all_close(actual, everything(recurrent, narrow.map(Tensor.double)), tolerance=2e-2)


class TestLayouts:
    @EACH_BACKEND
    @given(B=st.integers(1, 2), T=st.integers(1, 12), NH=st.integers(1, 3), DH=st.integers(1, 4))
    @example(B=1, T=9, NH=1, DH=3)
    def test_strided_inputs(
        self, backend: str, layout: Callable[[Tensor], Tensor], B: int, T: int, NH: int, DH: int
    ):
        x = random_inputs(B, T, NH, DH)

        def run(*arguments: Any, **options: Any) -> Any:
            laid_out = map_state(layout, arguments)
            return slstm(*laid_out, **options)

        expected = everything(slstm, x, backend=backend)
        assert_all_close(everything(run, x, backend=backend), expected, 1e-12)

    @EACH_BACKEND
    @pytest.mark.parametrize("with_bias", [False, True])
    def test_expanded_inputs(self, backend: str, with_bias: bool):
        """One input for all samples, heads that share weights, one state for everything."""
        x = random_inputs(3, with_bias=with_bias)
        expanded = x.map(lambda part: part[:1].expand_as(part))
        h, state = slstm(*expanded.arguments, backend=backend)
        h_dense, state_dense = slstm(*expanded.map(Tensor.contiguous).arguments, backend=backend)
        assert_close(h, h_dense, tolerance=1e-12)
        for part, truth in zip(state, state_dense, strict=True):
            assert_close(part, truth, tolerance=1e-12)

    @EACH_BACKEND
    @pytest.mark.parametrize("B", [1, 2])
    @pytest.mark.parametrize("T", [1, 7])
    @pytest.mark.parametrize("with_bias", [False, True])
    @pytest.mark.parametrize("with_grad", [False, True])
    def test_inputs_stay_as_they_are(
        self, backend: str, B: int, T: int, with_bias: bool, with_grad: bool
    ):
        """The gates of one sample could be overwritten where they are."""
        x, reset = random_inputs(B, T, with_bias=with_bias), make_reset("random", B, T)
        assert reset is not None
        before, reset_before = x.map(Tensor.clone), reset.clone()
        with torch.set_grad_enabled(with_grad):
            x = x.map(lambda part: part.requires_grad_(with_grad))
            for mask in (None, reset):
                h, state = slstm(*x.arguments, reset=mask, backend=backend)
                if with_grad:
                    (h.sum() + state.c.sum()).backward()
        for name, part, old in zip(Inputs._fields, x, before, strict=True):
            assert part is old is None or torch.equal(part, old), name  # pyright: ignore[reportArgumentType]
        assert torch.equal(reset, reset_before)

    @EACH_BACKEND
    @pytest.mark.parametrize("B", [1, 2])
    @pytest.mark.parametrize("NH", [1, 2])
    @pytest.mark.parametrize("T", [1, 7])
    def test_states_own_their_memory(self, backend: str, B: int, NH: int, T: int):
        """It is neither shared, nor a view that keeps the states of all steps alive."""
        x = random_inputs(B, T, NH)
        with torch.no_grad():
            h, state = slstm(*x.arguments, backend=backend)
        parts = [part for part in (*x, h, *state) if part is not None]
        assert len({part.untyped_storage().data_ptr() for part in parts}) == len(parts)
        assert all(part.untyped_storage().nbytes() == part.nbytes for part in state)


class TestTime:
    @EACH_BACKEND
    @FORGET_GATES
    def test_one_step_is_the_same_with_and_without_a_gradient(self, backend: str, forget_gate: str):
        x = random_inputs(T=1, empty=0.4)
        for state in (x.state, None):
            arguments = (x.x, x.recurrent_weight, x.bias, state)
            h, final = slstm(*arguments, forget_gate=forget_gate, backend=backend)
            with torch.no_grad():
                h_step, final_step = slstm(*arguments, forget_gate=forget_gate, backend=backend)
            assert_close(h_step, h, tolerance=1e-13)
            for part, truth in zip(final_step, final, strict=True):
                assert_close(part, truth, tolerance=1e-13)

    @EACH_BACKEND
    @pytest.mark.parametrize("with_reset", [False, True])
    def test_step_by_step_is_the_whole(self, backend: str, with_reset: bool):
        x, T = random_inputs(T=12), 12
        reset = make_reset("random", 2, T) if with_reset else None
        whole, final = slstm(*x.arguments, reset=reset, backend=backend)
        state, steps = x.state, []
        with torch.no_grad():
            for t in range(T):
                at = slice(t, t + 1)
                mask = None if reset is None else reset[:, at]
                h, state = slstm(
                    x.x[:, at], x.recurrent_weight, x.bias, state, reset=mask, backend=backend
                )
                steps.append(h)
        assert_close(torch.cat(steps, dim=1), whole)
        assert state is not None
        for name, part, truth in zip(SLSTMState._fields, state, final, strict=True):
            assert_close(part, truth, name)

    @EACH_BACKEND
    @given(cut=st.integers(1, 14), reset=st.booleans(), forget_gate=OPTIONS["forget_gate"])
    def test_split_anywhere_is_the_whole(
        self, backend: str, cut: int, reset: bool, forget_gate: str
    ):
        """In all gradients as well, which pass through the state between the two calls."""

        def in_two(
            x: Tensor, weight: Tensor, bias: Tensor, state: SLSTMState, *, reset: Tensor | None,
            **options: Any,
        ) -> Any:  # fmt: skip
            outputs = []
            for piece in (slice(None, cut), slice(cut, None)):
                mask = None if reset is None else reset[:, piece]
                h, state = slstm(x[:, piece], weight, bias, state, reset=mask, **options)
                outputs.append(h)
            return torch.cat(outputs, dim=1), state

        x = random_inputs(T=15, empty=0.2)
        mask = make_reset("random", 2, 15) if reset else None
        options = {"reset": mask, "forget_gate": forget_gate, "backend": backend}
        assert_all_close(everything(in_two, x, **options), everything(slstm, x, **options))

    @EACH_BACKEND
    @given(t=st.integers(0, 14))
    def test_the_future_is_not_seen(self, backend: str, t: int):
        x = random_inputs(T=15)
        later = x.x.clone()
        later[:, t:] = 3 * later[:, t:] - 0.5
        h, _ = slstm(*x.arguments, backend=backend)
        h_other, _ = slstm(*x._replace(x=later).arguments, backend=backend)
        assert torch.equal(h_other[:, :t], h[:, :t])
        assert not torch.equal(h_other[:, t:], h[:, t:])


class TestBatch:
    @EACH_BACKEND
    @given(order=st.permutations(range(4)))
    def test_permuting_the_batch_permutes_the_result(self, backend: str, order: list[int]):
        x, reset = random_inputs(B=4, empty=0.2), make_reset("random", 4, 7)
        assert reset is not None
        assert x.state is not None
        h, state = slstm(*x.arguments, reset=reset, backend=backend)
        h_moved, state_moved = slstm(
            x.x[order], x.recurrent_weight, x.bias, x.state.select(order), reset=reset[order],
            backend=backend,
        )  # fmt: skip
        assert_close(h_moved, h[order], tolerance=1e-12)
        for part, truth in zip(state_moved, state.select(order), strict=True):
            assert_close(part, truth, tolerance=1e-12)

    @EACH_BACKEND
    def test_samples_and_heads_do_not_see_each_other(self, backend: str):
        """One sample and head is changed beyond reason; and then one sample's resets."""
        x, reset = random_inputs(B=3, NH=3, T=12), torch.zeros(3, 12, dtype=torch.bool)
        h, _ = slstm(*x.arguments, reset=reset, backend=backend)
        other = x.x.clone()
        other[1, :, 2] *= 30
        h_other, _ = slstm(*x._replace(x=other).arguments, reset=reset, backend=backend)
        same = torch.ones(3, 3, dtype=torch.bool)
        same[1, 2] = False
        assert_close(h_other.transpose(1, 2)[same], h.transpose(1, 2)[same], tolerance=1e-12)
        assert not torch.equal(h_other[1, :, 2], h[1, :, 2])
        reset[1, 6] = True
        h_other, _ = slstm(*x.arguments, reset=reset, backend=backend)
        assert_close(h_other[[0, 2]], h[[0, 2]], tolerance=1e-12)
        assert_close(h_other[1, :6], h[1, :6], tolerance=1e-12)
        assert (h_other[1, 6:] - h[1, 6:]).abs().amax((1, 2)).min() > 1e-9

    @EACH_BACKEND
    def test_empty_and_used_states_in_one_batch(self, backend: str):
        """Whether a memory is empty is asked place by place (trap T6)."""
        x = random_inputs(B=2)
        assert x.state is not None
        empty = SLSTMState(*(torch.zeros_like(part[:1]) for part in x.state))
        mixed = SLSTMState(*(torch.cat([e, u[1:]]) for e, u in zip(empty, x.state, strict=True)))
        shifted = x.x - 4.0  # low input gates, so that a floor of m = 0 would show
        h, state = slstm(shifted, x.recurrent_weight, x.bias, mixed, backend=backend)
        h_new, state_new = slstm(shifted[:1], x.recurrent_weight, x.bias, backend=backend)
        h_used, _ = slstm(
            shifted[1:], x.recurrent_weight, x.bias, x.state.select([1]), backend=backend
        )
        assert_close(h, torch.cat([h_new, h_used]), tolerance=1e-12)
        assert_close(state.m[:1], state_new.m, tolerance=1e-12)

    @EACH_BACKEND
    @pytest.mark.parametrize("reset", ["none", "random"])
    def test_nan_stays_in_its_sample(self, backend: str, reset: str):
        x, mask = random_inputs(B=3), make_reset(reset, 3, 7)
        h, _ = slstm(*x.arguments, reset=mask, backend=backend)
        x.x[1, 2] = math.nan
        h_nan, _ = slstm(*x.arguments, reset=mask, backend=backend)
        assert_close(h_nan[[0, 2]], h[[0, 2]], tolerance=1e-12)
        assert h_nan[1].isnan().any()

    @EACH_BACKEND
    def test_nothing_passes_a_reset(self, backend: str):
        """Not even a gradient."""
        x = random_inputs(B=1, T=12).map(lambda part: part.float().requires_grad_())
        reset = torch.zeros(1, 12, dtype=torch.bool)
        reset[0, 5] = True
        h, state = slstm(*x.arguments, reset=reset, backend=backend)
        loss = h[:, 5:].square().sum() + sum(part.sum() for part in state)
        inputs = [part for part in x if part is not None]
        dx, _, _, *d_state = torch.autograd.grad(loss, inputs)
        assert dx[:, 5:].ne(0).any()
        assert not dx[:, :5].any()
        assert not any(part.any() for part in d_state)


class TestExtremeGates:
    """Pre-activations of ±50 in every mixture, over 100 steps."""

    @EACH_BACKEND
    @FORGET_GATES
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_everything_is_finite_and_right(
        self, backend: str, forget_gate: str, dtype: torch.dtype
    ):
        sign = torch.randn(2, 100, 2, 4, 3).sign()
        ones = torch.ones_like(sign)
        ones[:, :, :, 2] = sign[:, :, :, 2]
        low_input = ones.clone()
        low_input[:, :, :, 0] = -1
        low_forget = ones.clone()
        low_forget[:, :, :, 1] = -1
        x = random_inputs(T=100)
        assert x.c is not None
        assert x.n is not None
        x = x._replace(c=x.n * x.c.tanh())  # a mean of z, as a memory is
        for signs in (sign, ones, low_input, low_forget):
            x = x._replace(x=50 * signs.double())
            narrow = x.map(lambda part: part.to(dtype))
            actual = everything(slstm, narrow, forget_gate=forget_gate, backend=backend)
            assert all(part.isfinite().all() for part in actual.values())
            assert actual["h"].abs().max() <= 1  # o·c/n
            expected = everything(recurrent, x, forget_gate=forget_gate)
            assert_close(actual["h"], expected["h"])


class TestGraph:
    @EACH_BACKEND
    def test_graph_does_not_grow_with_T(self, backend: str):
        """One node for the scan, not some for each step."""

        def num_nodes(T: int) -> int:
            h, _ = slstm(*random_inputs(T=T).map(Tensor.requires_grad_).arguments, backend=backend)
            seen, pending = set(), [h.grad_fn]
            while pending:
                node = pending.pop()
                if node is not None and node not in seen:
                    seen.add(node)
                    pending.extend(following for following, _ in node.next_functions)
            return len(seen)

        assert num_nodes(3) == num_nodes(50) <= 16

    @EACH_BACKEND
    def test_memory_grows_with_T(self, backend: str):
        def saved_bytes(T: int) -> int:
            saved: dict[int, int] = {}

            def pack(x: Tensor) -> Tensor:
                saved[x.data_ptr()] = max(saved.get(x.data_ptr(), 0), x.nbytes)
                return x

            x = random_inputs(T=T, DH=4).map(Tensor.requires_grad_)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
                h, _ = slstm(*x.arguments, backend=backend)
            assert h.requires_grad
            return sum(saved.values())

        assert 3.0 < saved_bytes(200) / saved_bytes(50) < 4.6

    @EACH_BACKEND
    def test_second_derivative_is_refused(self, backend: str):
        x = random_inputs().map(Tensor.requires_grad_)
        h, _ = slstm(*x.arguments, backend=backend)
        (gradient,) = torch.autograd.grad(h.square().sum(), x.x, create_graph=True)
        with pytest.raises(RuntimeError, match=r"twice|once_differentiable"):
            gradient.sum().backward()

    @EACH_BACKEND
    def test_no_graph_where_none_is_wanted(self, backend: str):
        h, state = slstm(*random_inputs().arguments, backend=backend)
        assert not h.requires_grad
        assert not any(part.requires_grad for part in state)


@EACH_BACKEND
def test_gates_are_in_the_order_i_f_z_o(backend: str):
    """i = 2, f = 3, z = 1/2, o = 1/4 on c = 1, n = 2: c = 3 + 1, n = 6 + 2."""
    gates = [math.log(2), math.log(3), math.atanh(0.5), -math.log(3)]
    x = torch.tensor(gates, dtype=torch.float64).view(1, 1, 1, 4, 1)
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    state = SLSTMState(one, one, 2 * one, 0 * one)
    weight = torch.zeros(1, 4, 1, 1, dtype=torch.float64)
    h, final = slstm(x, weight, None, state, forget_gate="exp", backend=backend)
    assert h.item() == pytest.approx(0.25 * 4 / 8)
    assert (final.c * final.m.exp()).item() == pytest.approx(4)
    assert (final.n * final.m.exp()).item() == pytest.approx(8)
