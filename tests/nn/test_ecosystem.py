"""XLSTM and the cells as modules among others: copied, saved, cast, moved and traced."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openxlstm import XLSTM, MLSTMCell, SLSTMCell
from openxlstm.ops.native import backend as native
from openxlstm.states import tensors, to

MODULES = [
    pytest.param(XLSTM, {"layers": "ms"}, id="paper"),
    pytest.param(XLSTM, {"layers": "m", "block": "large"}, id="large"),
    pytest.param(XLSTM, {"layers": "sm", "block": "bare", "bidirectional": True}, id="bare"),
    pytest.param(SLSTMCell, {}, id="SLSTMCell"),
    pytest.param(MLSTMCell, {}, id="MLSTMCell"),
]
each_module = pytest.mark.parametrize(("kind", "options"), MODULES)


def made(kind: Any, options: dict[str, Any], **more: Any) -> Any:
    return kind(4, 8, num_heads=2, **options, **more)


def an_input(module: nn.Module, **options: Any) -> Tensor:
    """Of a batch of 2, and of 5 steps for a layer."""
    sizes = (5, 2, 4) if isinstance(module, XLSTM) else (2, 4)
    return torch.randn(sizes, **options)


def all_of(result: Any) -> list[Tensor]:
    y, state = result
    return [y, *tensors(state)]


def assert_equal(one: Any, other: Any) -> None:
    for ours, expected in zip(all_of(one), all_of(other), strict=True):
        assert torch.equal(ours, expected)


# ---- copies and files ---------------------------------------------------------------------------


@each_module
def test_deepcopy(kind: Any, options: dict[str, Any]) -> None:
    """A copy says the same, and shares nothing."""
    module = made(kind, options)
    again, x = copy.deepcopy(module), an_input(module)
    assert_equal(again(x), module(x))
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(1.0)
    assert not torch.equal(again(x)[0], module(x)[0])


@each_module
def test_pickled_whole(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    """By torch.save and torch.load(weights_only=False), which trusts the file."""
    module = made(kind, options)
    torch.save(module, tmp_path / "module.pt")
    again, x = torch.load(tmp_path / "module.pt", weights_only=False), an_input(module)
    assert_equal(again(x), module(x))
    assert repr(again) == repr(module)


@each_module
def test_state_dict_in_a_file(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    """Reads into a module made alike, strictly; buffers there are none."""
    module, again = made(kind, options), made(kind, options)
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    again.load_state_dict(weights, strict=True)
    x = an_input(module)
    assert_equal(again(x), module(x))
    assert list(weights) == [name for name, _ in module.named_parameters()]


# ---- dtypes and devices -------------------------------------------------------------------------


@each_module
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(kind: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    """As a constructor's argument or later; states are float32 or wider."""
    module = made(kind, options, dtype=dtype)
    x = an_input(module, dtype=dtype)
    y, state = module(x)
    cells = tensors(state)
    assert y.dtype == dtype
    assert torch.float64 in {part.dtype for part in cells} or dtype == torch.bfloat16
    assert torch.float32 in {part.dtype for part in cells} or dtype == torch.float64
    y.float().pow(2).sum().backward()
    assert all(part.grad.dtype == dtype for part in module.parameters() if part.grad is not None)
    assert_equal(module.float()(x.float()), copy.deepcopy(module).to(torch.float32)(x.float()))


@each_module
def test_autocast(kind: Any, options: dict[str, Any]) -> None:
    """bfloat16 products around float32 weights, stream and states; gradients are float32."""
    module = made(kind, options)
    x = an_input(module)
    expected = all_of(module(x))
    with torch.autocast("cpu", torch.bfloat16):
        y, state = module(x)
        y, state = module(x.bfloat16(), state)  # a layer before it may have been cast
        first = all_of(module(x))
    assert {part.dtype for part in [y, *tensors(state)]} == {torch.float32}
    for ours, right in zip(first, expected, strict=True):
        torch.testing.assert_close(ours, right, rtol=0.1, atol=0.1)
    y.pow(2).sum().backward()
    assert all(part.grad.isfinite().all() for part in module.parameters() if part.grad is not None)


@each_module
def test_meta(kind: Any, options: dict[str, Any]) -> None:
    """Built without memory, asked for shapes, then given memory and weights."""
    module = made(kind, options)
    empty = made(kind, options, device="meta")
    with torch.device("meta"):
        also_empty = made(kind, options)
    x = an_input(module)
    for other in (empty, also_empty):
        assert {part.device.type for part in other.parameters()} == {"meta"}
        shapes = [part.shape for part in all_of(other(x.to("meta")))]
        assert shapes == [part.shape for part in all_of(module(x))]
        filled = other.to_empty(device="cpu")
        filled.load_state_dict(module.state_dict())
        assert_equal(filled(x), module(x))


@each_module
def test_moved(kind: Any, options: dict[str, Any]) -> None:
    """A module's empty state is where its weights are; a state moves by itself."""
    module = made(kind, options)
    _, state = module(an_input(module))
    moved = to(state, "meta")
    assert type(moved) is type(state)
    assert {part.device.type for part in tensors(moved)} == {"meta"}
    there = copy.deepcopy(module).to("meta")
    assert {part.device.type for part in tensors(there.initial_state(2))} == {"meta"}
    with pytest.raises(ValueError, match=r"state.* must be on cpu, not meta"):
        module(an_input(module), moved)
    with pytest.raises(ValueError, match="x must be on meta, like the weights, not cpu"):
        there(an_input(module))


# ---- TorchScript --------------------------------------------------------------------------------


@each_module
@pytest.mark.skipif(native.missing() is not None, reason="it is claimed of them alone")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced(kind: Any, options: dict[str, Any]) -> None:
    """`torch.jit.trace` works, for the sizes that it has seen; nothing else of TorchScript does."""
    module = made(kind, options).eval()
    x = an_input(module)

    class Output(nn.Module):  # a state, which may have None in it, is nothing that it returns
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)[0]

    with torch.no_grad():  # as torch.jit.trace itself is when it looks whether it was right
        traced: Any = torch.jit.trace(Output(), (x,))  # pyright: ignore[reportPrivateImportUsage]
    again = an_input(module)
    torch.testing.assert_close(traced(again), module(again)[0], rtol=1e-4, atol=1e-5)
