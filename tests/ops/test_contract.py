"""What every op promises, with each of its backends: one test per promise, for all ops.

A backend that computes in float64 is held to float64, and every backend to float32.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import OPS, Inputs, Layout, Op, assert_all_close, everything, needs_native
from torch import Tensor

from openxlstm.ops import TABLE, state_dtype
from openxlstm.ops.dispatch import BackendError

BACKENDS = {
    op: [backend.name for backend in backends if backend.name != "scan"]
    for op, backends in TABLE.items()
}
"""Backends that run outside of `torch.export`."""
FUSED = {op for op, names in BACKENDS.items() if "unfused" in names}
RECURRENT = [name for name, op in OPS.items() if op.recurrent]

each_op = pytest.mark.parametrize("name", OPS)
each_backend = pytest.mark.parametrize(
    ("name", "backend"), [(op, backend) for op in OPS for backend in BACKENDS[op]]
)
each_recurrent_backend = pytest.mark.parametrize(
    ("name", "backend"), [(op, backend) for op in RECURRENT for backend in BACKENDS[op]]
)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """With more threads the fused blocks leave few samples to the unfused ops."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def dtypes_of(backend: str) -> Sequence[torch.dtype]:
    """The dtypes that a backend computes in, of those tested here."""
    return [torch.float32] if backend == "native" else [torch.float64, torch.float32]


def check(
    op: Op, compute: Callable[[Inputs], Inputs], inputs: Inputs, expected: Inputs,
    dtype: torch.dtype, who: str, **options: Any,
) -> None:  # fmt: skip
    """Whether all results for inputs in a dtype are near those expected."""
    actual = everything(compute, op.cast(inputs, dtype), **options)
    assert {x.dtype for x in actual.values()} == {dtype}, who
    narrow = dtype == torch.float32
    joined = op.joined if narrow else ()
    assert_all_close(actual, expected, who=who, joined=joined, gradients=1e-4 if narrow else None)


def test_every_op_is_here() -> None:
    assert OPS.keys() == TABLE.keys()


@each_op
def test_outputs_and_gradients_are_the_truth(name: str) -> None:
    """For any sizes, with anything left out, with each kind of reset, from any state."""
    op, ran = OPS[name], Counter()

    @settings(max_examples=40)
    @given(op.draw())
    def of(example: tuple[Inputs, dict[str, Any]]) -> None:
        inputs, options = example
        expected = everything(lambda x: op.outputs(x, op.truth, **options), inputs)
        for backend in BACKENDS[name]:
            chunk = {"chunk_size": options["chunk_size"] or 64} if "chunk_size" in options else {}
            given = options | (chunk if backend == "reference" else {}) | {"backend": backend}
            for dtype in dtypes_of(backend):
                try:
                    check(
                        op, lambda x, o=given: op.outputs(x, None, **o), inputs,
                        expected, dtype, f"{name} by {backend} in {dtype}",
                    )  # fmt: skip
                    ran[backend] += 1
                except BackendError:
                    assert backend == "native"

    of()
    assert all(ran[backend] >= 10 for backend in BACKENDS[name]), ran


@each_backend
def test_of_several_tiles(name: str, backend: str) -> None:
    """Sizes that take a kernel more than one round; every output alone, and every input alone.

    A gradient that is missing counts as 0, and an input that needs none changes no other.
    """
    op, (inputs, options) = OPS[name], OPS[name].example()
    compute = lambda x: op.outputs(x, backend=backend, **options)  # noqa: E731
    truth = lambda x: op.outputs(x, op.truth, **options)  # noqa: E731
    dtype = dtypes_of(backend)[0]
    whole = everything(truth, inputs)
    check(op, compute, inputs, whole, dtype, name)
    outputs = [key.removeprefix("out ") for key in whole if key.startswith("out ")]
    for only in outputs:
        expected = everything(truth, inputs, only=only)
        check(op, compute, inputs, expected, dtype, f"{name}, {only} alone", only=only)
    narrow = op.cast(inputs, dtype)
    for way, x in narrow.items():
        alone = everything(lambda x, way=way: compute(narrow | {way: x[way]}), {way: x})
        every = everything(compute, narrow)
        assert torch.allclose(alone[f"d {way}"], every[f"d {way}"], rtol=1e-4, atol=1e-5), way


