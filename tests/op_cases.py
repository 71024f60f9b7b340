"""The ops as their contract tests see them: random inputs by name, the truth, and the results.

An input's name is the way to it: "weights.input.up", or "state.cell.C". Values are in float64, and
each of them is one that float32 holds.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import op_formulas as formulas
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from tolerances import assert_close
from torch import Tensor

from openxlstm import ops
from openxlstm.ops.native import backend as native
from openxlstm.reference import mlstm as mlstm_reference
from openxlstm.reference import slstm as slstm_reference
from openxlstm.states import (
    ConvState,
    LayerState,
    MLSTMState,
    SLSTMState,
    map_state,
    names,
    tensors,
)

needs_native = pytest.mark.skipif(
    native.missing() is not None, reason=f"no native backend: {native.missing()}"
)

Inputs = dict[str, Tensor]
"""What an op takes that has a gradient, by name."""

Layout = Callable[[Tensor], Tensor]
"""A way to lay the same values out in memory."""

BATCHES = st.one_of(
    st.tuples(st.integers(9, 14), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 80)),
)
"""B and T: wide and short, or long."""


def random_source(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    options: Any = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    return lambda *shape: torch.randn(*shape, **options).double()


def scaled(weight: Tensor) -> Tensor:
    """A weight whose outputs are about as large as its inputs."""
    return (weight / math.sqrt(weight.shape[-1])).float().double()


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


RESETS = st.sampled_from(["none", "first", "last", "adjacent", "random"])
"""Kinds of `make_reset`."""


@dataclass(frozen=True)
class Op:
    """An op, and what its contract tests need to know about it."""

    function: Callable[..., Any]
    truth: Callable[..., Any]
    """The same, written a second time."""
    make: Callable[..., Inputs]
    """Random inputs from B, T, the sizes below, what is left out, and a seed."""
    sizes: dict[str, st.SearchStrategy[Any]]
    """Sizes, and what is left out, that are drawn."""
    usual: dict[str, Any]
    """Sizes that every backend runs, in more than one of a kernel's tiles."""
    options: dict[str, st.SearchStrategy[Any]] = field(default_factory=dict)
    usual_options: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, Any] = field(default_factory=dict)
    """Named tuples by the way to them."""
    time: dict[str, int] = field(default_factory=dict)
    """Inputs and outputs over time, and which dimension it is; 1 for those not named."""
    over_time: tuple[str, ...] = ("x",)
    """Inputs over time."""
    recurrent: bool = False
    """Whether it has a state and takes resets."""
    cell_state: str = ""
    """The way to the state that is float32 or wider."""
    packs_weights: bool = True
    """Whether the native backend leaves few rows to others."""
    joined: tuple[str, ...] = ()
    """Inputs whose float32 gradients are compared as one: some are small differences of large
    ones."""

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for way, x in inputs.items():
            *folders, name = way.split(".")
            place = tree
            for folder in folders:
                place = place.setdefault(folder, {})
            place[name] = x
        return {name: self._build(name, part) for name, part in tree.items()}

    def _build(self, way: str, node: Any) -> Any:
        if node is None or isinstance(node, Tensor):
            return node
        kind = self.kinds[way]
        return kind(*(self._build(f"{way}.{name}", node.get(name)) for name in kind._fields))

    def outputs(
        self, inputs: Inputs, function: Callable[..., Any] | None = None, **options: Any
    ) -> Inputs:
        """The results by name; "0" and "1" are the parts of a pair."""
        return self.named((function or self.function)(**self.arguments(inputs), **options))

    def named(self, results: Any) -> Inputs:
        """Results by name."""
        parts = tensors(results)
        return dict(zip(names(results) if len(parts) > 1 else ["0"], parts, strict=True))

    def in_pieces(
        self, inputs: Inputs, cuts: Sequence[int], *, reset: Tensor | None = None, **options: Any
    ) -> Inputs:
        """The results of some calls one after the other, each with the state of the one before."""
        T = inputs[self.over_time[0]].shape[self.axis(self.over_time[0])]
        inputs, pieces = dict(inputs), []
        for begin, end in pairwise([0, *cuts, T]):
            piece = {
                name: x.narrow(self.axis(name), begin, end - begin) if name in self.over_time else x
                for name, x in inputs.items()
            }
            mask = {} if reset is None else {"reset": reset[:, begin:end]}
            pieces.append(self.outputs(piece, **mask, **options))
            if self.recurrent:
                inputs = {n: x for n, x in inputs.items() if not n.startswith("state")}
                inputs |= {f"state{n[1:]}": x for n, x in self.final(pieces[-1]).items()}
        final = self.final(pieces[-1])
        return {
            name: final[name] if name in final else torch.cat(
                [piece[name] for piece in pieces], self.axis(name)
            )
            for name in pieces[0]
        }  # fmt: skip

    def axis(self, name: str) -> int:
        return self.time.get(name, 1)

    def final(self, outputs: Inputs) -> Inputs:
        """The state among the results."""
        return {n: x for n, x in outputs.items() if self.recurrent and n.startswith("1")}

    def of_samples(self, name: str) -> bool:
        """Whether an input belongs to samples, and is no weight."""
        return name in self.over_time or name.startswith("state")

    def cast(self, inputs: Inputs, dtype: torch.dtype) -> Inputs:
        """Inputs as they come in a dtype: the states of cells are float32 or wider."""
        wide, cell = ops.state_dtype(dtype), self.cell_state
        return {
            name: x.to(wide if cell and name.startswith(cell) else dtype)
            for name, x in inputs.items()
        }

    def draw(self) -> st.SearchStrategy[tuple[Inputs, dict[str, Any]]]:
        """Inputs and options."""
        return st.builds(
            self._example, BATCHES, st.fixed_dictionaries(self.sizes),
            st.fixed_dictionaries(self.options), RESETS, st.integers(0, 999),
        )  # fmt: skip

    def _example(
        self, batch: tuple[int, int], sizes: dict[str, Any], options: dict[str, Any], reset: str,
        seed: int,
    ) -> tuple[Inputs, dict[str, Any]]:  # fmt: skip
        if self.recurrent:
            options = options | {"reset": make_reset(reset, *batch, seed)}
        return self.make(*batch, **sizes, seed=seed), options

    def example(self, B: int = 3, T: int = 70, **changes: Any) -> tuple[Inputs, dict[str, Any]]:
        """Inputs of the usual sizes, and options."""
        inputs = self.make(B, T, **self.usual | changes)
        if not self.recurrent:
            return inputs, dict(self.usual_options)
        reset = make_reset("random", B, T)
        assert reset is not None
        reset[:, 0] = False  # so that the initial state counts
        return inputs, self.usual_options | {"reset": reset}


