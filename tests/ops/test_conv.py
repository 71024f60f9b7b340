"""The causal convolution against torch.nn.functional.conv1d, for any shape and layout."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from op_cases import (
    BATCHES,
    RESETS,
    assert_all_close,
    check_few_rows,
    check_native,
    conv_inputs,
    make_reset,
    needs_native,
)
from tolerances import assert_close
from torch import Tensor

from openxlstm.ops import causal_conv
from openxlstm.ops.conv import BACKENDS
from openxlstm.ops.dispatch import BackendError
from openxlstm.states import ConvState, map_state

EACH_BACKEND = pytest.mark.parametrize(
    "backend", [backend.name for backend in BACKENDS if backend.name != "native"]
)


class Inputs(NamedTuple):
    """What causal_conv takes that has a gradient."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    before: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Inputs":
        return Inputs(*(None if part is None else function(part) for part in self))  # pyright: ignore[reportArgumentType]

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor | None, ConvState | None]:
        state = None if self.before is None else ConvState(self.before)
        return self.x, self.weight, self.bias, state


def random_inputs(
    B: int = 2, T: int = 7, D: int = 3, K: int = 4, *, seed: int = 0, with_state: bool = True,
    with_bias: bool = True,
) -> Inputs:  # fmt: skip
    """Values in float64, each of them one that float32 holds."""
    named = conv_inputs(B, T, D, K, seed=seed, with_state=with_state, with_bias=with_bias)
    return Inputs(named["x"], named["weight"], named.get("bias"), named.get("state.x"))


def truth(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, state: ConvState | None = None, *,
    reset: Tensor | None = None,
) -> tuple[Tensor, ConvState]:  # fmt: skip
    """torch's conv1d, sample by sample and from reset to reset."""
    B, T, D = x.shape
    K = weight.shape[1]
    before = x.new_zeros(B, K - 1, D) if state is None else state.x
    outputs, last = [], []
    for b in range(B):
        resets = [] if reset is None else reset[b].nonzero().flatten().tolist()
        begins = sorted({0, *resets})
        pieces, kept = [], before[b]
        for begin, end in zip(begins, [*begins[1:], T], strict=True):
            kept = torch.zeros_like(kept) if begin in resets else kept
            inputs = torch.cat([kept, x[b, begin:end]])
            pieces.append(F.conv1d(inputs.T[None], weight[:, None], bias, groups=D)[0].T)
            kept = inputs[len(inputs) - (K - 1) :]
        outputs.append(torch.cat(pieces))
        last.append(kept)
    return torch.stack(outputs), ConvState(torch.stack(last))


def everything(function: Callable[..., Any], x: Inputs, **options: Any) -> dict[str, Tensor]:
    """y, the final state, and the gradients of a random weighing of both."""
    x = x.map(lambda part: part.detach().clone().requires_grad_())
    y, final = function(*x.arguments, **options)
    generator = torch.Generator().manual_seed(7)
    loss = torch.zeros((), dtype=torch.float64)
    for part in (y, final.x):
        loss = loss + (part * torch.randn(part.shape, generator=generator)).sum().double()
    inputs = {name: part for name, part in x._asdict().items() if part is not None}
    gradients = torch.autograd.grad(
        loss, list(inputs.values()), allow_unused=True, materialize_grads=True
    )
    named = {f"d{name}": part for name, part in zip(inputs, gradients, strict=True)}
    return {"y": y, "final x": final.x, **named}


OPTIONS = {
    "x": st.builds(
        random_inputs,
        B=st.integers(1, 3),
        T=st.integers(1, 12),
        D=st.integers(1, 5),
        K=st.integers(1, 6),
        seed=st.integers(0, 999),
        with_state=st.booleans(),
        with_bias=st.booleans(),
    ),
    "reset": RESETS,
}