@each_backend
def test_strided_inputs(name: str, backend: str, layout: Layout) -> None:
    """Of inputs, weights, states and of the gradients that come from above."""
    op, (inputs, options) = OPS[name], OPS[name].example()
    compute = lambda x: op.outputs(x, backend=backend, **options)  # noqa: E731
    inputs = op.cast(inputs, dtypes_of(backend)[0])
    expected = everything(compute, inputs)
    assert_all_close(everything(compute, inputs, layout=layout), expected, gradients=1e-5)


@each_backend
def test_expanded_inputs(name: str, backend: str) -> None:
    """One input for all samples, one weight for all heads: strides of 0."""
    op, (inputs, options) = OPS[name], OPS[name].example()
    inputs = op.cast(inputs, dtypes_of(backend)[0])
    expanded = {way: x[:1].expand_as(x) for way, x in inputs.items()}
    dense = {way: x.contiguous() for way, x in expanded.items()}
    actual, expected = (op.outputs(x, backend=backend, **options) for x in (expanded, dense))
    assert_all_close(actual, expected)


@each_backend
@pytest.mark.parametrize("T", [1, 70])
@pytest.mark.parametrize("with_grad", [False, True])
def test_nothing_given_is_changed_or_shared(
    name: str, backend: str, T: int, with_grad: bool
) -> None:
    """Inputs, resets, gradients from above and saved outputs stay as they are. A state owns its
    memory: neither a part of a longer sequence's, nor that of an input."""
    op, (inputs, options) = OPS[name], OPS[name].example(9 if T == 1 else 3, T)
    inputs = op.cast(inputs, dtypes_of(backend)[0])
    given = {way: x.clone().requires_grad_(with_grad) for way, x in inputs.items()}
    reset = options.get("reset")
    reset_before = None if reset is None else reset.clone()
    with torch.set_grad_enabled(with_grad):
        outputs = op.outputs(given, backend=backend, **options)
        parts = list(outputs.values())
        before = [x.detach().clone() for x in parts]
        if with_grad:
            upstream = [torch.randn_like(x) for x in parts]
            upstream_before = [x.clone() for x in upstream]
            used = [(x, d) for x, d in zip(parts, upstream, strict=True) if x.requires_grad]
            torch.autograd.grad(
                [x for x, _ in used], list(given.values()), [d for _, d in used], allow_unused=True
            )
            assert all(map(torch.equal, upstream, upstream_before))
    assert all(map(torch.equal, parts, before))
    for way, x in inputs.items():
        assert torch.equal(given[way], x), way
    assert reset is reset_before is None or torch.equal(reset, reset_before)  # pyright: ignore
    state = [x for x in op.final(outputs).values() if x.numel()]
    others = [*given.values(), *(x for key, x in outputs.items() if key not in op.final(outputs))]
    places = [x.untyped_storage().data_ptr() for x in state]
    assert not set(places) & {x.untyped_storage().data_ptr() for x in others}
    memory = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in state}
    assert sum(memory.values()) <= 2 * sum(x.nbytes for x in state)


@each_backend
def test_no_graph_where_none_is_wanted(name: str, backend: str) -> None:
    """The same results with and without one."""
    op, (inputs, options) = OPS[name], OPS[name].example()
    inputs = op.cast(inputs, dtypes_of(backend)[0])
    expected = op.outputs(inputs, backend=backend, **options)
    assert not any(x.requires_grad for x in expected.values())
    leaves = {way: x.clone().requires_grad_() for way, x in inputs.items()}
    with torch.no_grad():
        actual = op.outputs(leaves, backend=backend, **options)
    assert not any(x.requires_grad for x in actual.values())
    assert_all_close(actual, expected)
    actual = op.outputs(leaves, backend=backend, **options)
    assert any(x.requires_grad for x in actual.values())
    assert_all_close(actual, expected)


