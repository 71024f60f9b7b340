"""The native backend, in float32, against the reference in float64; every instruction set."""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from op_cases import (
    RESETS,
    Inputs,
    MLSTMInputs,
    SLSTMInputs,
    apart,
    assert_all_close,
    call,
    check_native,
    conv_inputs,
    everything,
    feedforward_inputs,
    large_input_inputs,
    large_output_inputs,
    make_reset,
    mlstm_block_inputs,
    mlstm_input_inputs,
    mlstm_inputs,
    mlstm_output_inputs,
    needs_native,
    norm_inputs,
    results,
    run_with_isa,
    slstm_block_inputs,
    slstm_inputs,
    slstm_layer_inputs,
    with_gates_joined,
)
from tolerances import assert_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from openxlstm import LanguageModel, ModelConfig, ops
from openxlstm.ops import TABLE, mlstm, slstm, state_dtype
from openxlstm.ops.dispatch import BackendError, Request
from openxlstm.ops.native import backend as native
from openxlstm.reference import mlstm as mlstm_reference
from openxlstm.reference import slstm as slstm_reference
from openxlstm.states import MLSTMState, SLSTMState, tensors

pytestmark = needs_native


class Case(NamedTuple):
    """A call of an op around the cells, on three samples and more than one tile of each."""

    op: Callable[..., Any]
    inputs: Inputs
    options: dict[str, Any]

    def narrow(self) -> Inputs:
        return {name: x.float() for name, x in self.inputs.items()}


B, T = 3, 70
OF_SAMPLES = {"x", "convolved", "raw", "h", "c", "z", "o", "residual", "before", "state"}
"""Inputs that belong to samples; the others are parameters."""


def make_cases() -> dict[str, Case]:
    reset = make_reset("random", B, T)
    assert reset is not None
    reset[:, 0] = False  # so that the state that it starts from is seen
    rows = {"reset": reset}
    ff_inputs = feedforward_inputs((B, T, 21), 35)
    return {
        "layer_norm": Case(ops.layer_norm, norm_inputs((B, T, 21)), {"num_groups": 3}),
        "rms_norm": Case(ops.rms_norm, norm_inputs((B, T, 21), with_bias=True), {}),
        "large_feedforward": Case(
            ops.gated_feedforward, apart(ff_inputs), {"norm": "rms", "activation": "silu"}
        ),
        "large_input": Case(ops.large_input, large_input_inputs(B, T, 21, 3, 5, 7), {}),
        "large_output": Case(ops.large_output, large_output_inputs(B, T, 21, 3, 7), {}),
        "conv": Case(ops.causal_conv, conv_inputs(B, T, 21), rows | {"activation": "silu"}),
        "feedforward": Case(ops.gated_feedforward, ff_inputs, {"residual": True}),
        "slstm_layer": Case(ops.slstm_layer, slstm_layer_inputs(B, T, 3, 7, empty=0.2), rows),
        "slstm_block": Case(
            ops.slstm_block, slstm_block_inputs(B, T, 3, 16, 35, empty=0.2), rows | {"eps": 1.0}
        ),
        "mlstm_block": Case(
            ops.mlstm_block, mlstm_block_inputs(B, T, 21, 48, 3), rows | {"norm_eps": 1.0}
        ),
        "mlstm_input": Case(ops.mlstm_input, mlstm_input_inputs(B, T, 21, 48, 3, 4), rows),
        "mlstm_output": Case(ops.mlstm_output, mlstm_output_inputs(B, T, 4, 12, 21), {}),
    }


CASES = make_cases()
IN_ONE = {"slstm_block", "mlstm_block"}
"""Those that others in one are made of, which they are left to."""
EACH_CASE = pytest.mark.parametrize("name", CASES)
ROUNDED = {
    "mlstm_input": {"output 7", "dx", "dup_weight"},
    "mlstm_block": {"output 1", "dx", "dup_weight"},
}
"""What torch's own products had a part in, whose rounding is their affair: the rows of the
convolution's state."""


