"""`torch.func` on XLSTM and the cells: each transform agrees with a loop in Python."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacrev,
    jvp,
    stack_module_state,
    vmap,
)

from openxlstm import XLSTM, MLSTMCell, SLSTMCell, ops
from openxlstm.ops.dispatch import BackendError
from openxlstm.states import detach, map_state, tensors

pytestmark = [
    # Both operations say once that they run without their hand-written backward.
    pytest.mark.filterwarnings("ignore:openxlstm runs .* with its slow backend:UserWarning"),
    # torch's forward-mode formulas are TorchScript.
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
]

KINDS = [
    pytest.param({"layers": "ms", "block": "paper"}, id="paper"),
    pytest.param({"layers": "m", "block": "large"}, id="large"),
    pytest.param({"layers": "sm", "block": "bare"}, id="bare"),
]


def layer(**options: Any) -> XLSTM:
    return XLSTM(4, 16, num_heads=2, batch_first=True, **options)


@pytest.fixture(autouse=True)
def _wide() -> Iterator[None]:
    """float64, in which a wrong gradient and a rounded one can be told apart."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_same(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("options", KINDS)
def test_an_ensemble(options: dict[str, Any]) -> None:
    """Outputs, states and gradients of several layers at once, each with a state of its own."""
    members = [layer(**options) for _ in range(3)]
    parameters, buffers = stack_module_state(members)  # pyright: ignore[reportArgumentType]
    x, reset = torch.randn(2, 7, 4), torch.rand(2, 7) < 0.3
    states = [detach(member(torch.randn(2, 3, 4))[1]) for member in members]
    flat = [torch.stack(parts) for parts in zip(*map(tensors, states), strict=True)]

    def run(parameters: Any, buffers: Any, parts: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        given = iter(parts)
        state = map_state(lambda _: next(given), states[0])
        y, after = functional_call(members[0], (parameters, buffers), (x, state), {"reset": reset})
        return y, tensors(after)

    y, after = vmap(run)(parameters, buffers, flat)
    y.pow(2).sum().backward()
    for place, (member, state) in enumerate(zip(members, states, strict=True)):
        expected, expected_state = member(x, state, reset=reset)
        assert_same(y[place], expected)
        for part, right in zip(after, tensors(expected_state), strict=True):
            assert_same(part[place], right)
        expected.pow(2).sum().backward()
        for name, parameter in member.named_parameters():
            assert_same(parameters[name].grad[place], parameter.grad)  # pyright: ignore


@pytest.mark.parametrize("options", KINDS)
def test_gradients_of_each_sample(options: dict[str, Any]) -> None:
    module = layer(**options)
    parameters = {name: part.detach() for name, part in module.named_parameters()}
    x = torch.randn(3, 7, 4)

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        y, _ = functional_call(module, parameters, (sample[None],))
        return y.pow(2).sum()

    grads = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for place, sample in enumerate(x):
        module.zero_grad()
        module(sample[None])[0].pow(2).sum().backward()
        for name, parameter in module.named_parameters():
            assert_same(grads[name][place], parameter.grad)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", [SLSTMCell, MLSTMCell])
def test_cells(kind: Any) -> None:
    cell = kind(4, 16, num_heads=2)
    x, dx = torch.randn(2, 3, 4)
    _, state = cell(torch.randn(3, 4))
    state = state.detach()
    h = vmap(lambda x_t, *parts: cell(x_t, type(state)(*(p[None] for p in parts)))[0])(x, *state)
    assert_same(h, cell(x, state)[0])
    _, tangent = jvp(lambda x: cell(x, state)[0], (x,), (dx,))  # pyright: ignore[reportAssignmentType]
    assert_same(tangent, along(lambda x: cell(x, state)[0], x, dx))


def along(run: Any, x: Tensor, dx: Tensor) -> Tensor:
    """The directional derivative, from reverse mode: (d run / dx) dx, output by output."""
    jacobian = torch.autograd.functional.jacobian(run, x)
    return torch.tensordot(jacobian, dx, dims=x.dim())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("options", KINDS)
def test_forward_mode(options: dict[str, Any]) -> None:
    """`jvp`, and dual numbers without torch.func; neither drops a tangent in silence."""
    module = layer(**options)
    x, dx = torch.randn(2, 1, 4, 4)

    def run(x: Tensor) -> Tensor:
        return module(x)[0]

    expected = along(run, x, dx)
    y, tangent = jvp(run, (x,), (dx,))  # pyright: ignore[reportAssignmentType]
    assert_same(y, run(x))
    assert_same(tangent, expected)
    with forward_ad.dual_level():
        _, tangent = forward_ad.unpack_dual(run(forward_ad.make_dual(x, dx)))
    assert_same(tangent, expected)  # pyright: ignore[reportArgumentType]


def test_second_derivatives() -> None:
    """Of an sLSTM and an mLSTM, which the operators that run by themselves refuse."""
    module = layer(layers="sm", block="bare")
    x = torch.randn(1, 3, 4)

    def loss(x: Tensor) -> Tensor:
        return module(x)[0].pow(2).sum()

    ours = hessian(loss)(x).reshape(12, 12)
    step = 1e-6
    for place in range(12):
        shift = torch.zeros(12)
        shift[place] = step
        shift = shift.view_as(x)
        slope = (jacrev(loss)(x + shift) - jacrev(loss)(x - shift)) / (2 * step)
        torch.testing.assert_close(ours[place], slope.flatten(), rtol=1e-4, atol=1e-6)


def test_a_backend_by_name_says_why_not() -> None:
    """It neither falls back nor gives a wrong answer."""
    x, R = torch.randn(2, 3, 1, 4, 2), torch.randn(1, 4, 2, 2)

    def run(x: Tensor) -> Tensor:
        return ops.slstm(x, R, backend="torch")[0].sum()

    with pytest.raises(BackendError, match=r"torch\.func and forward-mode .* do not see through"):
        grad(run)(x)


def test_in_float32_as_by_itself() -> None:
    """What a transform takes the place of, the native operators where they are, says the same."""
    torch.set_default_dtype(torch.float32)
    module, x = layer(layers="ms"), torch.randn(3, 40, 4)
    y = vmap(lambda sample: module(sample[None])[0][0])(x)
    torch.testing.assert_close(y, module(x)[0], rtol=1e-3, atol=1e-4)
