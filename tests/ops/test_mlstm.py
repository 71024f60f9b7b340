"""mLSTM, every backend: the answers and gradients of the reference, for any shape and layout."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from op_cases import MLSTMInputs as Inputs
from op_cases import assert_all_close, everything, make_reset, with_gates_joined
from op_cases import mlstm_inputs as random_inputs
from tolerances import assert_close
from torch import Tensor

from openxlstm.ops import mlstm
from openxlstm.ops.mlstm import BACKENDS
from openxlstm.reference.mlstm import recurrent
from openxlstm.states import MLSTMState, map_state

EACH_BACKEND = pytest.mark.parametrize(
    "backend", [b.name for b in BACKENDS if b.name not in ("reference", "native", "scan")]
)
"""Those that compute in float64; `test_native.py` has the other."""
LOW = [torch.bfloat16, torch.float16]


SIZES = {
    "B": st.integers(1, 3),
    "NH": st.integers(1, 3),
    "T": st.integers(1, 40),
    "DQK": st.integers(1, 8),
    "DHV": st.integers(1, 8),
    "with_state": st.booleans(),
    "seed": st.integers(0, 999),
}
OPTIONS = {
    "x": st.builds(random_inputs, **SIZES),
    "reset": st.sampled_from(["none", "first", "last", "adjacent", "random"]),
    "chunk_size": st.sampled_from([None, 1, 2, 5, 16, 64]),
    "eps": st.sampled_from([0.0, 1e-6, 0.1]),
}


class TestAgainstReference:
    @EACH_BACKEND
    @settings(max_examples=100)
    @given(**OPTIONS)
    def test_float64(self, backend: str, x: Inputs, reset: str, chunk_size: int | None, eps: float):
        options = {"reset": make_reset(reset, x.q.shape[0], x.q.shape[2]), "eps": eps}
        actual = everything(mlstm, x, **options, chunk_size=chunk_size, backend=backend)
        assert_all_close(actual, everything(recurrent, x, **options))

    @EACH_BACKEND
    @settings(max_examples=100)
    @given(**OPTIONS)
    def test_float32(self, backend: str, x: Inputs, reset: str, chunk_size: int | None, eps: float):
        options = {"reset": make_reset(reset, x.q.shape[0], x.q.shape[2]), "eps": eps}
        narrow = x.map(Tensor.float)
        actual = everything(mlstm, narrow, **options, chunk_size=chunk_size, backend=backend)
        assert {part.dtype for part in actual.values()} == {torch.float32}
        expected = everything(recurrent, x, **options)
        assert_all_close(with_gates_joined(actual), with_gates_joined(expected))

    @EACH_BACKEND
    @pytest.mark.parametrize("T", [64, 65, 200])
    def test_several_default_chunks(self, backend: str, T: int):
        x = random_inputs(T=T, DQK=16, DHV=8)
        reset = make_reset("random", 2, T)
        for mask in (None, reset):
            actual = everything(mlstm, x.map(Tensor.float), reset=mask, backend=backend)
            assert_all_close(actual, everything(recurrent, x, reset=mask))

    @EACH_BACKEND
    @pytest.mark.parametrize("output", ["h", "C", "n", "m"])
    @pytest.mark.parametrize("chunk_size", [None, 4])
    @pytest.mark.parametrize("with_state", [False, True])
    def test_loss_on_one_output(
        self, backend: str, output: str, chunk_size: int | None, with_state: bool
    ):
        """A gradient that is missing counts as 0, and so it does if work is saved for it."""
        reset = make_reset("random", 2, 9)

        def gradients(function: Callable[..., Any], **options: Any) -> tuple[Tensor, ...]:
            x = random_inputs(with_state=with_state).map(Tensor.requires_grad_)
            h, state = function(*x.sequence, x.state, reset=reset, eps=0.01, **options)
            loss = (h if output == "h" else getattr(state, output)).square().sum()
            inputs = [part for part in x if part is not None]
            return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)

        expected = gradients(recurrent)
        actual = gradients(mlstm, chunk_size=chunk_size, backend=backend)
        for name, part, truth in zip(Inputs._fields, actual, expected, strict=False):
            assert_close(part, truth, f"d{name}")

    @EACH_BACKEND
    @pytest.mark.parametrize("name", Inputs._fields)
    def test_gradient_of_one_input(self, backend: str, name: str):
        def gradient(function: Callable[..., Any], **options: Any) -> Tensor:
            x = random_inputs()
            wanted = getattr(x, name).requires_grad_()
            h, state = function(*x.sequence, x.state, **options)
            return torch.autograd.grad(h.square().sum() + state.C.square().sum(), wanted)[0]

        assert_close(gradient(mlstm, chunk_size=4, backend=backend), gradient(recurrent))

    @EACH_BACKEND
    @pytest.mark.parametrize("eps", [0.0, 0.1])
    def test_gradcheck(self, backend: str, eps: float):
        reset = torch.tensor([[False, False, True, False, False]])

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            x = Inputs(*tensors)
            h, state = mlstm(
                *x.sequence, x.state, reset=reset, chunk_size=2, eps=eps, backend=backend
            )
            return h, *state

        x = random_inputs(B=1, T=5, DQK=2, DHV=2)
        assert torch.autograd.gradcheck(function, [part.requires_grad_() for part in x])  # pyright: ignore[reportOptionalMemberAccess]


class TestLowPrecision:
    @EACH_BACKEND
    @pytest.mark.parametrize("dtype", LOW, ids=str)
    def test_h_has_the_dtype_of_v_and_states_are_float32(self, backend: str, dtype: torch.dtype):
        x = random_inputs(T=40, DQK=16, DHV=8, with_state=False).map(lambda part: part.to(dtype))
        h, state = mlstm(*x.sequence, backend=backend)
        assert h.dtype == dtype
        assert {part.dtype for part in state} == {torch.float32}
        h_true, state_true = recurrent(*x.map(Tensor.double).sequence)
        assert_close(h, h_true, "h", tolerance=1e-2)
        for name, part, truth in zip(MLSTMState._fields, state, state_true, strict=True):
            assert_close(part, truth, name)  # inputs are widened, not the state narrowed
        h_next, _ = mlstm(*x.sequence, state, backend=backend)
        assert h_next.dtype == dtype

    @EACH_BACKEND
    @pytest.mark.parametrize("dtype", LOW, ids=str)
    def test_gradients_have_the_dtype_of_their_inputs(self, backend: str, dtype: torch.dtype):
        q, k, v, log_i, log_f, *state = random_inputs(T=40).map(Tensor.float)
        q, k, v, log_i, log_f = (part.to(dtype) for part in (q, k, v, log_i, log_f))
        narrow = Inputs(q, k, v, log_i, log_f, *state)
        actual = everything(mlstm, narrow, backend=backend)
        expected = everything(recurrent, narrow.map(Tensor.double))
        for name, part in narrow._asdict().items():
            assert actual[f"d{name}"].dtype == part.dtype
        assert_all_close(actual, expected, tolerance=2e-2)

    @EACH_BACKEND
    def test_gates_may_be_wider_than_the_rest(self, backend: str):
        """log_f near 0 counts: exp of its sum over 1000 steps."""
        x = random_inputs(T=64, with_state=False)._replace(
            log_f=torch.full((2, 2, 64), -1e-3, dtype=torch.float64)
        )
        q, k, v = (part.bfloat16() for part in x.sequence[:3])
        h, state = mlstm(q, k, v, x.log_i.float(), x.log_f.float(), backend=backend)
        assert h.dtype == torch.bfloat16
        _, truth = recurrent(q.double(), k.double(), v.double(), x.log_i, x.log_f)
        assert_close(state.C, truth.C)


class TestLayouts:
    @EACH_BACKEND
    @given(
        B=st.integers(1, 2), NH=st.integers(1, 3), T=st.integers(1, 40),
        DQK=st.integers(1, 5), DHV=st.integers(1, 5), chunk_size=st.sampled_from([None, 17]),
    )  # fmt: skip
    @example(B=1, NH=3, T=34, DQK=4, DHV=5, chunk_size=17)  # two chunks of a transposed view
    @example(B=1, NH=2, T=34, DQK=4, DHV=4, chunk_size=None)
    def test_strided_inputs(
        self, backend: str, layout: Callable[[Tensor], Tensor], B: int, NH: int, T: int,
        DQK: int, DHV: int, chunk_size: int | None,
    ):  # fmt: skip
        x = random_inputs(B, NH, T, DQK, DHV)

        def run(*arguments: Any, **options: Any) -> Any:
            laid_out = map_state(layout, arguments)
            return mlstm(*laid_out, **options)

        options = {"backend": backend, "chunk_size": chunk_size}
        assert_all_close(everything(run, x, **options), everything(mlstm, x, **options), 1e-12)

    @EACH_BACKEND
    def test_expanded_inputs(self, backend: str):
        """Heads that share keys and values; a gate for all steps; one state for all samples."""
        B, NH, T = 3, 2, 34
        x = random_inputs(B, NH, T)
        assert x.C is not None
        assert x.n is not None
        assert x.m is not None
        expanded = Inputs(
            x.q, x.k[:, :1].expand_as(x.k), x.v[:, :1].expand_as(x.v),
            x.log_i[..., :1].expand_as(x.log_i), x.log_f[:1, :1, :1].expand_as(x.log_f),
            x.C[:1].expand_as(x.C), x.n[:1].expand_as(x.n), x.m[:1, :1].expand_as(x.m),
        )  # fmt: skip
        h, state = mlstm(*expanded.sequence, expanded.state, backend=backend)
        dense = expanded.map(lambda part: part.contiguous())
        h_dense, state_dense = mlstm(*dense.sequence, dense.state, backend=backend)
        assert_close(h, h_dense, tolerance=1e-12)
        for part, truth in zip(state, state_dense, strict=True):
            assert_close(part, truth, tolerance=1e-12)

    @EACH_BACKEND
    @pytest.mark.parametrize("T", [1, 9, 34])
    @pytest.mark.parametrize("with_grad", [False, True])
    def test_inputs_stay_as_they_are(self, backend: str, T: int, with_grad: bool):
        x, reset = random_inputs(B=1, T=T), make_reset("random", 1, T)
        assert reset is not None
        before, reset_before = x.map(Tensor.clone), reset.clone()
        with torch.set_grad_enabled(with_grad):
            x = x.map(lambda part: part.requires_grad_(with_grad))
            for mask in (None, reset):
                h, state = mlstm(*x.sequence, x.state, reset=mask, backend=backend)
                if with_grad:
                    (h.sum() + state.C.sum()).backward()
        for name, part, old in zip(Inputs._fields, x, before, strict=True):
            assert part is not None
            assert old is not None
            assert torch.equal(part, old), name
        assert torch.equal(reset, reset_before)

    @EACH_BACKEND
    @pytest.mark.parametrize("B", [1, 2])
    @pytest.mark.parametrize("T", [1, 5, 200])
    def test_states_own_their_memory(self, backend: str, B: int, T: int):
        """It is neither shared, nor a view that keeps the states of all chunks alive."""
        x = random_inputs(B, T=T)
        with torch.no_grad():
            h, state = mlstm(*x.sequence, x.state, backend=backend)
        parts = [part for part in (*x, h, *state) if part is not None]
        assert len({part.untyped_storage().data_ptr() for part in parts}) == len(parts)
        assert all(part.untyped_storage().nbytes() == part.nbytes for part in state)


class TestTime:
    @EACH_BACKEND
    def test_one_step_is_the_same_with_and_without_a_gradient(self, backend: str):
        x = random_inputs(T=1)
        for state in (x.state, None):
            h, final = mlstm(*x.sequence, state, eps=1e-6, backend=backend)
            with torch.no_grad():
                h_step, final_step = mlstm(*x.sequence, state, eps=1e-6, backend=backend)
            assert_close(h_step, h, tolerance=1e-13)
            for part, truth in zip(final_step, final, strict=True):
                assert_close(part, truth, tolerance=1e-13)

    @EACH_BACKEND
    @pytest.mark.parametrize("with_reset", [False, True])
    def test_step_by_step_is_the_whole(self, backend: str, with_reset: bool):
        x, T = random_inputs(T=12), 12
        reset = make_reset("random", 2, T) if with_reset else None
        whole, final = mlstm(*x.sequence, x.state, reset=reset, backend=backend)
        state, steps = x.state, []
        with torch.no_grad():
            for t in range(T):
                at = slice(t, t + 1)
                mask = None if reset is None else reset[:, at]
                h, state = mlstm(*x.at(at), state, reset=mask, backend=backend)
                steps.append(h)
        assert_close(torch.cat(steps, dim=2), whole)
        assert state is not None
        for name, part, truth in zip(MLSTMState._fields, state, final, strict=True):
            assert_close(part, truth, name)

    @EACH_BACKEND
    @given(cut=st.integers(1, 39), chunk_size=st.sampled_from([None, 1, 7]), reset=st.booleans())
    def test_split_anywhere_is_the_whole(
        self, backend: str, cut: int, chunk_size: int | None, reset: bool
    ):
        """In all gradients as well, which pass through the state between the two calls."""

        def in_two(*args: Any, reset: Tensor | None, **options: Any) -> Any:
            *sequence, state = args
            sequence, outputs = Inputs(*sequence), []
            for piece in (slice(None, cut), slice(cut, None)):
                mask = None if reset is None else reset[:, piece]
                h, state = mlstm(*sequence.at(piece), state, reset=mask, **options)
                outputs.append(h)
            return torch.cat(outputs, dim=2), state

        x = random_inputs(T=40)
        mask = make_reset("random", 2, 40) if reset else None
        options = {"reset": mask, "chunk_size": chunk_size, "backend": backend}
        assert_all_close(everything(in_two, x, **options), everything(mlstm, x, **options))

    @EACH_BACKEND
    @given(t=st.integers(0, 39), chunk_size=st.sampled_from([None, 1, 7]))
    def test_the_future_is_not_seen(self, backend: str, t: int, chunk_size: int | None):
        x = random_inputs(T=40)
        other = x.map(Tensor.clone)
        for part in other.sequence:
            part[:, :, t:] = 3 * part[:, :, t:] - 0.5
        h, _ = mlstm(*x.sequence, x.state, chunk_size=chunk_size, backend=backend)
        h_other, _ = mlstm(*other.sequence, x.state, chunk_size=chunk_size, backend=backend)
        assert_close(h_other[:, :, :t], h[:, :, :t], tolerance=1e-13)
        assert not torch.equal(h_other[:, :, t:], h[:, :, t:])


class TestBatch:
    @EACH_BACKEND
    @given(order=st.permutations(range(4)))
    def test_permuting_the_batch_permutes_the_result(self, backend: str, order: list[int]):
        x, reset = random_inputs(B=4, T=20), make_reset("random", 4, 20)
        assert reset is not None
        h, state = mlstm(*x.sequence, x.state, reset=reset, backend=backend)
        moved = x.map(lambda part: part[order])
        h_moved, state_moved = mlstm(
            *moved.sequence, moved.state, reset=reset[order], backend=backend
        )
        assert_close(h_moved, h[order], tolerance=1e-12)
        for part, truth in zip(state_moved, state.select(order), strict=True):
            assert_close(part, truth, tolerance=1e-12)

    @EACH_BACKEND
    def test_samples_and_heads_do_not_see_each_other(self, backend: str):
        """One sample and head is changed beyond reason, its resets too."""
        x, reset = random_inputs(B=3, NH=3, T=20), torch.zeros(3, 20, dtype=torch.bool)
        h, _ = mlstm(*x.sequence, x.state, reset=reset, backend=backend)
        other, other_reset = x.map(Tensor.clone), reset.clone()
        for part in other.sequence:
            part[1, 2] = 30 * part[1, 2]
        h_other, _ = mlstm(*other.sequence, x.state, reset=reset, backend=backend)
        same = torch.ones(3, 3, dtype=torch.bool)
        same[1, 2] = False
        assert_close(h_other[same], h[same], tolerance=1e-12)
        other_reset[1, 10] = True
        h_other, _ = mlstm(*x.sequence, x.state, reset=other_reset, backend=backend)
        assert_close(h_other[[0, 2]], h[[0, 2]], tolerance=1e-12)
        assert_close(h_other[1, :, :10], h[1, :, :10], tolerance=1e-12)
        assert (h_other[1, :, 10:] - h[1, :, 10:]).abs().amax(-1).min() > 1e-9

    @EACH_BACKEND
    @pytest.mark.parametrize("reset", ["none", "random"])
    def test_nan_stays_in_its_sample(self, backend: str, reset: str):
        x, mask = random_inputs(B=3, T=20), make_reset(reset, 3, 20)
        h, _ = mlstm(*x.sequence, x.state, reset=mask, backend=backend)
        for part in x.sequence:
            part[1, :, 5] = math.nan
        h_nan, _ = mlstm(*x.sequence, x.state, reset=mask, backend=backend)
        assert_close(h_nan[[0, 2]], h[[0, 2]], tolerance=1e-12)
        assert h_nan[1].isnan().any()

    @EACH_BACKEND
    def test_nothing_passes_a_reset(self, backend: str):
        """Not even a gradient."""
        x = random_inputs(B=1, T=20).map(lambda part: part.float().requires_grad_())
        reset = torch.zeros(1, 20, dtype=torch.bool)
        reset[0, 12] = True
        h, state = mlstm(*x.sequence, x.state, reset=reset, chunk_size=8, backend=backend)
        inputs = [part for part in x if part is not None]

        loss = h[:, :, 12:].square().sum()
        *_, dlog_f, _, _, _ = torch.autograd.grad(loss, inputs, retain_graph=True)
        assert not dlog_f[:, :, 12].any()  # there is nothing that it could let through

        loss = loss + sum(part.sum() for part in state)
        *sequence, dC, dn, dm = torch.autograd.grad(loss, inputs)
        for name, part in zip(Inputs._fields, sequence, strict=False):
            assert part[:, :, 12:].ne(0).any(), name
        dq, dk, dv, dlog_i, dlog_f = (part[:, :, :12] for part in sequence)
        for part in (dq, dk, dv, dlog_i, dC, dn, dm):
            assert not part.any()
        assert dlog_f.abs().max() < 1e-5  # a sum over all later steps that cancel


class TestExtremeGates:
    """Input and forget gates of ±50 in every mixture, over 100 steps."""

    @staticmethod
    def mixtures() -> list[tuple[Tensor, Tensor]]:
        ones = torch.ones(2, 2, 100, dtype=torch.float64)
        mixed = [torch.randn(2, 2, 100).double().sign() for _ in range(2)]
        signs = [(ones, ones), (ones, -ones), (-ones, ones), (-ones, -ones), (mixed[0], mixed[1])]
        return [(50 * i, F.logsigmoid(50 * f)) for i, f in signs]

    @EACH_BACKEND
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_everything_is_finite_and_right(self, backend: str, dtype: torch.dtype):
        for log_i, log_f in self.mixtures():
            x = random_inputs(T=100)._replace(log_i=log_i, log_f=log_f)
            actual = everything(mlstm, x.map(lambda part: part.to(dtype)), backend=backend)
            assert all(part.isfinite().all() for part in actual.values())
            h_true = everything(recurrent, x)["h"]
            tolerance = 1e-9 if dtype == torch.float64 else 1e-4  # sums of log_f reach 5000
            assert_close(actual["h"], h_true, "h", tolerance=tolerance)

    @EACH_BACKEND
    def test_forget_gates_above_one(self, backend: str):
        x = random_inputs(T=100, with_state=False)._replace(
            log_i=torch.full((2, 2, 100), 50.0), log_f=torch.full((2, 2, 100), 50.0)
        )
        actual = everything(mlstm, x.map(Tensor.float), backend=backend)
        assert all(part.isfinite().all() for part in actual.values())


class TestGraph:
    @EACH_BACKEND
    def test_memory_grows_with_T(self, backend: str):
        """And not with T², as that of the parallel form."""

        def saved_bytes(T: int) -> int:
            saved: dict[int, int] = {}

            def pack(x: Tensor) -> Tensor:
                saved[x.data_ptr()] = max(saved.get(x.data_ptr(), 0), x.nbytes)
                return x

            x = random_inputs(T=T, DQK=16, DHV=16).map(Tensor.requires_grad_)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
                h, _ = mlstm(*x.sequence, x.state, backend=backend)
            assert h.requires_grad
            return sum(saved.values())

        assert 3.5 < saved_bytes(1024) / saved_bytes(256) < 4.6

    @EACH_BACKEND
    def test_second_derivative_is_refused(self, backend: str):
        x = random_inputs().map(Tensor.requires_grad_)
        h, _ = mlstm(*x.sequence, x.state, backend=backend)
        (gradient,) = torch.autograd.grad(h.square().sum(), x.q, create_graph=True)
        with pytest.raises(RuntimeError, match=r"twice|once_differentiable"):
            gradient.sum().backward()

    @EACH_BACKEND
    def test_no_graph_where_none_is_wanted(self, backend: str):
        x = random_inputs()
        h, state = mlstm(*x.sequence, x.state, backend=backend)
        assert not h.requires_grad
        assert not any(part.requires_grad for part in state)


def test_q_is_scaled_by_its_own_width():
    """Not k, and not by the width of v: states of all backends and checkpoints depend on it."""
    x = random_inputs(T=1, DQK=4, DHV=3, with_state=False)
    zero = torch.zeros_like(x.log_i)
    _, state = mlstm(x.q, x.k, x.v, zero, zero)
    assert_close(state.n, x.k[:, :, 0])
    h, _ = mlstm(x.q, x.k, x.v, zero, zero)
    score = (x.q * x.k).sum(-1, keepdim=True) / math.sqrt(4)
    assert_close(h, score * x.v / score.abs().clamp(min=1))