def assert_same(name: str, actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Whether results of a case are the same to the last bit."""
    assert actual.keys() == expected.keys()
    for part, x in actual.items():
        if part in ROUNDED.get(name, ()):
            assert_close(x, expected[part], part)
        else:
            assert torch.equal(x, expected[part]), part


def outputs_of(case: Case, inputs: Inputs) -> dict[str, Tensor]:
    outputs = tensors(call(case.op, inputs, backend="native", **case.options))
    return {f"output {i}": x for i, x in enumerate(outputs)}


def check_mlstm(x: MLSTMInputs, reset: str, op: Callable[..., Any] = mlstm, **options: Any) -> None:
    mask = make_reset(reset, x.q.shape[0], x.q.shape[2])
    eps = options.get("eps", 0.0)
    expected = everything(mlstm_reference.recurrent, x, reset=mask, eps=eps)
    actual = everything(op, x.map(Tensor.float), reset=mask, backend="native", **options)
    assert_all_close(with_gates_joined(actual), with_gates_joined(expected), 1e-4)
    assert_close(actual["h"], expected["h"], "h")


def check_slstm(x: SLSTMInputs, reset: str, forget_gate: str) -> None:
    mask = make_reset(reset, x.x.shape[0], x.x.shape[1])
    options: dict[str, Any] = {"reset": mask, "forget_gate": forget_gate}
    expected = everything(slstm_reference.recurrent, x, **options)
    actual = everything(slstm, x.map(Tensor.float), backend="native", **options)
    assert_all_close(actual, expected, 1e-4)
    assert_close(actual["h"], expected["h"], "h")


@given(
    x=st.builds(
        mlstm_inputs,
        B=st.integers(1, 3),
        NH=st.integers(1, 3),
        T=st.integers(1, 80),
        DQK=st.integers(1, 40),
        DHV=st.integers(1, 40),
        with_state=st.booleans(),
        seed=st.integers(0, 999),
    ),
    reset=RESETS,
    chunk_size=st.sampled_from([None, 1, 2, 5, 16, 33, 64, 1000]),
    eps=st.sampled_from([0.0, 1e-6, 0.1]),
)
@example(x=mlstm_inputs(1, 2, 300, 64, 64), reset="random", chunk_size=256, eps=0.0)
@example(x=mlstm_inputs(1, 1, 130, 96, 96), reset="none", chunk_size=None, eps=0.0)
def test_mlstm_is_the_reference(
    x: MLSTMInputs, reset: str, chunk_size: int | None, eps: float
) -> None:
    check_mlstm(x, reset, chunk_size=chunk_size, eps=eps)


@given(
    x=st.builds(
        slstm_inputs,
        B=st.integers(1, 14),
        T=st.integers(1, 12),
        NH=st.integers(1, 3),
        DH=st.integers(1, 40),
        with_state=st.booleans(),
        with_bias=st.booleans(),
        empty=st.sampled_from([0.0, 0.5]),
        seed=st.integers(0, 999),
    ),
    reset=RESETS,
    forget_gate=st.sampled_from(["sigmoid", "exp"]),
)
@example(x=slstm_inputs(7, 20, 2, 96), reset="random", forget_gate="sigmoid")
def test_slstm_is_the_reference(x: SLSTMInputs, reset: str, forget_gate: str) -> None:
    check_slstm(x, reset, forget_gate)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "plain"])
def test_every_instruction_set(isa: str) -> None:
    """A lesser processor than the name asks for runs its best."""
    code = (
        "from test_native import *\n"
        "check_mlstm(mlstm_inputs(2, 2, 70, 33, 20), 'random', chunk_size=None)\n"
        "check_mlstm(mlstm_inputs(1, 1, 9, 64, 96), 'none', chunk_size=4, eps=0.1)\n"
        "for B in range(1, 9): check_slstm(slstm_inputs(B, 5, 2, 33), 'random', 'sigmoid')\n"
        "check_slstm(slstm_inputs(3, 5, 1, 70), 'none', 'exp')\n"
        "for case in CASES.values(): check_native(case.op, case.inputs, **case.options)\n"
        "for B in range(1, 9): check_native(ops.slstm_layer, slstm_layer_inputs(B, 20, 1, 33))\n"
        "print(torch.ops.openxlstm.lanes())"
    )
    lanes = int(run_with_isa(isa, code))
    assert lanes <= {"avx512": 16, "avx2": 8, "plain": 4}[isa]


@pytest.mark.parametrize("log_i", [-50.0, 50.0])
@pytest.mark.parametrize("f_preact", [-50.0, 50.0])
def test_extreme_gates(log_i: float, f_preact: float) -> None:
    x = mlstm_inputs(2, 2, 100, 8, 8, with_state=False).map(Tensor.float)
    gates = torch.full((2, 2, 100), log_i), torch.full((2, 2, 100), min(f_preact, 0.0))
    results = everything(mlstm, x._replace(log_i=gates[0], log_f=gates[1]), backend="native")
    assert all(part.isfinite().all() for part in results.values())
    y = slstm_inputs(2, 100, 2, 8, with_state=False).map(Tensor.float)
    y.x[:, :, :, 0], y.x[:, :, :, 1] = log_i, f_preact
    results = everything(slstm, y, backend="native")
    assert all(part.isfinite().all() for part in results.values())


def test_no_memory_is_read_as_zero() -> None:
    """exp(-m) underflows for a large m, and q = 0 reads nothing: h is 0, not 0/0."""
    x = mlstm_inputs(1, 1, 3, 4, 4, with_state=False).map(Tensor.float)
    h, _ = mlstm(
        torch.zeros_like(x.q), x.k, x.v, torch.full_like(x.log_i, 105.0), x.log_f, backend="native"
    )
    assert torch.equal(h, torch.zeros_like(h))


@pytest.mark.parametrize("op", ["mlstm", "slstm"])
def test_strided_inputs_and_step_by_step(op: str) -> None:
    if op == "mlstm":
        x = mlstm_inputs(3, 2, 17, 5, 6, with_state=False).map(Tensor.float)
        whole, final = mlstm(*x.arguments, backend="native")
        strided = (part.transpose(1, 2).contiguous().transpose(1, 2) for part in x.sequence)
        assert_close(mlstm(*strided, backend="native")[0], whole)  # pyright: ignore
        reversed_ = (part.mT.contiguous().mT if part.dim() == 4 else part for part in x.sequence)
        assert_close(mlstm(*reversed_, backend="native")[0], whole)  # pyright: ignore
        state, outputs = None, []
        for t in range(17):
            h, state = mlstm(*x.at(slice(t, t + 1)), state, backend="native")
            outputs.append(h)
        assert_close(torch.cat(outputs, 2), whole)
        assert isinstance(state, MLSTMState)
    else:
        y = slstm_inputs(3, 17, 2, 5, with_state=False).map(Tensor.float)
        whole, final = slstm(*y.arguments, backend="native")
        strided = y.x.permute(2, 0, 1, 4, 3).contiguous().permute(1, 2, 0, 4, 3)
        assert_close(slstm(strided, *y.arguments[1:], backend="native")[0], whole)
        state, outputs = None, []
        for t in range(17):
            weights = y.recurrent_weight, y.bias
            h, state = slstm(y.x[:, t : t + 1], *weights, state, backend="native")
            outputs.append(h)
        assert_close(torch.cat(outputs, 1), whole)
        assert isinstance(state, SLSTMState)
    for part, end in zip(state, final, strict=True):
        assert_close(part, end)


def test_nan_stays_in_its_sample() -> None:
    y = slstm_inputs(8, 5, 2, 5).map(Tensor.float)
    y.x[3, 2] = math.nan
    h, _ = slstm(*y.arguments, backend="native")
    assert h.isfinite().all(dim=(1, 2, 3)).tolist() == [b != 3 for b in range(8)]
    x = mlstm_inputs(4, 2, 9, 5, 6).map(Tensor.float)
    x.v[1, 0, 4] = math.nan
    h, _ = mlstm(*x.arguments, backend="native")
    assert h.isfinite().all(dim=(1, 2, 3)).tolist() == [b != 1 for b in range(4)]


def test_the_same_on_any_number_of_threads() -> None:
    threads = torch.get_num_threads()
    x, y = mlstm_inputs(3, 2, 40, 8, 8), slstm_inputs(13, 9, 3, 8)
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(
                everything(mlstm, x.map(Tensor.float), backend="native")
                | {f"s {k}": v for k, v in everything(slstm, y.map(Tensor.float)).items()}
            )
    finally:
        torch.set_num_threads(threads)
    # Gradients of weights are sums over samples: each thread has its own, added up at the end.
    exact = set(results[0]) - {"s drecurrent_weight", "s dbias"}
    assert all(torch.equal(results[0][name], results[1][name]) for name in exact)


def on_threads(count: int, case: Case) -> dict[str, Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return results(case.op, case.narrow(), backend="native", **case.options)
    finally:
        torch.set_num_threads(before)


@EACH_CASE
def test_layers_are_the_same_on_any_number_of_threads(name: str) -> None:
    """But for sums over samples, which are at least the same each time."""
    case = CASES[name]
    one, two, again = (on_threads(count, case) for count in (1, 2, 2))
    parameters = {f"d{part}" for part in case.inputs if part.partition(".")[0] not in OF_SAMPLES}
    exact = [{part: x[part] for part in x.keys() - parameters} for x in (one, two)]
    assert_same(name, *exact)
    assert_same(name, two, again)
    assert_all_close(two, one)


@EACH_CASE
def test_layers_take_any_layout(name: str, layout: Callable[[Tensor], Tensor]) -> None:
    """Of inputs, weights and the gradients that come from above."""
    op, inputs, options = CASES[name]
    check_native(op, inputs, layout=layout, **options)


@EACH_CASE
def test_layers_leave_their_inputs_alone(name: str) -> None:
    case = CASES[name]
    inputs = {part: x.requires_grad_() for part, x in case.narrow().items()}
    outputs = list(outputs_of(case, inputs).values())
    upstream = [torch.randn_like(x) for x in outputs]
    before = [[x.detach().clone() for x in each] for each in (outputs, upstream)]
    torch.autograd.grad(outputs, list(inputs.values()), upstream)
    for part, x in case.narrow().items():
        assert torch.equal(inputs[part], x), part
    assert all(map(torch.equal, outputs, before[0]))
    assert all(map(torch.equal, upstream, before[1]))


@EACH_CASE
def test_layers_keep_samples_apart(name: str) -> None:
    """What is no number in one sample stays there."""
    case = CASES[name]
    expected = outputs_of(case, case.narrow())
    for poisoned in case.inputs:
        if poisoned.partition(".")[0] in OF_SAMPLES:
            inputs = case.narrow()
            inputs[poisoned][1] = math.nan
            actual = outputs_of(case, inputs)
            assert any(x[1].isnan().any() for x in actual.values()), poisoned
            others = ({part: x[[0, 2]] for part, x in each.items()} for each in (actual, expected))
            assert_same(name, *others)


@EACH_CASE
def test_layers_need_no_gradient(name: str) -> None:
    """The same with and without, and a graph where one is wanted."""
    case = CASES[name]
    expected = outputs_of(case, case.narrow())
    assert not any(x.requires_grad for x in expected.values())
    for part in case.inputs:
        inputs = case.narrow()
        inputs[part].requires_grad_()
        actual = outputs_of(case, inputs)
        assert any(x.requires_grad for x in actual.values()), part
        assert_same(name, actual, expected)
        with torch.no_grad():
            assert not any(x.requires_grad for x in outputs_of(case, inputs).values())


@EACH_CASE
def test_gradient_of_one_input_of_a_layer(name: str) -> None:
    """Alone it is what it is among all."""
    op, _, options = case = CASES[name]
    inputs = case.narrow()
    every = results(op, inputs, only=0, backend="native", **options)
    for part, x in inputs.items():

        def of_one(x: Tensor, part: str = part) -> Any:
            return call(op, inputs | {part: x}, backend="native", **options)

        alone = results(of_one, {"x": x}, only=0)["dx"]
        assert_same(name, {f"d{part}": alone}, {f"d{part}": every[f"d{part}"]})


@EACH_CASE
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_are_left_to_torch(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    wide = state_dtype(dtype) if name in ("slstm_layer", *IN_ONE) else dtype
    inputs = {
        part: x.to(wide if part.startswith("state") else dtype) for part, x in case.inputs.items()
    }
    with pytest.raises(BackendError, match=str(dtype).removeprefix("torch.")):
        call(case.op, inputs, backend="native", **case.options)
    chosen = tensors(call(case.op, inputs, **case.options))
    other = "apart" if name in IN_ONE else "torch"
    by_other = tensors(call(case.op, inputs, backend=other, **case.options))
    assert chosen[0].dtype == dtype
    assert all(map(torch.equal, chosen, by_other))


@EACH_CASE
def test_second_derivative_of_a_layer_is_refused(name: str) -> None:
    case = CASES[name]
    inputs = {part: x.requires_grad_() for part, x in case.narrow().items()}
    outputs = outputs_of(case, inputs)
    first, *_ = inputs.values()
    (gradient,) = torch.autograd.grad(outputs["output 0"].square().sum(), first, create_graph=True)
    with pytest.raises(RuntimeError, match=r"twice|once_differentiable"):
        gradient.sum().backward()


@given(
    views=st.sampled_from(["qkvh", "q", "k", "v", "h", "kv"]),
    B=st.integers(1, 3),
    NH=st.integers(1, 3),
    T=st.integers(1, 40),
    DQK=st.integers(1, 20),
    DHV=st.integers(1, 20),
    chunk_size=st.sampled_from([None, 5, 16]),
    reset=RESETS,
)
@example(views="qkvh", B=2, NH=2, T=130, DQK=33, DHV=20, chunk_size=None, reset="random")
def test_mlstm_of_heads_that_lie_inside_a_step(
    views: str, B: int, NH: int, T: int, DQK: int, DHV: int, chunk_size: int | None, reset: str
) -> None:
    """As the projections of a layer hand them over, (B, T, NH, D) in memory; and what comes from
    above h."""

    def turned(x: Tensor, name: str) -> Tensor:
        return x.transpose(1, 2).contiguous().transpose(1, 2) if name in views else x

    def op(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> Any:
        h, state = mlstm(turned(q, "q"), turned(k, "k"), turned(v, "v"), *rest, **options)
        return turned(h, "h"), state

    check_mlstm(mlstm_inputs(B, NH, T, DQK, DHV), reset, op, chunk_size=chunk_size)


def test_gradients_lie_as_their_inputs_do() -> None:
    """Or the layer below would have to copy them."""
    x = mlstm_inputs(2, 3, 9, 5, 6, with_state=False).map(lambda part: part.float())
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (x.q, x.k, x.v))
    inputs = [part.requires_grad_() for part in (q, k, v)]
    h, _ = mlstm(*x._replace(q=q, k=k, v=v).sequence, backend="native")
    for grad in torch.autograd.grad(h.sum(), inputs):
        assert grad.transpose(1, 2).is_contiguous()


class Calls(TorchDispatchMode):
    """Keeps the calls of native operators."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "openxlstm":
            self.seen.append((func, args))
        return func(*args, **kwargs or {})


def check_operator(name: str, *arguments: Any) -> None:
    """Whether what torch was told of an operator is so: gradients, and shapes for tracing; and of
    the operator that computes its gradients."""

    def leaf(x: Any) -> Any:
        return x.float().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x

    operator, arguments = getattr(torch.ops.openxlstm, name).default, tuple(map(leaf, arguments))
    torch.library.opcheck(operator, arguments)
    outputs = operator(*arguments)
    weighed = [outputs] if isinstance(outputs, Tensor) else [x for x in outputs if x.requires_grad]
    inputs = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad]
    with Calls() as calls:
        torch.autograd.grad(weighed, inputs, [torch.randn_like(x) for x in weighed])
    ((gradient, given),) = calls.seen
    assert gradient.name() == f"openxlstm::{name}_grad"
    torch.library.opcheck(gradient, given, test_utils=("test_schema", "test_faketensor"))