@each_backend
def test_second_derivative_is_refused_or_right(name: str, backend: str) -> None:
    op, (inputs, options) = OPS[name], OPS[name].example(2, 9)
    dtype = dtypes_of(backend)[0]

    def of(function: Callable[..., Any], inputs: Inputs, **more: Any) -> Inputs:
        leaves = {way: x.clone().requires_grad_() for way, x in inputs.items()}
        y = next(iter(op.outputs(leaves, function, **options, **more).values()))
        first = torch.autograd.grad(
            y.square().sum(), list(leaves.values()), create_graph=True, allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip
        sum(x.square().sum() for x in first).backward()  # pyright: ignore
        return {way: torch.zeros_like(x) if x.grad is None else x.grad for way, x in leaves.items()}

    try:
        actual = of(op.function, op.cast(inputs, dtype), backend=backend)
    except RuntimeError as error:
        assert "twice" in str(error) or "once_differentiable" in str(error)  # noqa: PT017
    else:
        assert backend != "native"
        assert_all_close(actual, of(op.truth, inputs))


# ---- Time and samples --------------------------------------------------------------------------


@each_op
def test_split_anywhere_is_the_whole(name: str) -> None:
    """In all gradients as well, which pass through the states between the calls."""
    op = OPS[name]

    @settings(max_examples=12)
    @given(cuts=st.sets(st.integers(1, 19)), with_reset=st.booleans())
    def of(cuts: set[int], with_reset: bool) -> None:
        inputs, options = op.example(9, 20)
        if op.recurrent and not with_reset:
            options["reset"] = None
        whole = everything(lambda x: op.outputs(x, op.truth, **options), inputs)
        for backend in BACKENDS[name]:
            check(
                op, lambda x, b=backend: op.in_pieces(x, sorted(cuts), backend=b, **options),
                inputs, whole, dtypes_of(backend)[0], f"{name} by {backend}",
            )  # fmt: skip

    of()
    check_steps(op, name)


def check_steps(op: Op, name: str) -> None:
    """Step by step, without a graph."""
    inputs, options = op.example(9, 12)
    expected = op.outputs(inputs, op.truth, **options)
    for backend in BACKENDS[name]:
        dtype = dtypes_of(backend)[0]
        with torch.no_grad():
            actual = op.in_pieces(op.cast(inputs, dtype), range(1, 12), backend=backend, **options)
        assert_all_close(actual, expected, gradients=1e-4 if dtype == torch.float32 else None)


@each_backend
def test_samples_and_steps_that_are_not_seen(name: str, backend: str) -> None:
    """What is no number in one sample stays there, and what comes later is not seen before."""
    op, (inputs, options) = OPS[name], OPS[name].example()
    inputs = op.cast(inputs, dtypes_of(backend)[0])
    expected = op.outputs(inputs, backend=backend, **options)
    for way in filter(op.of_samples, inputs):
        poisoned = inputs | {way: inputs[way].clone()}
        poisoned[way][1] = math.nan
        actual = op.outputs(poisoned, backend=backend, **options)
        assert any(x[1].isnan().any() for x in actual.values()), way
        others = ({key: x[[0, 2]] for key, x in each.items()} for each in (actual, expected))
        assert_all_close(*others, who=way, tolerance=1e-6)
    for way in op.over_time:
        later = inputs | {way: inputs[way].clone()}
        axis = op.axis(way)
        later[way].narrow(axis, 41, 29).mul_(3).sub_(0.5)
        actual = op.outputs(later, backend=backend, **options)
        final, early = op.final(expected), ({}, {})
        for kept, each in zip(early, (actual, expected), strict=True):
            kept |= {n: x.narrow(op.axis(n), 0, 41) for n, x in each.items() if n not in final}
        assert_all_close(*early, who=way, tolerance=1e-6)
        assert any(not torch.equal(actual[n], expected[n]) for n in expected), way


@each_op
def test_samples_in_any_order(name: str) -> None:
    """Some samples, in any order and as often as one likes, give what they give among others."""
    op = OPS[name]

    @settings(max_examples=8)
    @given(st.lists(st.integers(0, 4), min_size=1, max_size=9))
    def of(samples: list[int]) -> None:
        inputs, options = op.example(5, 12)
        picked = {way: x[samples] if op.of_samples(way) else x for way, x in inputs.items()}
        for backend in BACKENDS[name]:
            dtype = dtypes_of(backend)[0]
            expected = op.outputs(op.cast(inputs, dtype), backend=backend, **options)
            expected = {key: x[samples] for key, x in expected.items()}
            given = options | ({"reset": options["reset"][samples]} if op.recurrent else {})
            actual = op.outputs(op.cast(picked, dtype), backend=backend, **given)
            assert_all_close(actual, expected, who=backend)

    of()


@each_recurrent_backend
def test_nothing_passes_a_reset(name: str, backend: str) -> None:
    """Neither a number nor a gradient."""
    op, (inputs, options) = OPS[name], OPS[name].example(2, 70)
    inputs = op.cast(inputs, dtypes_of(backend)[0])
    at = 42
    reset = torch.zeros(2, 70, dtype=torch.bool)
    reset[:, at] = True
    options |= {"reset": reset, "backend": backend}

    def late(inputs: Inputs) -> Inputs:
        outputs = op.outputs(inputs, **options)
        final = op.final(outputs)
        return {
            n: x if n in final else x.narrow(op.axis(n), at, 70 - at) for n, x in outputs.items()
        }

    other = dict(inputs)
    for way in filter(op.of_samples, inputs):
        other[way] = inputs[way].clone()
        early = other[way].narrow(op.axis(way), 0, at) if way in op.over_time else other[way]
        early.mul_(-2).sub_(0.5)
        if way in ("log_f", "state.n", "state.cell.n"):
            early.abs_().neg_() if way == "log_f" else early.abs_()
    assert_all_close(late(other), late(inputs), tolerance=1e-5)
    grads = everything(late, inputs)
    for way in filter(op.of_samples, inputs):
        grad = grads[f"d {way}"]
        early = grad.narrow(op.axis(way), 0, at) if way in op.over_time else grad
        # The gradient of an mLSTM's log_f is a sum over all later steps, which cancel.
        through_log_f = way == "log_f" or (name, way) == ("mlstm_block", "x")
        assert early.abs().max() <= (1e-4 if through_log_f else 0.0), way
        if way in op.over_time:
            assert grad.narrow(op.axis(way), at, 70 - at).ne(0).any(), way
    if name == "mlstm" and backend != "reference":  # the forget gate lets nothing through there
        assert not everything(late, inputs, only="0")["d log_f"][:, :, at].any()


# ---- Dtypes, and what surrounds a call ---------------------------------------------------------


@each_op
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision(name: str, dtype: torch.dtype) -> None:
    """Results and gradients have the dtype of their inputs, and states are float32."""
    op, (inputs, options) = OPS[name], OPS[name].example(2, 20)
    narrow = op.cast(inputs, dtype)
    actual = everything(lambda x: op.outputs(x, **options), narrow)
    wide = {way: x.double() for way, x in narrow.items()}
    expected = everything(lambda x: op.outputs(x, op.truth, **options), wide)
    for way, x in narrow.items():
        assert actual[f"d {way}"].dtype == x.dtype
    in_state = (
        {f"out {key}" for key in op.final(op.outputs(narrow, **options))}
        if op.cell_state
        else set()
    )
    for key, x in actual.items():
        cell = key in in_state and "conv" not in key
        if key.startswith("out ") and not (name == "large_input" and "log" in key):
            assert x.dtype == (torch.float32 if cell else dtype), key
    assert_all_close(actual, expected, tolerance=0.06)


@needs_native
@each_op
def test_other_dtypes_are_left_to_others(name: str) -> None:
    op, (inputs, options) = OPS[name], OPS[name].example()
    cells = name in ("mlstm", "slstm")
    for dtype in [torch.float64] if cells else [torch.float64, torch.bfloat16]:
        narrow = op.cast(inputs, dtype)
        with pytest.raises(BackendError, match=str(dtype).removeprefix("torch.")):
            op.outputs(narrow, backend="native", **options)
        other = "unfused" if name in FUSED else "torch"
        chosen, by_other = (op.outputs(narrow, backend=b, **options) for b in (None, other))
        assert all(map(torch.equal, chosen.values(), by_other.values()))


@contextmanager
def globally(switch: str) -> Iterator[None]:
    before = torch.get_default_dtype()
    if switch == "meta":
        torch.set_default_device("meta")
    elif switch != "autocast":
        torch.set_default_dtype(getattr(torch, switch))
    try:
        with torch.autocast("cpu", enabled=switch == "autocast"):
            yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)


