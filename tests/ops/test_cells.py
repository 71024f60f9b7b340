"""mLSTM and sLSTM, every backend: extreme gates, empty memory, graphs and memory, cases by hand."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from op_cases import OPS, RESETS, Inputs, assert_all_close, everything, make_reset, needs_native
from tolerances import assert_close
from torch import Tensor

from openxlstm.ops import TABLE, mlstm, slstm
from openxlstm.states import SLSTMState

each_backend = pytest.mark.parametrize("backend", ["native", "torch", "reference"])
each_cell = pytest.mark.parametrize("name", ["mlstm", "slstm"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def skip_unless_it_runs(name: str, backend: str, dtype: torch.dtype) -> None:
    if backend == "native" and dtype == torch.float64:
        pytest.skip("it computes in float32")


@each_backend
@each_dtype
def test_mlstm_with_extreme_gates(backend: str, dtype: torch.dtype) -> None:
    """Input and forget gates of ±50 in every mixture, over 100 steps; and forget gates above 1."""
    skip_unless_it_runs("mlstm", backend, dtype)
    op, ones = OPS["mlstm"], torch.ones(2, 2, 100, dtype=torch.float64)
    mixed = [torch.randn(2, 2, 100).double().sign() for _ in range(2)]
    signs = [(ones, ones), (ones, -ones), (-ones, ones), (-ones, -ones), (mixed[0], mixed[1])]
    for i, f in signs:
        inputs = op.make(T=100) | {"log_i": 50 * i, "log_f": F.logsigmoid(50 * f)}
        actual = everything(lambda x: op.outputs(x, backend=backend), op.cast(inputs, dtype))
        assert all(x.isfinite().all() for x in actual.values())
        expected = op.outputs(inputs, op.truth)["0"]
        tolerance = 1e-9 if dtype == torch.float64 else 1e-4  # sums of log_f reach 5000
        assert_close(actual["out 0"], expected, tolerance=tolerance)
    inputs = op.make(T=100, with_state=False) | {"log_i": 50 * ones, "log_f": 50 * ones}
    actual = everything(lambda x: op.outputs(x, backend=backend), op.cast(inputs, dtype))
    assert all(x.isfinite().all() for x in actual.values())


@each_backend
@each_dtype
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_slstm_with_extreme_gates(backend: str, dtype: torch.dtype, forget_gate: str) -> None:
    """Pre-activations of ±50 in every mixture, over 100 steps."""
    skip_unless_it_runs("slstm", backend, dtype)
    op, sign = OPS["slstm"], torch.randn(2, 100, 2, 4, 3).sign()
    ones = torch.ones_like(sign)
    ones[:, :, :, 2] = sign[:, :, :, 2]
    low_input, low_forget = ones.clone(), ones.clone()
    low_input[:, :, :, 0], low_forget[:, :, :, 1] = -1, -1
    inputs, options = op.make(T=100), {"forget_gate": forget_gate, "backend": backend}
    inputs["state.c"] = inputs["state.n"] * inputs["state.c"].tanh()  # a mean of z, as a memory is
    for signs in (sign, ones, low_input, low_forget):
        inputs["x"] = 50 * signs.double()
        actual = everything(lambda x: op.outputs(x, None, **options), op.cast(inputs, dtype))
        assert all(x.isfinite().all() for x in actual.values())
        assert actual["out 0"].abs().max() <= 1  # o·c/n
        assert_close(actual["out 0"], op.outputs(inputs, op.truth, forget_gate=forget_gate)["0"])


@each_backend
def test_gates_are_in_the_order_i_f_z_o(backend: str) -> None:
    """i = 2, f = 3, z = 1/2, o = 1/4 on c = 1, n = 2: c = 3 + 1, n = 6 + 2."""
    x = torch.tensor([math.log(2), math.log(3), math.atanh(0.5), -math.log(3)]).view(1, 1, 1, 4, 1)
    one = torch.ones(1, 1, 1)
    h, final = slstm(
        x, torch.zeros(1, 4, 1, 1), None, SLSTMState(one, one, 2 * one, 0 * one),
        forget_gate="exp", backend=backend,
    )  # fmt: skip
    assert h.item() == pytest.approx(0.25 * 4 / 8)
    assert (final.c * final.m.exp()).item() == pytest.approx(4)
    assert (final.n * final.m.exp()).item() == pytest.approx(8)


@each_backend
def test_q_is_scaled_by_its_own_width(backend: str) -> None:
    """Not k, and not by the width of v: states of all backends and checkpoints depend on it."""
    inputs = {n: x.float() for n, x in OPS["mlstm"].make(T=1, DQK=4, with_state=False).items()}
    q, k, v, log_i, _ = inputs.values()
    h, state = mlstm(q, k, v, 0 * log_i, 0 * log_i, backend=backend)
    assert_close(state.n, k[:, :, 0])
    score = (q * k).sum(-1, keepdim=True) / math.sqrt(4)
    assert_close(h, score * v / score.abs().clamp(min=1))


@each_backend
def test_no_memory_is_read_as_zero(backend: str) -> None:
    """exp(-m) underflows for a large m, and q = 0 reads nothing: h is 0, not 0/0."""
    inputs = {n: x.float() for n, x in OPS["mlstm"].make(1, 3, with_state=False).items()}
    q, k, v, log_i, log_f = inputs.values()
    h, _ = mlstm(0 * q, k, v, torch.full_like(log_i, 105.0), log_f, backend=backend)
    assert torch.equal(h, torch.zeros_like(h))


@each_backend
def test_empty_and_used_states_in_one_batch(backend: str) -> None:
    """Whether a memory is empty is asked unit by unit."""
    op = OPS["slstm"]
    inputs = op.cast(op.make(B=2), torch.float32)
    inputs["x"] -= 4.0  # low input gates, so that a floor of m = 0 would show
    for way in filter(op.of_samples, inputs):
        if way != "x":
            inputs[way][0] = 0.0
    both = op.outputs(inputs, backend=backend)
    new = {way: x[:1] if way == "x" else x for way, x in inputs.items()}
    new = op.outputs({n: x for n, x in new.items() if not n.startswith("state")}, backend=backend)
    assert_all_close({key: x[:1] for key, x in both.items()}, new)


@each_backend
def test_gates_may_be_wider_than_the_rest(backend: str) -> None:
    """log_f near 0 counts: exp of its sum over many steps."""
    inputs = OPS["mlstm"].make(T=64, with_state=False)
    q, k, v = (inputs[name].bfloat16() for name in "qkv")
    log_i, log_f = inputs["log_i"].float(), torch.full((2, 2, 64), -1e-3)
    h, state = mlstm(q, k, v, log_i, log_f, backend=backend)
    assert h.dtype == torch.bfloat16
    _, truth = OPS["mlstm"].truth(
        q=q.double(), k=k.double(), v=v.double(), log_i=log_i.double(), log_f=log_f.double()
    )
    assert_close(state.C, truth.C)


@each_cell
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_the_graph_does_not_grow_and_memory_grows_with_T(name: str, backend: str) -> None:
    """One node for the scan, not some for each step; and nothing of T × T is saved."""
    op = OPS[name]

    def graph(T: int) -> tuple[int, int]:
        """Nodes of the graph, and bytes that it saves."""
        saved: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            saved[x.data_ptr()] = max(saved.get(x.data_ptr(), 0), x.nbytes)
            return x

        inputs = op.cast(op.make(2, T, 2, 16), torch.float32)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            h = op.outputs({n: x.requires_grad_() for n, x in inputs.items()}, backend=backend)["0"]
        seen, pending = set(), [h.grad_fn]
        while pending:
            node = pending.pop()
            if node is not None and node not in seen:
                seen.add(node)
                pending.extend(following for following, _ in node.next_functions)
        return len(seen), sum(saved.values())

    (few_nodes, few_bytes), (nodes, bytes_) = graph(256), graph(1024)
    assert few_nodes == nodes <= 20
    assert 3.4 < bytes_ / few_bytes < 4.6


@needs_native
@given(
    views=st.sampled_from(["qkvh", "q", "k", "v", "h", "kv"]),
    B=st.integers(1, 3),
    T=st.integers(1, 40),
    sizes=st.fixed_dictionaries(
        {"NH": st.integers(1, 3), "DQK": st.integers(1, 20), "DHV": st.integers(1, 20)}
    ),
    chunk_size=st.sampled_from([None, 5, 16]),
    reset=RESETS,
)
@example("qkvh", 2, 130, {"NH": 2, "DQK": 33, "DHV": 20}, None, "random")
def test_heads_that_lie_inside_a_step(
    views: str, B: int, T: int, sizes: dict[str, int], chunk_size: int | None, reset: str
) -> None:
    """(B, T, NH, D) in memory, as the projections of a layer pass them; and the gradient of h. The
    gradients of q, k and v lie in the same way."""
    op, options = OPS["mlstm"], {"reset": make_reset(reset, B, T), "chunk_size": chunk_size}

    def turned(x: Tensor, name: str) -> Tensor:
        return x.transpose(1, 2).contiguous().transpose(1, 2) if name in views else x

    def compute(inputs: Inputs) -> Inputs:
        laid_out = {n: turned(x, n) if n in "qkv" else x for n, x in inputs.items()}
        outputs = op.outputs(laid_out, backend="native", **options)
        return outputs | {"0": turned(outputs["0"], "h")}

    inputs = op.make(B, T, **sizes)
    expected = everything(lambda x: op.outputs(x, op.truth, **options), inputs)
    actual = everything(compute, op.cast(inputs, torch.float32))
    assert_all_close(actual, expected, joined=op.joined, gradients=1e-4)
    q, k, v, log_i, log_f, *_ = op.cast(inputs, torch.float32).values()
    q, k, v = (turned(x, n).detach().requires_grad_() for x, n in ((q, "q"), (k, "k"), (v, "v")))
    h, _ = mlstm(q, k, v, log_i, log_f, backend="native")
    for name, grad in zip("qkv", torch.autograd.grad(h.sum(), [q, k, v]), strict=True):
        assert name not in views or grad.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("backend", [b.name for b in TABLE["slstm_layer"]])
def test_one_input_for_all_gates(backend: str) -> None:
    """Its gradient is the sum of both, and the weights see it in both places."""
    op, (inputs, options) = OPS["slstm_layer"], OPS["slstm_layer"].example()
    inputs["convolved"] = inputs["raw"]
    both = everything(lambda x: op.outputs(x, op.truth, **options), inputs)
    both["d raw"] = both["d raw"] + both.pop("d convolved")
    del inputs["convolved"]

    def same_input(x: Inputs) -> Inputs:
        return op.outputs(x | {"convolved": x["raw"]}, backend=backend, **options)

    actual: Any = everything(same_input, op.cast(inputs, torch.float32))
    assert_all_close(actual, {key: both[key] for key in actual}, gradients=1e-4)