class TestAgainstConv1d:
    @EACH_BACKEND
    @settings(max_examples=100)
    @given(**OPTIONS)
    def test_float64(self, backend: str, x: Inputs, reset: str):
        mask = make_reset(reset, *x.x.shape[:2])
        actual = everything(causal_conv, x, reset=mask, backend=backend)
        assert_all_close(actual, everything(truth, x, reset=mask))

    @EACH_BACKEND
    @settings(max_examples=100)
    @given(**OPTIONS)
    def test_float32(self, backend: str, x: Inputs, reset: str):
        mask = make_reset(reset, *x.x.shape[:2])
        actual = everything(causal_conv, x.map(Tensor.float), reset=mask, backend=backend)
        assert {part.dtype for part in actual.values()} == {torch.float32}
        assert_all_close(actual, everything(truth, x, reset=mask))

    @EACH_BACKEND
    def test_bfloat16(self, backend: str):
        x = random_inputs(T=50).map(Tensor.bfloat16)
        actual = everything(causal_conv, x, backend=backend)
        assert {part.dtype for part in actual.values()} == {torch.bfloat16}
        assert_all_close(actual, everything(truth, x.map(Tensor.double)))

    @EACH_BACKEND
    def test_gradcheck(self, backend: str):
        reset = torch.tensor([[False, False, True, False, False]])

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            y, state = causal_conv(*Inputs(*tensors).arguments, reset=reset, backend=backend)
            return y, state.x

        x = random_inputs(B=1, T=5, D=2, K=3)
        assert torch.autograd.gradcheck(function, [part.requires_grad_() for part in x])  # pyright: ignore[reportOptionalMemberAccess]

    @EACH_BACKEND
    @pytest.mark.parametrize("which", ["y", "state"])
    def test_loss_on_one_output(self, backend: str, which: str):
        def gradients(function: Callable[..., Any], **options: Any) -> tuple[Tensor, ...]:
            x = random_inputs().map(lambda part: part.clone().requires_grad_())
            y, state = function(*x.arguments, **options)
            output = y if which == "y" else state.x
            inputs = [part for part in x if part is not None]
            return torch.autograd.grad(
                output.square().sum(), inputs, allow_unused=True, materialize_grads=True
            )

        actual, expected = gradients(causal_conv, backend=backend), gradients(truth)
        for name, part, correct in zip(Inputs._fields, actual, expected, strict=True):
            assert_close(part, correct, f"d{name}")


@EACH_BACKEND
def test_newest_weight_is_last_by_hand(backend: str):
    x = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1)
    state = ConvState(torch.tensor([0.01, 0.1]).view(1, 2, 1))
    y, after = causal_conv(
        x, torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([1000.0]), state, backend=backend
    )
    assert y.flatten().tolist() == pytest.approx([1001.23, 1012.3, 1123.0])
    assert after.x.flatten().tolist() == [10.0, 100.0]


class TestLayouts:
    @EACH_BACKEND
    @given(B=st.integers(1, 2), T=st.integers(1, 9), D=st.integers(1, 4), K=st.integers(1, 4))
    def test_strided_inputs(
        self, backend: str, layout: Callable[[Tensor], Tensor], B: int, T: int, D: int, K: int
    ):
        x = random_inputs(B, T, D, K)

        def lay_out(part: Tensor) -> Tensor:
            return layout(part) if part.dim() > 1 else part

        def run(*arguments: Any, **options: Any) -> Any:
            laid_out = map_state(lay_out, arguments)
            return causal_conv(*laid_out, **options)

        expected = everything(causal_conv, x, backend=backend)
        assert_all_close(everything(run, x, backend=backend), expected, 1e-12)

    @EACH_BACKEND
    def test_expanded_inputs(self, backend: str):
        expanded = random_inputs(3).map(lambda part: part[:1].expand_as(part))
        y, state = causal_conv(*expanded.arguments, backend=backend)
        y_dense, state_dense = causal_conv(
            *expanded.map(Tensor.contiguous).arguments, backend=backend
        )
        assert_close(y, y_dense, tolerance=1e-12)
        assert_close(state.x, state_dense.x, tolerance=1e-12)

    @EACH_BACKEND
    @pytest.mark.parametrize("T", [1, 7])
    @pytest.mark.parametrize("with_grad", [False, True])
    def test_inputs_stay_as_they_are(self, backend: str, T: int, with_grad: bool):
        x, reset = random_inputs(T=T), make_reset("random", 2, T)
        assert reset is not None
        before, reset_before = x.map(Tensor.clone), reset.clone()
        with torch.set_grad_enabled(with_grad):
            x = x.map(lambda part: part.requires_grad_(with_grad))
            for mask in (None, reset):
                y, state = causal_conv(*x.arguments, reset=mask, backend=backend)
                if with_grad:
                    (y.sum() + state.x.sum()).backward()
        for name, part, old in zip(Inputs._fields, x, before, strict=True):
            assert part is not None
            assert old is not None
            assert torch.equal(part, old), name
        assert torch.equal(reset, reset_before)

    @EACH_BACKEND
    @pytest.mark.parametrize("B", [1, 2])
    @pytest.mark.parametrize("T", [1, 2, 100])
    def test_state_keeps_no_long_sequence_alive(self, backend: str, B: int, T: int):
        x = random_inputs(B, T)
        with torch.no_grad():
            y, state = causal_conv(*x.arguments, backend=backend)
        storages = [part.untyped_storage() for part in (*x, y) if part is not None]
        assert state.x.untyped_storage().data_ptr() not in {s.data_ptr() for s in storages}
        assert state.x.untyped_storage().nbytes() <= 2 * state.x.nbytes