def everything(
    compute: Callable[[Inputs], Inputs],
    inputs: Inputs,
    *,
    layout: Layout = lambda x: x,
    only: str | None = None,
) -> Inputs:
    """Outputs, and the gradient of every input for a random weighing of all outputs.

    Args:
        layout: how inputs, and the gradients that come from above, lie in memory.
        only: the one output that a gradient comes from.
    """
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    outputs = compute({name: layout(x) for name, x in leaves.items()})
    laid_out = map_state(layout, tuple(outputs.values()))
    randn = random_source(7)
    pairs = [(x, randn(*x.shape).to(x.dtype)) for x in laid_out]
    weighed = [
        (x, weight)
        for name, (x, weight) in zip(outputs, pairs, strict=True)
        if x.requires_grad and only in (None, name)
    ]
    grads = torch.autograd.grad(
        [x for x, _ in weighed], list(leaves.values()), [weight for _, weight in weighed],
        allow_unused=True, materialize_grads=True,
    )  # fmt: skip
    return {f"out {name}": x.detach() for name, x in outputs.items()} | {
        f"d {name}": grad for name, grad in zip(leaves, grads, strict=True)
    }


def assert_all_close(
    actual: Inputs,
    expected: Inputs,
    *,
    who: str = "",
    joined: Sequence[str] = (),
    gradients: float | None = None,
    tolerance: float | None = None,
) -> None:
    """Compares by name.

    Args:
        who: said first where something differs.
        joined: inputs whose gradients are compared as one.
        gradients: tolerance of all but the first output, whose own is `tolerance`.
    """
    assert actual.keys() == expected.keys()
    actual, expected = (_join(results, joined) for results in (actual, expected))
    for i, (name, part) in enumerate(actual.items()):
        allowed = gradients if i and gradients is not None else tolerance
        assert_close(part, expected[name], f"{who}: {name}", tolerance=allowed)


