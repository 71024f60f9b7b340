"""What the tests of the ops share: inputs of any size, and all that comes of them."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from tolerances import assert_close
from torch import Tensor

from openxlstm.ops.dispatch import BackendError
from openxlstm.ops.native import backend as native
from openxlstm.states import ConvState, MLSTMState, SLSTMState, map_state, tensors

needs_native = pytest.mark.skipif(
    native.missing() is not None, reason=f"no native backend: {native.missing()}"
)
RESETS = st.sampled_from(["none", "first", "last", "adjacent", "random"])
"""Kinds of `make_reset`."""
BATCHES = st.one_of(
    st.tuples(st.integers(9, 14), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(9, 80)),
)
"""B and T of as many rows as the native backend asks for: wide and short, or long."""


def random_source(seed: int) -> Callable[..., Tensor]:
    """Normal numbers in float64, each of them one that float32 holds."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator).double()


class MLSTMInputs(NamedTuple):
    """What mlstm takes that has a gradient."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_i: Tensor
    log_f: Tensor
    C: Tensor | None = None
    n: Tensor | None = None
    m: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "MLSTMInputs":
        return MLSTMInputs(*(None if part is None else function(part) for part in self))  # pyright: ignore[reportArgumentType]

    @property
    def sequence(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self[:5]

    def at(self, steps: slice) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Some steps of the sequence."""
        q, k, v, log_i, log_f = self.sequence
        return (
            q[:, :, steps], k[:, :, steps], v[:, :, steps], log_i[:, :, steps], log_f[:, :, steps]
        )  # fmt: skip

    @property
    def state(self) -> MLSTMState | None:
        _, _, _, _, _, C, n, m = self
        return None if C is None or n is None or m is None else MLSTMState(C, n, m)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return *self.sequence, self.state


def mlstm_inputs(
    B: int = 2, NH: int = 2, T: int = 9, DQK: int = 3, DHV: int = 4, *, seed: int = 0,
    with_state: bool = True,
) -> MLSTMInputs:  # fmt: skip
    """Ordinary values in float64, each of them one that float32 holds."""
    randn = random_source(seed)
    log_f = F.logsigmoid(2 * randn(B, NH, T) + 2).float().double()
    sequence = (
        randn(B, NH, T, DQK), randn(B, NH, T, DQK), randn(B, NH, T, DHV), randn(B, NH, T), log_f
    )  # fmt: skip
    if not with_state:
        return MLSTMInputs(*sequence)
    return MLSTMInputs(*sequence, randn(B, NH, DQK, DHV), randn(B, NH, DQK), randn(B, NH))


class SLSTMInputs(NamedTuple):
    """What slstm takes that has a gradient."""

    x: Tensor
    recurrent_weight: Tensor
    bias: Tensor | None = None
    h: Tensor | None = None
    c: Tensor | None = None
    n: Tensor | None = None
    m: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "SLSTMInputs":
        return SLSTMInputs(*(None if part is None else function(part) for part in self))  # pyright: ignore[reportArgumentType]

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor | None, SLSTMState | None]:
        return self.x, self.recurrent_weight, self.bias, self.state

    @property
    def state(self) -> SLSTMState | None:
        _, _, _, h, c, n, m = self
        if h is None or c is None or n is None or m is None:
            return None
        return SLSTMState(h, c, n, m)


def slstm_inputs(
    B: int = 2, T: int = 7, NH: int = 2, DH: int = 3, *, seed: int = 0, with_state: bool = True,
    with_bias: bool = True, empty: float = 0.0,
) -> SLSTMInputs:  # fmt: skip
    """Ordinary values in float64, each of them one that float32 holds.

    Args:
        empty: share of the places of the state whose memory is empty: n = 0, whatever c and m.
    """
    randn = random_source(seed)
    x, weight = randn(B, T, NH, 4, DH), (randn(NH, 4, DH, DH) / math.sqrt(DH)).float().double()
    bias = randn(NH, 4, DH) if with_bias else None
    if not with_state:
        return SLSTMInputs(x, weight, bias)
    return SLSTMInputs(x, weight, bias, *slstm_state(randn, (B, NH, DH), empty))


def slstm_state(
    randn: Callable[..., Tensor], shape: tuple[int, int, int], empty: float
) -> SLSTMState:
    """A state that a cell might have, some share of its places empty."""
    n = randn(*shape).abs() + 0.25
    n[torch.special.ndtr(randn(*shape)) < empty] = 0.0  # uniform numbers
    return SLSTMState(randn(*shape).tanh().float().double(), randn(*shape), n, randn(*shape))


