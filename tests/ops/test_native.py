"""The native backend: every instruction set, any number of threads, and what torch is told."""

import copy
from typing import Any

import pytest
import torch
from op_cases import OPS, Inputs, assert_all_close, everything, needs_native, run_with_isa
from tolerances import assert_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from openxlstm import LanguageModel, ModelConfig
from openxlstm.ops import TABLE
from openxlstm.ops.dispatch import CallContext, Request
from openxlstm.ops.native import backend as native

pytestmark = needs_native
each_op = pytest.mark.parametrize("name", OPS)


def check_native(name: str, B: int = 3, T: int = 70, **sizes: Any) -> None:
    """Outputs and gradients, against the truth."""
    op, (inputs, options) = OPS[name], OPS[name].example(B, T, **sizes)
    expected = everything(lambda x: op.outputs(x, op.truth, **options), inputs)
    actual = everything(
        lambda x: op.outputs(x, backend="native", **options), op.cast(inputs, torch.float32)
    )
    assert_all_close(actual, expected, who=name, joined=op.joined, gradients=1e-4)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "plain"])
def test_every_instruction_set(isa: str) -> None:
    """A lesser processor than the name asks for runs its best."""
    code = (
        "from test_native import *\n"
        "for name in OPS: check_native(name)\n"
        "check_native('mlstm', 2, 70, DQK=33, DHV=20)\n"
        "check_native('mlstm', 1, 130, DQK=64, DHV=96)\n"
        "for B in range(1, 9): check_native('slstm', B, 5, DH=33)\n"
        "for B in range(1, 9): check_native('slstm_layer', B, 20, NH=1, DH=33)\n"
        "print(torch.ops.openxlstm.lanes())"
    )
    lanes = int(run_with_isa(isa, code))
    assert lanes <= {"avx512": 16, "avx2": 8, "plain": 4}[isa]