def _join(results: Inputs, joined: Sequence[str]) -> Inputs:
    some = [f"d {name}" for name in joined if f"d {name}" in results]
    if not some:
        return results
    others = {name: x for name, x in results.items() if name not in some}
    return others | {"d " + " ".join(some): torch.cat([results[n].flatten() for n in some])}


# ---- Inputs ------------------------------------------------------------------------------------


def slstm_state(
    randn: Callable[..., Tensor], shape: tuple[int, int, int], empty: float, way: str = "state"
) -> Inputs:
    """A state that a cell might have; a share of its places is empty: n = 0, whatever c and m."""
    n = randn(*shape).abs() + 0.25
    n[torch.special.ndtr(randn(*shape)) < empty] = 0.0  # uniform numbers
    h = randn(*shape).tanh().float().double()
    return {f"{way}.h": h, f"{way}.c": randn(*shape), f"{way}.n": n, f"{way}.m": randn(*shape)}


def mlstm_state(randn: Callable[..., Tensor], *sizes: int, way: str = "state") -> Inputs:
    B, NH, DQK, DHV = sizes
    return {
        f"{way}.C": randn(B, NH, DQK, DHV), f"{way}.n": randn(B, NH, DQK), f"{way}.m": randn(B, NH)
    }  # fmt: skip


def mlstm_inputs(
    B: int = 2, T: int = 9, NH: int = 2, DQK: int = 3, DHV: int = 4, *, seed: int = 0,
    with_state: bool = True,
) -> Inputs:  # fmt: skip
    randn = random_source(seed)
    inputs = {
        "q": randn(B, NH, T, DQK), "k": randn(B, NH, T, DQK), "v": randn(B, NH, T, DHV),
        "log_i": randn(B, NH, T),
        "log_f": F.logsigmoid(2 * randn(B, NH, T) + 2).float().double(),
    }  # fmt: skip
    return inputs | (mlstm_state(randn, B, NH, DQK, DHV) if with_state else {})


def slstm_inputs(
    B: int = 2, T: int = 7, NH: int = 2, DH: int = 3, *, seed: int = 0, with_state: bool = True,
    with_bias: bool = True, empty: float = 0.0,
) -> Inputs:  # fmt: skip
    randn = random_source(seed)
    inputs = {"x": randn(B, T, NH, 4, DH), "recurrent_weight": scaled(randn(NH, 4, DH, DH))}
    inputs |= {"bias": randn(NH, 4, DH)} if with_bias else {}
    return inputs | (slstm_state(randn, (B, NH, DH), empty) if with_state else {})


def norm_inputs(B: int, T: int, D: int, *, with_bias: bool = False, seed: int = 0) -> Inputs:
    randn = random_source(seed)
    inputs = {"x": randn(B, T, D), "weight": randn(D)}
    return inputs | ({"bias": randn(D)} if with_bias else {})


def group_norm_inputs(B: int, T: int, groups: int, width: int, *, seed: int = 0) -> Inputs:
    return norm_inputs(B, T, groups * width, seed=seed)


def conv_inputs(
    B: int, T: int, D: int, K: int = 4, *, with_state: bool = True, with_bias: bool = True,
    seed: int = 0, way: str = "",
) -> Inputs:  # fmt: skip
    randn = random_source(seed)
    inputs = {
        "x": randn(B, T, D), "weight": randn(D, K), "bias": randn(D), "state.x": randn(B, K - 1, D)
    }  # fmt: skip
    return _leave_out(inputs, K, with_state, () if with_bias else ("bias",))