def make_reset(kind: str, B: int, T: int, seed: int = 0) -> Tensor | None:
    reset = torch.zeros(B, T, dtype=torch.bool)
    if kind == "none":
        return None
    if kind == "first":
        reset[:, 0] = True
    elif kind == "last":
        reset[-1, -1] = True
    elif kind == "adjacent":
        reset[0, T // 2 : T // 2 + 3] = True
    elif kind == "random":
        reset = torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < 0.3
    return reset


def everything(
    function: Callable[..., Any], x: MLSTMInputs | SLSTMInputs, **options: Any
) -> dict[str, Tensor]:
    """h, the final state, and the gradients of a random weighing of all of them."""
    x = x.map(lambda part: part.detach().clone().requires_grad_())
    h, final = function(*x.arguments, **options)
    outputs = {"h": h, **{f"final {name}": part for name, part in final._asdict().items()}}
    generator = torch.Generator().manual_seed(7)
    loss = torch.zeros((), dtype=torch.float64)
    for part in outputs.values():
        loss = loss + (part * torch.randn(part.shape, generator=generator)).sum().double()
    inputs = {name: part for name, part in x._asdict().items() if part is not None}
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    return outputs | {f"d{name}": part for name, part in zip(inputs, gradients, strict=True)}


def with_gates_joined(results: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of gates as one: in float32, some are small differences of larger ones."""
    gates = [name for name in ("dlog_i", "dlog_f", "dm") if name in results]
    others = {name: part for name, part in results.items() if name not in gates}
    return others | {"gates": torch.cat([results[name].flatten() for name in gates])}


def assert_all_close(
    actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float | None = None
) -> None:
    assert actual.keys() == expected.keys()
    for name, part in actual.items():
        assert_close(part, expected[name], name, tolerance=tolerance)


# ---- Ops of the layers, their inputs by name ---------------------------------------------------

Inputs = dict[str, Tensor]
"""What an op takes that has a gradient. "state.h" is the part h of its `state`, and "biases.0" the
first of its `biases`."""


def scaled(weight: Tensor) -> Tensor:
    """A weight whose outputs are about as large as its inputs."""
    return (weight / math.sqrt(weight.shape[-1])).float().double()


def norm_inputs(shape: tuple[int, ...], *, with_bias: bool = False, seed: int = 0) -> Inputs:
    randn = random_source(seed)
    inputs = {"x": randn(*shape), "weight": randn(shape[-1])}
    return inputs | {"bias": randn(shape[-1])} if with_bias else inputs


def conv_inputs(
    B: int = 2, T: int = 7, D: int = 3, K: int = 4, *, seed: int = 0, with_state: bool = True,
    with_bias: bool = True,
) -> Inputs:  # fmt: skip
    randn = random_source(seed)
    inputs = {"x": randn(B, T, D), "weight": randn(D, K)}
    if with_bias:
        inputs["bias"] = randn(D)
    if with_state:
        inputs["state.x"] = randn(B, K - 1, D)
    return inputs


def feedforward_inputs(
    shape: tuple[int, ...], F: int, *, with_biases: bool = True, with_norm: bool = True,
    seed: int = 0,
) -> Inputs:  # fmt: skip
    randn, D = random_source(seed), shape[-1]
    inputs = {
        "x": randn(*shape), "up_weight": scaled(randn(2 * F, D)), "down_weight": scaled(randn(D, F))
    }  # fmt: skip
    if with_biases:
        inputs |= {"up_bias": randn(2 * F), "down_bias": randn(D)}
    if with_norm:
        inputs["norm_weight"] = randn(D)
    return inputs


def apart(inputs: Inputs) -> Inputs:
    """A feed-forward's inputs with gate and value as two weights, and a bias of the norm."""
    inputs, F = dict(inputs), inputs["down_weight"].shape[1]
    for part in ("weight", "bias"):
        if f"up_{part}" in inputs:
            gate, value = inputs[f"up_{part}"].split(F)
            inputs |= {f"up_{part}": gate, f"value_{part}": value}
    if "norm_weight" in inputs and "up_bias" in inputs:
        inputs["norm_bias"] = inputs["norm_weight"].flip(0)
    return inputs


def large_input_inputs(
    B: int, T: int, D: int, NH: int, DQK: int, DHV: int, *, with_biases: bool = True, seed: int = 0
) -> Inputs:
    randn, QK, V = random_source(seed), NH * DQK, NH * DHV
    sizes = QK, QK, V, V
    inputs = {"x": randn(B, T, D), "norm_weight": randn(D)}
    named = zip("qkvo", sizes, strict=True)
    inputs |= {f"{name}_weight": scaled(randn(size, D)) for name, size in named}
    inputs |= {"gate_weight": scaled(randn(2, NH, D)), "gate_bias": randn(2, NH)}
    if with_biases:
        inputs |= {"norm_bias": randn(D)}
        inputs |= {f"biases.{i}": randn(size) for i, size in enumerate(sizes)}
    return inputs


def large_output_inputs(
    B: int, T: int, D: int, NH: int, DHV: int, *, with_biases: bool = True,
    with_residual: bool = True, seed: int = 0,
) -> Inputs:  # fmt: skip
    randn, V = random_source(seed), NH * DHV
    inputs = {
        "h": randn(B, NH, T, DHV), "o": randn(B, T, V), "norm_weight": randn(V),
        "out_weight": scaled(randn(D, V)),
    }  # fmt: skip
    if with_biases:
        inputs |= {"norm_bias": randn(V), "out_bias": randn(D)}
    if with_residual:
        inputs["residual"] = randn(B, T, D)
    return inputs


def slstm_layer_inputs(
    B: int, T: int, NH: int, DH: int, *, with_state: bool = True, empty: float = 0.0, seed: int = 0
) -> Inputs:
    randn = random_source(seed)
    inputs = {
        "convolved": randn(B, T, NH * DH),
        "raw": randn(B, T, NH * DH),
        "input_weight": scaled(randn(NH, 4, DH, DH)),
        "bias": randn(NH, 4, DH),
        "recurrent_weight": scaled(randn(NH, 4, DH, DH)),
    }
    if with_state:
        state = slstm_state(randn, (B, NH, DH), empty)
        inputs |= {f"state.{name}": part for name, part in state._asdict().items()}
    return inputs


def slstm_block_inputs(
    B: int, T: int, NH: int, DH: int, F: int, K: int = 4, *, with_state: bool = True,
    with_biases: bool = True, empty: float = 0.0, seed: int = 0,
) -> Inputs:  # fmt: skip
    """K = 0 leaves the convolution out, and its state with it."""
    randn, D = random_source(seed), NH * DH
    names = "norm_weight", "head_norm_weight", "ff_norm_weight"
    inputs = slstm_layer_inputs(B, T, NH, DH, with_state=with_state, empty=empty, seed=seed)
    inputs = {"x": inputs.pop("raw"), **inputs, **{name: randn(D) for name in names}}
    del inputs["convolved"]
    inputs |= {"up_weight": scaled(randn(2 * F, D)), "down_weight": scaled(randn(D, F))}
    if with_biases:
        inputs |= {"up_bias": randn(2 * F), "down_bias": randn(D)}
    if K:
        inputs |= {"conv_weight": scaled(randn(D, K)), "conv_bias": randn(D)}
    if K and with_state:
        inputs["before.x"] = randn(B, K - 1, D)
    return inputs


def mlstm_input_inputs(
    B: int, T: int, D: int, E: int, NH: int, K: int, *, side: int = 4, with_state: bool = True,
    with_biases: bool = False, seed: int = 0,
) -> Inputs:  # fmt: skip
    """K = 0 leaves the convolution out, and the state with it."""
    randn = random_source(seed)
    inputs = {"x": randn(B, T, D), "up_weight": scaled(randn(2 * E, D))}
    inputs |= {f"{name}_weight": scaled(randn(E // side, side, side)) for name in "qkv"}
    inputs |= {"gate_weight": scaled(randn(2, NH, 3 * E)), "gate_bias": randn(2, NH)}
    if K:
        inputs |= {"conv_weight": scaled(randn(E, K)), "conv_bias": randn(E)}
    if K and with_state:
        inputs["state.x"] = randn(B, K - 1, E)
    if with_biases:
        inputs |= {f"biases.{i}": randn(size) for i, size in enumerate((2 * E, E, E, E))}
    return inputs


def mlstm_output_inputs(
    B: int, T: int, NH: int, DH: int, D: int, *, with_bias: bool = False, seed: int = 0
) -> Inputs:
    randn, E = random_source(seed), NH * DH
    inputs = {
        "h": randn(B, NH, T, DH), "c": randn(B, T, E), "z": randn(B, T, E),
        "norm_weight": randn(E), "skip": randn(E), "down_weight": scaled(randn(D, E)),
    }  # fmt: skip
    if with_bias:
        inputs["down_bias"] = randn(D)
    return inputs


def mlstm_block_inputs(
    B: int, T: int, D: int, E: int, NH: int, K: int = 4, *, with_state: bool = True, seed: int = 0
) -> Inputs:
    randn, DH = random_source(seed), E // NH
    inputs = mlstm_input_inputs(B, T, D, E, NH, K, with_state=False, seed=seed)
    inputs |= {"norm_weight": randn(E), "skip": randn(E), "down_weight": scaled(randn(D, E))}
    if K and with_state:
        inputs["before.x"] = randn(B, K - 1, E)
    if with_state:
        inputs |= {"state.C": randn(B, NH, DH, DH), "state.n": randn(B, NH, DH)}
        inputs["state.m"] = randn(B, NH)
    return inputs


def call(op: Callable[..., Any], inputs: Inputs, **options: Any) -> Any:
    """The op of inputs by name."""
    arguments: dict[str, Any] = {}
    parts: dict[str, dict[str, Tensor]] = {"before": {}, "state": {}, "biases": {}}
    for name, x in inputs.items():
        whole, _, part = name.partition(".")
        if part:
            parts[whole][part] = x
        else:
            arguments[name] = x
    if parts["state"]:
        kinds = {"x": ConvState, "C": MLSTMState, "h": SLSTMState}
        arguments["state"] = kinds[next(iter(parts["state"]))](**parts["state"])
    if parts["before"]:
        arguments["before"] = ConvState(**parts["before"])
    if parts["biases"]:
        arguments["biases"] = tuple(parts["biases"].values())
    return op(**arguments, **options)


def results(
    op: Callable[..., Any],
    inputs: Inputs,
    *,
    layout: Callable[[Tensor], Tensor] = lambda x: x,
    only: int | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """All that an op returns, and the gradient of every input for a random weighing of that.

    Args:
        layout: how inputs, and the gradients that come from above, lie in memory.
        only: the place of the one output that a gradient comes from; None for all.
    """
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    laid_out = {name: layout(x) for name, x in leaves.items()}
    outputs = tensors(map_state(layout, call(op, laid_out, **options)))
    weighed = [x for i, x in enumerate(outputs) if x.requires_grad and only in (None, i)]
    randn = random_source(7)
    upstream = [randn(*x.shape).to(x.dtype) for x in weighed]
    grads = torch.autograd.grad(
        weighed, list(leaves.values()), upstream, allow_unused=True, materialize_grads=True
    )
    named = {f"output {i}": x for i, x in enumerate(outputs)}
    return named | {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}


def check_native(op: Callable[..., Any], inputs: Inputs, **options: Any) -> None:
    """Outputs and gradients of the native backend, against plain PyTorch in float64."""
    expected = results(op, inputs, backend="torch", **options)
    narrow = {name: x.float() for name, x in inputs.items()}
    actual = results(op, narrow, backend="native", **options)
    assert {x.dtype for x in actual.values()} == {torch.float32}
    assert_all_close(actual, expected, 1e-4)
    outputs = {name for name in actual if name.startswith("output")}
    assert_all_close({n: actual[n] for n in outputs}, {n: expected[n] for n in outputs})


def check_few_rows(
    op: Callable[..., Any], few: Inputs, enough: Inputs, *, other: str = "torch"
) -> None:
    """Whether `few`, of 8 rows, are left to another backend, and one more row is not."""
    few, enough = ({name: x.float() for name, x in inputs.items()} for inputs in (few, enough))
    with pytest.raises(BackendError, match=r"'native' cannot run .*: 8 rows are too few"):
        call(op, few, backend="native")
    for inputs, backend in ((few, other), (enough, "native")):
        chosen, same = (tensors(call(op, inputs, backend=name)) for name in (None, backend))
        assert all(map(torch.equal, chosen, same))
    assert not all(map(torch.equal, tensors(call(op, enough, backend="torch")), same))


def run_with_isa(isa: str, code: str) -> str:
    """What Python code prints in a process of its own that asks for an instruction set: the choice
    is made once in a process. It imports what is in tests/."""
    root = Path(__file__).parents[1]
    paths = [str(root / "tests" / folder) for folder in (".", "ops", "nn")]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    environment = os.environ | {"OPENXLSTM_ISA": isa, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
