"""A plan of a native step checks every tensor whose address it holds, and a step what it reads."""

from typing import Any, get_args

import pytest
import torch
from op_cases import needs_native
from torch import Tensor

from openxlstm.ops.native import step as native

pytestmark = needs_native

SIZES = {
    "B": 2, "D": 8, "NH": 2, "DH": 4, "E": 16, "F": 6, "DQK": 3, "DHV": 5, "K": 3, "side": 4,
    "blocks": 4, "V": 7, "P": 9, "I": 8, "back": 2,
}  # fmt: skip
KINDS = get_args(native.StepWeights)


def tensor_of(shape: str, dtype: torch.dtype = torch.float32) -> Tensor:
    factors = (size.split("*") for size in shape.split())
    sizes = [
        torch.tensor([SIZES[x] if x in SIZES else int(x) for x in each]).prod() for each in factors
    ]
    return torch.rand([int(size) for size in sizes]).to(dtype)


def weights_of(kind: Any) -> Any:
    return kind(**{name: tensor_of(shape) for name, (shape, *_) in native._SLOTS[kind].items()})


def layer_of(kind: Any) -> native.LayerPlan:
    is_slstm, heads = "SLSTM" in kind.__name__, "DQK DHV"
    if kind is native.MLSTMStepWeights:
        heads = "DHV DHV".replace("DHV", "2*DH")
    elif kind is native.BareMLSTMStepWeights:
        heads = "DH DH"
    matrix, row = f"B NH {heads}", f"B NH {heads.split()[0]}"
    state = ["B NH DH"] * 4 if is_slstm else [matrix, row, "B NH"]
    width = "D" if is_slstm else "E"
    window = tensor_of(f"B back {width}") if "conv" in kind._fields else None
    return native.LayerPlan(weights_of(kind), [tensor_of(shape) for shape in state], window)


def plan_of(*layers: native.LayerPlan, **changes: Any) -> native.StepPlan:
    """A plan that reads tokens."""
    weights = weights_of(native.ModelStepWeights)._replace(proj=None, proj_bias=None)
    plan = native.StepPlan(
        batch_size=2, dim=8, num_heads=2, weights=weights, layers=layers, out=tensor_of("B V"),
        dtype=torch.float32, position=torch.zeros(2, dtype=torch.int64), norm_eps=1e-5,
    )  # fmt: skip
    return plan._replace(**changes)


def run(plan: native.StepPlan) -> None:
    native.step(plan.pack(), torch.tensor([0, 6]))  # the plan keeps its tensors alive


def wrong(x: Tensor) -> list[Tensor]:
    return [
        x.double(), x.half(), x.to("meta"), x[None], torch.stack([x, x], -1)[..., 0], x[:-1],
        torch.cat([x, x]),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_a_layer_is_checked(kind: Any) -> None:
    layer = layer_of(kind)
    run(plan_of(layer))
    for name, x in layer.weights._asdict().items():
        for each in wrong(x):
            changed = layer._replace(weights=layer.weights._replace(**{name: each}))
            with pytest.raises(ValueError, match=r"layers\[0\]"):
                plan_of(changed).pack()
    for i, part in enumerate(layer.state):
        for each in wrong(part):
            state = [*layer.state[:i], each, *layer.state[i + 1 :]]
            with pytest.raises(ValueError, match=r"layers\[0\]\.state"):
                plan_of(layer._replace(state=state)).pack()
    for each in () if layer.window is None else (None, *wrong(layer.window)):
        with pytest.raises(ValueError, match=r"layers\[0\]\.window"):
            plan_of(layer._replace(window=each)).pack()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_layer_needs_is_asked_for(kind: Any) -> None:
    """A slot that is annotated as optional may be None, in a group with the others of its kind."""
    layer = layer_of(kind)
    for name, (_shape, _is_matrix, is_optional) in native._SLOTS[kind].items():
        changed = plan_of(layer._replace(weights=layer.weights._replace(**{name: None})))
        if is_optional and not any(name in group for group in native._TOGETHER):
            run(changed)
        else:
            with pytest.raises(ValueError, match=r"layers\[0\]"):
                changed.pack()


@pytest.mark.parametrize("name", ["tokens", "positions", "norm", "norm_bias", "head"])
def test_every_tensor_of_the_model_is_checked(name: str) -> None:
    plan = plan_of()
    rows = 2 if name == "positions" else 0  # of which there may be any number
    for each in wrong(getattr(plan.weights, name))[: -rows or None]:
        with pytest.raises(ValueError, match=r"model\.|out"):
            plan._replace(weights=plan.weights._replace(**{name: each})).pack()


@pytest.mark.parametrize("name", ["out", "position"])
def test_where_results_go_is_checked(name: str) -> None:
    plan = plan_of()
    for each in wrong(getattr(plan, name)):
        with pytest.raises(ValueError, match=name):
            plan._replace(**{name: each}).pack()


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 0}, {"num_heads": 3}, {"dtype": torch.float16}, {"num_features": 3}],
    ids=str,
)
def test_a_plan_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|do not fit|missing"):
        plan_of(**changes).pack()


def test_a_step_checks_what_it_reads() -> None:
    whole = plan_of(layer_of(native.LargeStepWeights))
    plan = whole.pack()
    ids = torch.tensor([1, 2])
    for x in wrong(ids):
        with pytest.raises(ValueError, match=r"x must be \(2,\) torch.int64"):
            native.step(plan, x)
    for bad in (-1, 7):
        with pytest.raises(IndexError):
            native.step(plan, torch.tensor([1, bad]))


def test_the_extension_checks_numbers() -> None:
    """Words that Python would not pack: sizes, the kind and the inner width of a block."""
    plan = plan_of(layer_of(native.MLSTMStepWeights))
    packed = plan.pack()
    words = len(packed.words) // 8
    for place in (0, 1, 3, 4, words - 38, words - 37, words - 36):
        for value in (-1, 1 << 50):
            data = bytearray(packed.words)
            data[8 * place : 8 * place + 8] = value.to_bytes(8, "little", signed=True)
            with pytest.raises(ValueError, match=r"plan|block|number|width|heads"):
                native.step(packed._replace(words=bytes(data)), torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="another size"):
        native.step(packed._replace(words=packed.words[:-8]), torch.tensor([1, 2]))