def feedforward_inputs(
    B: int, T: int, D: int, inner: int, *, with_norm: bool = True, without_bias: str = "",
    two: bool = False, seed: int = 0,
) -> Inputs:  # fmt: skip
    """Gate and value are one weight or two; biases that `without_bias` names are left out."""
    randn, rows = random_source(seed), inner if two else 2 * inner
    inputs = {
        "x": randn(B, T, D), "weights.norm": randn(D), "weights.norm_bias": randn(D),
        "weights.up": scaled(randn(rows, D)), "weights.value": scaled(randn(inner, D)),
        "weights.down": scaled(randn(D, inner)), "weights.up_bias": randn(rows),
        "weights.value_bias": randn(inner), "weights.down_bias": randn(D),
    }  # fmt: skip
    gone = ["norm", "norm_bias"] * (not with_norm) + ["value", "value_bias"] * (not two)
    gone += [f"{name}_bias" for name in without_bias.split()]
    return {name: x for name, x in inputs.items() if name.removeprefix("weights.") not in gone}


def slstm_layer_inputs(
    B: int, T: int, NH: int, DH: int, *, with_state: bool = True, empty: float = 0.0, seed: int = 0
) -> Inputs:
    randn = random_source(seed)
    inputs = {
        "convolved": randn(B, T, NH * DH), "raw": randn(B, T, NH * DH),
        "weights.input_weight": scaled(randn(NH, 4, DH, DH)),
        "weights.recurrent_weight": scaled(randn(NH, 4, DH, DH)), "weights.bias": randn(NH, 4, DH),
    }  # fmt: skip
    return inputs | (slstm_state(randn, (B, NH, DH), empty) if with_state else {})


def slstm_block_inputs(
    B: int, T: int, NH: int, DH: int, inner: int, K: int = 4, *, with_state: bool = True,
    with_biases: bool = True, empty: float = 0.0, seed: int = 0,
) -> Inputs:  # fmt: skip
    """K = 0 leaves the convolution out, and its state with it."""
    randn, D = random_source(seed), NH * DH
    inputs = {
        "x": randn(B, T, D), "weights.norm": randn(D), "weights.conv_weight": scaled(randn(D, K)),
        "weights.conv_bias": randn(D), "weights.input_weight": scaled(randn(NH, 4, DH, DH)),
        "weights.recurrent_weight": scaled(randn(NH, 4, DH, DH)), "weights.bias": randn(NH, 4, DH),
        "weights.head_norm": randn(D), "weights.ff_norm": randn(D),
        "weights.up": scaled(randn(2 * inner, D)), "weights.down": scaled(randn(D, inner)),
        "weights.up_bias": randn(2 * inner), "weights.down_bias": randn(D),
        "state.conv.x": randn(B, max(K - 1, 0), D),
    } | slstm_state(randn, (B, NH, DH), empty, "state.cell")  # fmt: skip
    return _leave_out(inputs, K, with_state, () if with_biases else ("up_bias", "down_bias"))


def _leave_out(inputs: Inputs, K: int, with_state: bool, endings: Sequence[str]) -> Inputs:
    """Without inputs of these endings, without the state, or without a convolution if K is 0."""
    gone = tuple(
        f".{end}" for end in (*endings, *("conv_weight", "conv_bias", "conv.x") * (K == 0))
    )
    return {
        name: x
        for name, x in inputs.items()
        if not f".{name}".endswith(gone) and (with_state or not name.startswith("state"))
    }


PROJECTION_BIASES = "up_bias", "q_bias", "k_bias", "v_bias"


