"""The native backend, in float32, against the reference in float64; every instruction set."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from op_cases import (
    MLSTMInputs,
    SLSTMInputs,
    assert_all_close,
    everything,
    make_reset,
    mlstm_inputs,
    slstm_inputs,
    with_gates_joined,
)
from tolerances import assert_close
from torch import Tensor

from openxlstm import LanguageModel, ModelConfig
from openxlstm.ops import mlstm, native, slstm
from openxlstm.ops.dispatch import BackendError, Request
from openxlstm.reference import mlstm as mlstm_reference
from openxlstm.reference import slstm as slstm_reference
from openxlstm.states import MLSTMState, SLSTMState

pytestmark = pytest.mark.skipif(
    native.missing() is not None, reason=f"no native backend: {native.missing()}"
)
RESETS = st.sampled_from(["none", "first", "last", "adjacent", "random"])


def check_mlstm(x: MLSTMInputs, reset: str, **options: Any) -> None:
    mask = make_reset(reset, x.q.shape[0], x.q.shape[2])
    eps = options.get("eps", 0.0)
    expected = everything(mlstm_reference.recurrent, x, reset=mask, eps=eps)
    actual = everything(mlstm, x.map(Tensor.float), reset=mask, backend="native", **options)
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
    """The choice is made once in a process, so each has one of its own; a lesser processor than
    the name asks for runs its best."""
    code = (
        "import sys; sys.path.insert(0, 'tests'); sys.path.insert(0, 'tests/ops')\n"
        "from test_native import *\n"
        "check_mlstm(mlstm_inputs(2, 2, 70, 33, 20), 'random', chunk_size=None)\n"
        "check_mlstm(mlstm_inputs(1, 1, 9, 64, 96), 'none', chunk_size=4, eps=0.1)\n"
        "for B in range(1, 9): check_slstm(slstm_inputs(B, 5, 2, 33), 'random', 'sigmoid')\n"
        "check_slstm(slstm_inputs(3, 5, 1, 70), 'none', 'exp')\n"
        "print(torch.ops.openxlstm.lanes())"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"OPENXLSTM_ISA": isa}, cwd=root,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= {"avx512": 16, "avx2": 8, "plain": 4}[isa]


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


def test_operators_tell_torch_the_truth() -> None:
    x = mlstm_inputs(2, 2, 9, 4, 5).map(lambda part: part.float().requires_grad_())
    reset = make_reset("random", 2, 9)
    arguments = (*x.sequence, *(x.state or ()), reset, 0.0, 4, True)
    torch.library.opcheck(torch.ops.openxlstm.mlstm.default, arguments)
    for with_bias in (False, True):
        y = slstm_inputs(2, 5, 2, 4, with_bias=with_bias)
        y = y.map(lambda part: part.float().requires_grad_())
        stacked = torch.stack(y.state or ()).detach().requires_grad_()
        reset = make_reset("random", 2, 5)
        arguments = (y.x, y.recurrent_weight, y.bias, stacked, reset, False, True)
        torch.library.opcheck(torch.ops.openxlstm.slstm.default, arguments)


def test_float64_is_left_to_another() -> None:
    assert native.refuses(Request("cpu", torch.float64)) is not None
    assert native.refuses(Request("cuda", torch.float32)) is not None
    assert native.refuses(Request("cpu", torch.bfloat16)) is None
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