class TestTime:
    @EACH_BACKEND
    @pytest.mark.parametrize("K", [1, 4])
    @pytest.mark.parametrize("with_bias", [False, True])
    def test_one_step_is_the_same_with_and_without_a_gradient(
        self, backend: str, K: int, with_bias: bool
    ):
        x = random_inputs(T=1, K=K, with_bias=with_bias)
        for with_state in (True, False):
            x = x if with_state else x._replace(before=None)
            y, state = causal_conv(*x.arguments, backend=backend)
            with torch.no_grad():
                y_step, state_step = causal_conv(*x.arguments, backend=backend)
            assert_close(y_step, y, tolerance=1e-13)
            assert torch.equal(state_step.x, state.x)

    @EACH_BACKEND
    @pytest.mark.parametrize("K", [1, 2, 6])
    @pytest.mark.parametrize("with_reset", [False, True])
    def test_step_by_step_is_the_whole(self, backend: str, K: int, with_reset: bool):
        x = random_inputs(T=10, K=K)
        reset = make_reset("random", 2, 10) if with_reset else None
        whole, final = causal_conv(*x.arguments, reset=reset, backend=backend)
        *_, state = x.arguments
        steps = []
        with torch.no_grad():
            for t in range(10):
                at = slice(t, t + 1)
                mask = None if reset is None else reset[:, at]
                y, state = causal_conv(
                    x.x[:, at], x.weight, x.bias, state, reset=mask, backend=backend
                )
                steps.append(y)
        assert_close(torch.cat(steps, dim=1), whole)
        assert state is not None
        assert torch.equal(state.x, final.x)

    @EACH_BACKEND
    @given(cut=st.integers(1, 9), K=st.integers(1, 6), reset=st.booleans())
    def test_split_anywhere_is_the_whole(self, backend: str, cut: int, K: int, reset: bool):
        def in_two(
            x: Tensor, weight: Tensor, bias: Tensor, state: ConvState, *, reset: Tensor | None,
            **options: Any,
        ) -> Any:  # fmt: skip
            outputs = []
            for piece in (slice(None, cut), slice(cut, None)):
                mask = None if reset is None else reset[:, piece]
                y, state = causal_conv(x[:, piece], weight, bias, state, reset=mask, **options)
                outputs.append(y)
            return torch.cat(outputs, dim=1), state

        x = random_inputs(T=10, K=K)
        options = {"reset": make_reset("random", 2, 10) if reset else None, "backend": backend}
        assert_all_close(everything(in_two, x, **options), everything(causal_conv, x, **options))

    @EACH_BACKEND
    def test_sees_K_steps_of_its_own_channel_and_sample(self, backend: str):
        x = random_inputs(B=2, T=10, D=3, K=4)
        other = x.x.clone()
        other[0, 3, 1] += 1.0
        y, _ = causal_conv(*x.arguments, backend=backend)
        y_other, _ = causal_conv(*x._replace(x=other).arguments, backend=backend)
        expected = torch.zeros(2, 10, 3, dtype=torch.bool)
        expected[0, 3:7, 1] = True
        assert torch.equal(y_other != y, expected)

    @EACH_BACKEND
    def test_nothing_passes_a_reset(self, backend: str):
        x = random_inputs(B=1, T=8).map(Tensor.requires_grad_)
        reset = torch.zeros(1, 8, dtype=torch.bool)
        reset[0, 3] = True
        y, state = causal_conv(*x.arguments, reset=reset, backend=backend)
        assert x.before is not None
        dx, d_before = torch.autograd.grad(y[:, 3:].sum() + state.x.sum(), [x.x, x.before])
        assert dx[:, 3:].ne(0).any()
        assert not dx[:, :3].any()
        assert not d_before.any()