def mlstm_input_inputs(
    B: int, T: int, D: int, heads: tuple[int, int], K: int = 4, *, side: int = 4,
    with_state: bool = True, with_biases: bool = False, seed: int = 0, way: str = "weights",
) -> Inputs:  # fmt: skip
    """heads: E and NH. K = 0 leaves the convolution out, and the state with it."""
    randn, (E, NH) = random_source(seed), heads
    inputs = {"x": randn(B, T, D), f"{way}.up": scaled(randn(2 * E, D))}
    inputs |= {f"{way}.{name}": scaled(randn(E // side, side, side)) for name in "qkv"}
    inputs |= {
        f"{way}.gate": scaled(randn(2, NH, 3 * E)), f"{way}.gate_bias": randn(2, NH),
        f"{way}.conv_weight": scaled(randn(E, K)), f"{way}.conv_bias": randn(E),
        f"{way}.up_bias": randn(2 * E), f"{way}.q_bias": randn(E), f"{way}.k_bias": randn(E),
        f"{way}.v_bias": randn(E), "state.x": randn(B, max(K - 1, 0), E),
    }  # fmt: skip
    with_state = with_state and K > 0
    return _leave_out(inputs, K, with_state, () if with_biases else PROJECTION_BIASES)


def mlstm_output_inputs(
    B: int, T: int, heads: tuple[int, int], D: int, *, with_bias: bool = True, seed: int = 0,
    way: str = "weights",
) -> Inputs:  # fmt: skip
    """heads: NH and DH."""
    randn, (NH, DH) = random_source(seed), heads
    E = NH * DH
    inputs = {
        "h": randn(B, NH, T, DH), "c": randn(B, T, E), "z": randn(B, T, E), f"{way}.norm": randn(E),
        f"{way}.skip": randn(E), f"{way}.down": scaled(randn(D, E)), f"{way}.down_bias": randn(D),
    }  # fmt: skip
    return _leave_out(inputs, 1, True, () if with_bias else ("down_bias",))


def mlstm_block_inputs(
    B: int, T: int, D: int, heads: tuple[int, int], K: int = 4, *, with_state: bool = True,
    with_biases: bool = False, seed: int = 0,
) -> Inputs:  # fmt: skip
    """heads: E and NH."""
    E, NH = heads
    options: dict[str, Any] = {"with_biases": with_biases, "seed": seed, "with_state": with_state}
    inputs = mlstm_input_inputs(B, T, D, heads, K, way="weights.input", **options)
    if "state.x" in inputs:
        inputs["state.conv.x"] = inputs.pop("state.x")
    output = mlstm_output_inputs(
        B, T, (NH, E // NH), D, with_bias=with_biases, seed=seed, way="weights.output"
    )
    inputs |= {name: x for name, x in output.items() if name.startswith("weights")}
    if with_state:
        inputs |= mlstm_state(random_source(seed), B, NH, E // NH, E // NH, way="state.cell")
    return inputs


def large_input_inputs(
    B: int, T: int, D: int, heads: tuple[int, int, int], *, with_biases: bool = True, seed: int = 0
) -> Inputs:
    """heads: NH, DQK and DHV."""
    randn, (NH, DQK, DHV) = random_source(seed), heads
    rows = {"q": NH * DQK, "k": NH * DQK, "v": NH * DHV, "o": NH * DHV}
    inputs = {"x": randn(B, T, D), "weights.norm": randn(D), "weights.norm_bias": randn(D)}
    inputs |= {f"weights.{name}": scaled(randn(size, D)) for name, size in rows.items()}
    inputs["weights.gates"] = scaled(randn(2, NH, D))
    inputs |= {f"weights.{name}_bias": randn(size) for name, size in rows.items()}
    inputs["weights.gate_bias"] = randn(2, NH)
    biases = tuple(f"weights.{name}_bias" for name in ("norm", *rows))
    return _leave_out(inputs, 1, True, () if with_biases else biases)


def large_output_inputs(
    B: int, T: int, D: int, heads: tuple[int, int], *, without_part: str = "", seed: int = 0
) -> Inputs:
    """heads: NH and DHV. What `without_part` names is left out."""
    randn, (NH, DHV) = random_source(seed), heads
    V = NH * DHV
    inputs = {
        "h": randn(B, NH, T, DHV), "o": randn(B, T, V), "weights.norm": randn(V),
        "weights.norm_bias": randn(V), "weights.down": scaled(randn(D, V)),
        "weights.down_bias": randn(D), "residual": randn(B, T, D),
    }  # fmt: skip
    return _leave_out(inputs, 1, True, tuple(without_part.split()))


# ---- The table ---------------------------------------------------------------------------------

WIDTH = st.integers(1, 40)
E_AND_NH = st.sampled_from([(16, 1), (16, 2), (32, 4), (48, 3), (80, 5), (16, 16), (24, 2)])
SELDOM = st.sampled_from([False, False, False, True])
WITH_STATE = {"with_state": st.booleans()}
FORGET_GATE = {"forget_gate": st.sampled_from(["sigmoid", "exp"])}
EMPTY = {"empty": st.sampled_from([0.0, 0.4, 1.0])}
K = st.integers(0, 8)
# A norm of few numbers is steep where they are alike, and hides what scales its input: norms of the
# fused blocks have a large eps, and so have norms of one or two numbers.
STEADY = st.sampled_from([0.3, 1.0])

OPS = {
    "mlstm": Op(
        ops.mlstm,
        lambda *args, chunk_size=None, **options: mlstm_reference.recurrent(*args, **options),
        mlstm_inputs,
        {"NH": st.integers(1, 3), "DQK": WIDTH, "DHV": WIDTH} | WITH_STATE,
        {"NH": 3, "DQK": 5, "DHV": 7},
        {
            "chunk_size": st.sampled_from([None, 1, 2, 5, 16, 33, 64, 1000]),
            "eps": st.sampled_from([0.0, 1e-6, 0.1]),
        },
        kinds={"state": MLSTMState},
        time={"q": 2, "k": 2, "v": 2, "log_i": 2, "log_f": 2, "0": 2},
        over_time=("q", "k", "v", "log_i", "log_f"),
        recurrent=True,
        cell_state="state",
        packs_weights=False,
        joined=("log_i", "log_f", "state.m"),
    ),
    "slstm": Op(
        ops.slstm,
        slstm_reference.recurrent,
        slstm_inputs,
        {"NH": st.integers(1, 3), "DH": WIDTH, "with_bias": st.booleans()} | WITH_STATE | EMPTY,
        {"NH": 3, "DH": 7, "empty": 0.2},
        FORGET_GATE,
        kinds={"state": SLSTMState},
        recurrent=True,
        cell_state="state",
        packs_weights=False,
    ),
    "causal_conv": Op(
        ops.causal_conv,
        formulas.causal_conv,
        conv_inputs,
        {"D": WIDTH, "K": st.integers(1, 8), "with_bias": st.booleans()} | WITH_STATE,
        {"D": 21},
        {"activation": st.sampled_from([None, "silu"])},
        {"activation": "silu"},
        kinds={"state": ConvState},
        recurrent=True,
    ),
    "layer_norm": Op(
        lambda *, num_groups=3, **arguments: ops.layer_norm(num_groups=num_groups, **arguments),
        lambda *, num_groups=3, **arguments: formulas.layer_norm(
            num_groups=num_groups, **arguments
        ),
        group_norm_inputs,
        {"groups": st.just(3), "width": WIDTH},
        {"groups": 3, "width": 7},
        {"eps": STEADY},
        packs_weights=False,
    ),
    "rms_norm": Op(
        ops.rms_norm,
        formulas.rms_norm,
        norm_inputs,
        {"D": st.integers(1, 80), "with_bias": st.booleans()},
        {"D": 21, "with_bias": True},
        {"eps": STEADY},
        packs_weights=False,
    ),
    "gated_feedforward": Op(
        ops.gated_feedforward,
        formulas.gated_feedforward,
        feedforward_inputs,
        {
            "D": WIDTH, "inner": st.integers(1, 70), "with_norm": st.booleans(),
            "without_bias": st.sampled_from(["", "norm up value down", "norm", "up", "value down"]),
            "two": st.booleans(),
        },
        {"D": 21, "inner": 35, "without_bias": "norm"},
        {
            "norm": st.sampled_from(["layer", "rms"]), "residual": st.booleans(),
            "activation": st.sampled_from(["gelu", "silu"]), "eps": STEADY,
        },
        {"residual": True},
        kinds={"weights": ops.FeedForwardWeights},
    ),
    "mlstm_input": Op(
        ops.mlstm_input,
        formulas.mlstm_input,
        mlstm_input_inputs,
        {"D": WIDTH, "heads": E_AND_NH, "K": K, "with_biases": SELDOM}
        | {"side": st.sampled_from([4, 4, 4, 1, 8])} | WITH_STATE,
        {"D": 21, "heads": (48, 3)},
        kinds={"weights": ops.MLSTMInputWeights, "state": ConvState},
        time={f"0.{name}": 2 for name in ("q", "k", "v", "log_i", "log_f")},
        recurrent=True,
    ),
    "mlstm_output": Op(
        ops.mlstm_output,
        formulas.mlstm_output,
        mlstm_output_inputs,
        {
            "heads": st.sampled_from([(1, 16), (2, 8), (2, 24), (3, 16), (4, 4), (16, 3), (2, 7)]),
            "D": WIDTH, "with_bias": st.booleans(),
        },
        {"heads": (4, 12), "D": 21},
        {"eps": st.sampled_from([1e-5, 0.1])},
        kinds={"weights": ops.MLSTMOutputWeights},
        time={"h": 2},
        over_time=("h", "c", "z"),
    ),
    "mlstm_block": Op(
        ops.mlstm_block,
        formulas.mlstm_block,
        mlstm_block_inputs,
        {"D": WIDTH, "heads": E_AND_NH, "K": K, "with_biases": SELDOM}
        | WITH_STATE,
        {"D": 21, "heads": (48, 3)},
        {"norm_eps": STEADY, "eps": st.sampled_from([0.0, 0.0, 0.1])},
        {"norm_eps": 1.0},
        kinds={
            "weights": ops.MLSTMBlockWeights, "weights.input": ops.MLSTMInputWeights,
            "weights.output": ops.MLSTMOutputWeights, "state": LayerState, "state.conv": ConvState,
            "state.cell": MLSTMState,
        },
        recurrent=True,
        cell_state="state.cell",
    ),
    "slstm_layer": Op(
        ops.slstm_layer,
        formulas.slstm_layer,
        slstm_layer_inputs,
        {"NH": st.integers(1, 3), "DH": WIDTH} | WITH_STATE | EMPTY,
        {"NH": 3, "DH": 7, "empty": 0.2},
        FORGET_GATE,
        kinds={"weights": ops.SLSTMLayerWeights, "state": SLSTMState},
        over_time=("convolved", "raw"),
        recurrent=True,
        cell_state="state",
    ),
    "slstm_block": Op(
        ops.slstm_block,
        formulas.slstm_block,
        slstm_block_inputs,
        {
            "NH": st.integers(1, 3), "DH": st.sampled_from([16, 32, 7]), "inner": WIDTH, "K": K,
            "with_biases": st.booleans(),
        }
        | WITH_STATE | EMPTY,
        {"NH": 3, "DH": 16, "inner": 35, "empty": 0.2},
        {"eps": STEADY} | FORGET_GATE,
        {"eps": 1.0},
        kinds={
            "weights": ops.SLSTMBlockWeights, "state": LayerState, "state.conv": ConvState,
            "state.cell": SLSTMState,
        },
        recurrent=True,
        cell_state="state.cell",
    ),
    "large_input": Op(
        ops.large_input,
        formulas.large_input,
        large_input_inputs,
        {
            "D": st.integers(3, 40), "with_biases": st.booleans(),
            "heads": st.sampled_from([(1, 1, 3), (2, 4, 8), (3, 7, 5), (1, 33, 20), (9, 2, 2)]),
        },
        {"D": 21, "heads": (3, 5, 7)},
        {
            "eps": st.sampled_from([1e-6, 0.1]),
            "gate_soft_cap": st.sampled_from([0.0, 0.5, 15.0]),
        },
        kinds={"weights": ops.LargeInputWeights},
        time=dict.fromkeys(("q", "k", "v", "log_i", "log_f"), 2),
    ),
    "large_output": Op(
        ops.large_output,
        formulas.large_output,
        large_output_inputs,
        {
            "D": WIDTH, "heads": st.sampled_from([(1, 3), (2, 8), (3, 5), (1, 20), (9, 2)]),
            "without_part": st.sampled_from(
                ["", "norm_bias down_bias residual", "norm_bias", "down_bias", "residual"]
            ),
        },
        {"D": 21, "heads": (3, 7)},
        {"eps": st.sampled_from([0.1, 1.0])},
        {"eps": 0.1},
        kinds={"weights": ops.LargeOutputWeights},
        time={"h": 2},
        over_time=("h", "o", "residual"),
    ),
}  # fmt: skip


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