def test_operators_tell_torch_the_truth() -> None:
    x = mlstm_inputs(2, 2, 9, 4, 5)
    x = x._replace(v=x.v.transpose(1, 2).contiguous().transpose(1, 2))
    reset = make_reset("random", 2, 9)
    check_operator("mlstm", *x.sequence, *(x.state or ()), reset, 0.0, 4, True)
    for with_bias in (False, True):
        y = slstm_inputs(2, 5, 2, 4, with_bias=with_bias)
        stacked, reset = torch.stack(y.state or ()), make_reset("random", 2, 5)
        check_operator("slstm", y.x, y.recurrent_weight, y.bias, stacked, reset, False, True)


@pytest.mark.parametrize("whole", [False, True])
def test_operators_of_layers_tell_torch_the_truth(whole: bool) -> None:
    """With all that may be left out, and without."""
    reset = make_reset("random", 3, 5) if whole else None
    x = norm_inputs((9, 6))
    check_operator("norm", x["x"], x["weight"], None, 3 if whole else 1, False, 1e-5)
    x = norm_inputs((9, 6), with_bias=whole)
    check_operator("norm", x["x"], x["weight"], x.get("bias"), 1, True, 1e-5)
    x = conv_inputs(3, 5, with_state=whole, with_bias=whole)
    check_operator("conv", x["x"], x["weight"], x.get("bias"), x.get("state.x"), reset, whole)
    x = feedforward_inputs((9, 5), 7, with_biases=whole, with_norm=whole)
    for y in (x, apart(x)):
        weights = [
            y.get(f"{part}_{kind}")
            for kind in ("weight", "bias")
            for part in ("up", "value", "down")
        ]
        norm = y.get("norm_weight"), y.get("norm_bias")
        options = whole, whole, y is not x, 1e-5, True
        check_operator("feedforward", y["x"], *norm, *weights, *options)
    x = large_input_inputs(3, 5, 6, 2, 3, 4, with_biases=whole)
    weights = [x[f"{name}_weight"] for name in "qkvo"]
    biases = [x.get(f"biases.{i}") for i in range(4)]
    gates = x["gate_weight"].flatten(0, 1), x["gate_bias"].flatten()
    norm = x["norm_weight"], x.get("norm_bias")
    check_operator(
        "large_input", x["x"], *norm, *weights, gates[0], *biases, gates[1], 1e-5, 15.0
    )  # fmt: skip
    x = large_output_inputs(3, 5, 6, 2, 4, with_biases=whole, with_residual=whole)
    names = "h", "o", "norm_weight", "norm_bias", "out_weight", "out_bias", "residual"
    check_operator("large_output", *(x.get(name) for name in names), 1e-5)
    x = slstm_layer_inputs(3, 5, 2, 3)
    weights = x["input_weight"], x["recurrent_weight"], x["bias"]
    stacked = torch.stack([x[f"state.{part}"] for part in SLSTMState._fields])
    check_operator("slstm_layer", x["convolved"], x["raw"], *weights, stacked, reset, whole, True)
    x = slstm_block_inputs(3, 5, 2, 8, 7, 3 if whole else 0, with_biases=whole)
    norms = x["norm_weight"], x.get("conv_weight"), x.get("conv_bias")
    others = (
        x["input_weight"],
        x["recurrent_weight"],
        x["bias"],
        x["head_norm_weight"],
        x["ff_norm_weight"],
    )
    ff = x["up_weight"], x["down_weight"], x.get("up_bias"), x.get("down_bias")
    stacked = torch.stack([x[f"state.{part}"] for part in SLSTMState._fields])
    check_operator(
        "slstm_block", x["x"], *norms, *others, *ff, x.get("before.x"), stacked, reset, whole,
        1e-5, 2, 2, True,
    )  # fmt: skip
    x = mlstm_input_inputs(3, 5, 6, 16, 2, 3 if whole else 0)
    names = ("up_weight", "q_weight", "k_weight", "v_weight")
    weights = (
        *(x[name] for name in names),
        x["gate_weight"].flatten(0, 1),
        x["gate_bias"].flatten(),
    )
    conv = (x.get("conv_weight"), x.get("conv_bias"), x.get("state.x"))
    check_operator("mlstm_input", x["x"], *weights, *conv, reset)
    y = mlstm_block_inputs(3, 5, 6, 16, 2)
    state = [y[f"state.{part}"] for part in MLSTMState._fields]
    output = y["norm_weight"], y["skip"], y["down_weight"]
    check_operator("mlstm_block", x["x"], *weights, *conv, reset, *state, *output, 1e-5, 4, True)
    check_operator("mlstm_output", *mlstm_output_inputs(3, 5, 2, 8, 6).values(), 1e-5)