@each_backend
def test_nothing_global_decides(name: str, backend: str) -> None:
    """Neither the default dtype nor device, nor autocast: results are the same bits, from an empty
    state as well, which the op makes."""
    op, (inputs, options) = OPS[name], OPS[name].example(3, 20)
    inputs = op.cast(inputs, dtypes_of(backend)[-1])
    inputs = {way: x for way, x in inputs.items() if not way.startswith("state")}

    def compute(x: Inputs) -> Inputs:
        return op.outputs(x, backend=backend, **options)

    expected = everything(compute, inputs)
    for switch in ("float64", "bfloat16", "meta", "autocast"):
        with globally(switch):
            actual = everything(compute, inputs)
        for key, x in actual.items():
            assert x.dtype == torch.float32
            if switch != "autocast" or key.startswith("out "):
                assert torch.equal(x, expected[key]), f"{switch}: {key}"
        # Under autocast PyTorch's own backward formulas multiply in bfloat16.
        assert_all_close(actual, expected, who=switch, tolerance=0.05)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own making
@pytest.mark.parametrize(
    ("name", "backend"),
    [*((op, None) for op in OPS), ("mlstm", "torch"), ("slstm", "torch"), ("causal_conv", "torch")],
)
def test_compiled_is_eager(name: str, backend: str | None) -> None:
    """`torch.compile` sees through every op, and through each backend with its own backward."""
    op, (inputs, options) = OPS[name], OPS[name].example(9, 3)
    inputs = op.cast(inputs, torch.float32)

    def compute(x: Inputs) -> Any:
        return op.function(**op.arguments(x), backend=backend, **options)

    torch.compiler.reset()
    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    results = (
        everything(lambda x, f=function: op.named(f(x)), inputs) for function in (compiled, compute)
    )
    assert_all_close(*results, tolerance=2e-5)