@pytest.mark.parametrize(
    ("name", "B", "T", "sizes"),
    [
        ("mlstm", 1, 300, {"DQK": 64, "DHV": 64}),
        ("slstm", 7, 20, {"DH": 96}),
        ("layer_norm", 5, 13, {"width": 100}),
        ("rms_norm", 5, 13, {"D": 300}),
        ("causal_conv", 12, 1, {"K": 8}),
        ("gated_feedforward", 1, 250, {"D": 300, "inner": 10}),
        ("mlstm_input", 2, 65, {"D": 300}),
        ("mlstm_output", 1, 250, {"heads": (4, 20)}),
        ("mlstm_block", 3, 130, {"heads": (64, 1)}),
        ("slstm_layer", 13, 17, {"NH": 1, "DH": 96}),
        ("slstm_layer", 1, 20, {"NH": 1, "DH": 200}),
        ("slstm_block", 13, 40, {"NH": 2}),
        ("large_input", 2, 130, {"D": 128, "heads": (4, 16, 32)}),
        ("large_output", 1, 250, {"D": 300, "heads": (4, 32)}),
    ],
)
def test_larger_sizes(name: str, B: int, T: int, sizes: dict[str, int]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        check_native(name, B, T, **sizes)
    finally:
        torch.set_num_threads(before)


def on_threads(count: int, name: str) -> Inputs:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        op, (inputs, options) = OPS[name], OPS[name].example()
        compute = lambda x: op.outputs(x, backend="native", **options)  # noqa: E731
        return everything(compute, op.cast(inputs, torch.float32))
    finally:
        torch.set_num_threads(before)


@each_op
def test_the_same_on_any_number_of_threads(name: str) -> None:
    """But for sums over samples, which are at least the same each time; and but for the rows of the
    mLSTM's convolution, which PyTorch's own products make."""
    op, (one, two, again) = OPS[name], (on_threads(count, name) for count in (1, 2, 2))
    by_torch = {"out 1.x", "out 1.conv.x", "d x", "d weights.up", "d weights.input.up"}
    by_torch = by_torch if name.startswith("mlstm_") else set()
    for key, x in two.items():
        if key in by_torch:
            continue
        assert torch.equal(x, again[key]), key
        if key.startswith("out ") or op.of_samples(key.removeprefix("d ")):
            assert torch.equal(x, one[key]), key
    assert_all_close(two, one)


class Calls(TorchDispatchMode):
    """Keeps the calls of native operators."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "openxlstm":
            self.seen.append((func, args))
        return func(*args, **kwargs or {})


LEFT_OUT = {
    "mlstm": {"with_state": False},
    "slstm": {"with_state": False, "with_bias": False},
    "causal_conv": {"with_state": False, "with_bias": False},
    "rms_norm": {"with_bias": False},
    "gated_feedforward": {"with_norm": False, "without_bias": "up value down", "two": True},
    "mlstm_input": {"K": 0},
    "mlstm_block": {"K": 0, "with_state": False},
    "slstm_layer": {"with_state": False},
    "slstm_block": {"K": 0, "with_state": False, "with_biases": False},
    "large_input": {"with_biases": False},
    "large_output": {"without_part": "norm_bias down_bias residual"},
}
"""Sizes that leave everything out that may be."""


@each_op
@pytest.mark.parametrize("whole", [True, False])
def test_operators_tell_torch_the_truth(name: str, whole: bool) -> None:
    """Gradients, and shapes for tracing; and so does the operator that computes the gradients."""
    op = OPS[name]
    inputs, options = op.example(3, 5, **{} if whole else LEFT_OUT.get(name, {}))
    if op.recurrent and not whole:
        options["reset"] = None
    leaves = {n: x.requires_grad_() for n, x in op.cast(inputs, torch.float32).items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with Calls() as forward:
        outputs = list(op.outputs(leaves, backend="native", **options).values())
    torch.set_num_threads(threads)
    operator, arguments = next(call for call in forward.seen if "_grad" not in call[0].name())
    arguments = tuple(
        x.detach().clone().requires_grad_()
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
        for x in arguments
    )
    torch.library.opcheck(operator, arguments)
    weighed = [x for x in outputs if x.requires_grad]
    with Calls() as backward:
        torch.autograd.grad(
            weighed, list(leaves.values()), [torch.randn_like(x) for x in weighed],
            allow_unused=True,
        )  # fmt: skip
    gradient, given = backward.seen[0]
    assert gradient.name() == f"{operator.name()}_grad"
    torch.library.opcheck(gradient, given, test_utils=("test_schema", "test_faketensor"))


def test_python_and_cpp_name_arguments_alike() -> None:
    """An extension of another version is refused when its operators are registered."""
    names = native.arguments_of("conv")._fields
    order = (*names[1:], names[0])
    with pytest.raises(AssertionError, match="build the extension anew"):
        native.register("conv", order, fake=print, backward=lambda *_: {}, grad_fake=list)


def test_what_it_refuses() -> None:
    def request(device: str, dtype: torch.dtype) -> Request:
        return Request(device, dtype, None, CallContext.PLAIN)

    for op, backends in TABLE.items():
        refuses = backends[0].refuses
        assert "not on cuda" in str(refuses(request("cuda", torch.float32)))
        assert "float64" in str(refuses(request("cpu", torch.float64)))
        assert refuses(request("cpu", torch.float32)) is None
        reason = refuses(request("cpu", torch.bfloat16))
        assert reason is None if op in ("mlstm", "slstm") else "bfloat16" in str(reason)


def test_a_model_runs_on_it() -> None:
    """The same logits and gradients as with plain PyTorch, through every layer."""
    model = LanguageModel(ModelConfig(vocab_size=11, embedding_dim=32, layers="ms", num_heads=2))
    ids, reset, results = torch.randint(11, (3, 21)), torch.rand(3, 21) < 0.1, []
    for each in (model, copy.deepcopy(model).double()):
        logits, _ = each(ids, reset=reset)
        grads = torch.autograd.grad(logits.logsumexp(-1).sum(), list(each.parameters()))
        results.append([logits, *grads])
    for ours, truth in zip(*results, strict=True):
        assert_close(ours, truth, tolerance=1e-3 if ours.dim() < 3 else 2e-5)