def test_float64_is_left_to_another() -> None:
    assert native.refuses(Request("cpu", torch.float64)) is not None
    assert native.refuses(Request("cuda", torch.float32)) is not None
    assert native.refuses(Request("cpu", torch.bfloat16)) is None
    for op in set(TABLE) - {"mlstm", "slstm"}:
        refuses = TABLE[op][0].refuses
        assert "not on cuda" in str(refuses(Request("cuda", torch.float32)))
        assert "bfloat16" in str(refuses(Request("cpu", torch.bfloat16)))
        assert refuses(Request("cpu", torch.float32)) is None
    x = mlstm_inputs()
    with pytest.raises(BackendError, match="float64"):
        mlstm(*x.arguments, backend="native")


def test_a_model_runs_on_it() -> None:
    """The same logits and gradients as with plain PyTorch, through every layer."""
    model = LanguageModel(ModelConfig(vocab_size=11, embedding_dim=32, layers="ms", num_heads=2))
    ids = torch.randint(11, (3, 21))
    reset = torch.rand(3, 21) < 0.1
    results = []
    for each in (model, copy.deepcopy(model).double()):
        logits, _ = each(ids, reset=reset)
        grads = torch.autograd.grad(logits.logsumexp(-1).sum(), list(each.parameters()))
        results.append([logits, *grads])
    for ours, truth in zip(*results, strict=True):
        assert_close(ours, truth, tolerance=1e-3 if ours.dim() < 3 else 2e-5)