# ---- Refusals ----------------------------------------------------------------------------------


@each_op
def test_what_does_not_fit_is_refused_by_name(name: str) -> None:
    """Every input with another number of dimensions, sizes, dtype or device."""
    op, (inputs, options) = OPS[name], OPS[name].example(2, 9)
    inputs = op.cast(inputs, torch.float32)
    op.outputs(inputs, **options)  # which are right
    ways = "|".join(sorted(inputs, key=len, reverse=True)).replace(".", r"\.")
    sizes = f"^({ways}|reset|the inner width|num_groups) "
    any_rows = len(op.over_time) == 1 and not op.recurrent  # nothing else has as many

    def refused(way: str, other: Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            op.outputs(inputs | {way: other}, **options)

    for way, x in inputs.items():
        own = f"^{way} ".replace(".", r"\.")
        refused(way, x.long(), "must be (floating point|torch)")
        refused(way, x.to("meta"), r" must be on \w+, not \w+")
        if name != "slstm":  # whose weights may be wider
            refused(way, x.half(), " must be torch")
        if not (any_rows and way == "x"):
            refused(way, x[None], own)
            refused(way, x[:0], f"^({ways}) ")
        for dim in range(2 if any_rows and way == "x" else 0, x.dim()):
            refused(way, torch.cat([x, x.narrow(dim, 0, 1)], dim), sizes)
    with pytest.raises(ValueError, match=f"^{name} has no backend 'abacus'; it has: .*torch"):
        op.outputs(inputs, backend="abacus", **options)
    if op.recurrent:
        for mask in (torch.zeros(2, 9), torch.zeros(2, 10).bool(), torch.zeros(9, 2).bool()):
            with pytest.raises(ValueError, match=r"^reset must "):
                op.outputs(inputs, None, **options | {"reset": mask})


@needs_native
@each_op
def test_few_rows_are_left_to_others(name: str) -> None:
    """To pack weights for 8 rows costs more than it saves, for 9 it does not."""
    op = OPS[name]
    (few, options), (enough, more) = op.example(1, 8), op.example(1, 9)
    few, enough = op.cast(few, torch.float32), op.cast(enough, torch.float32)
    if op.packs_weights:
        with pytest.raises(BackendError, match=r"'native' cannot run .*: 8 rows are too few"):
            op.outputs(few, backend="native", **options)
    other = "native" if not op.packs_weights else "unfused" if name in FUSED else "torch"
    for inputs, chosen_options, backend in ((few, options, other), (enough, more, "native")):
        chosen, same = (op.outputs(inputs, backend=b, **chosen_options) for b in (None, backend))
        assert all(map(torch.equal, chosen.values(), same.values()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_states_are_float32_or_wider(dtype: torch.dtype) -> None:
    assert state_dtype(dtype) == (torch.float64 if dtype == torch.float64 else torch.float32)