def test_second_derivative_is_refused():
    """But by the plain backend, which has no backward of its own."""
    x = random_inputs().map(Tensor.requires_grad_)
    y, _ = causal_conv(*x.arguments, backend="torch")
    (gradient,) = torch.autograd.grad(y.square().sum(), x.x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"twice|once_differentiable"):
        gradient.sum().backward()


@EACH_BACKEND
@pytest.mark.parametrize("T", [1, 7])
@pytest.mark.parametrize("with_grad", [False, True])
def test_silu_follows(backend: str, T: int, with_grad: bool):
    """The state stays what was read."""
    x = random_inputs(T=T)
    with torch.set_grad_enabled(with_grad):
        y, state = causal_conv(*x.arguments, activation="silu", backend=backend)
    before, state_before = truth(*x.arguments)
    assert_close(y, before / (1 + torch.exp(-before)))
    assert torch.equal(state.x, state_before.x)


@needs_native
class TestNative:
    """In float32, against plain PyTorch in float64."""

    @settings(max_examples=100)
    @given(
        batch=BATCHES,
        D=st.integers(1, 40),
        K=st.integers(1, 8),
        with_state=st.booleans(),
        with_bias=st.booleans(),
        activation=st.sampled_from([None, "silu"]),
        reset=RESETS,
        seed=st.integers(0, 999),
    )
    @example((2, 130), 33, 4, True, True, "silu", "random", 0)
    @example((1, 250), 20, 8, False, False, None, "adjacent", 0)
    @example((12, 1), 5, 8, True, True, "silu", "first", 0)
    @example((5, 3), 5, 6, True, False, "silu", "last", 0)
    def test_is_the_plain(
        self, batch: tuple[int, int], D: int, K: int, with_state: bool, with_bias: bool,
        activation: str | None, reset: str, seed: int,
    ):  # fmt: skip
        x = conv_inputs(*batch, D, K, with_state=with_state, with_bias=with_bias, seed=seed)
        check_native(causal_conv, x, reset=make_reset(reset, *batch), activation=activation)

    @pytest.mark.parametrize("only", [0, 1])
    @pytest.mark.parametrize("activation", [None, "silu"])
    def test_loss_on_one_output(self, only: int, activation: str | None):
        x = conv_inputs(4, 9)
        reset = make_reset("random", 4, 9)
        check_native(causal_conv, x, only=only, reset=reset, activation=activation)

    def test_a_long_kernel_is_left_to_torch(self):
        x = random_inputs(4, 9, K=9).map(Tensor.float)
        with pytest.raises(BackendError, match="a convolution over 9 steps is too long"):
            causal_conv(*x.arguments, backend="native")
        y, by_torch = (causal_conv(*x.arguments, backend=name)[0] for name in (None, "torch"))
        assert torch.equal(y, by_torch)

    def test_few_rows_are_left_to_torch(self):
        check_few_rows(causal_conv, *(conv_inputs(1, T) for T in (8, 9)))

    def test_nothing_passes_a_reset(self):
        """Not even what is no number."""
        x = random_inputs(2, 70, 5).map(Tensor.float)
        reset = torch.zeros(2, 70, dtype=torch.bool)
        reset[:, [5, 65]] = True
        x.x[:, [4, 64]] = torch.nan
        y, _ = causal_conv(*x.arguments, reset=reset, backend="native")
        assert y[:, 4].isnan().all()
        assert y[:, 5:64].isfinite().all()
        assert y[:, 64].isnan().all()
        assert y[:, 65:].isfinite().all()
