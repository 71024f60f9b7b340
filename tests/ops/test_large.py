"""Around the cell of a large block, against its formulas; the native ones for any shape."""

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from op_cases import (
    BATCHES,
    call,
    check_few_rows,
    check_native,
    large_input_inputs,
    large_output_inputs,
    needs_native,
)
from tolerances import assert_close
from torch import Tensor

from openxlstm.ops import large_input, large_output

HEADS = st.sampled_from([(1, 1, 3), (2, 4, 8), (3, 7, 5), (4, 16, 32), (1, 33, 20), (9, 2, 2)])
"""NH, DQK, DHV."""
each_biases = pytest.mark.parametrize("with_biases", [False, True])


def rms_norm(x: Tensor, weight: Tensor, bias: Tensor | float, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


@each_biases
@pytest.mark.parametrize(
    "options", [{}, {"eps": 0.2}, {"gate_soft_cap": 0.0}, {"gate_soft_cap": 0.5}]
)
def test_plain_input_is_the_formula(with_biases: bool, options: dict[str, Any]) -> None:
    x = large_input_inputs(2, 3, 5, 2, 3, 4, with_biases=with_biases)
    actual = call(large_input, x, **options, backend="torch")
    u = rms_norm(x["x"], x["norm_weight"], x.get("norm_bias", 0.0), options.get("eps", 1e-6))
    for i, name in enumerate("qkv"):
        y = u @ x[f"{name}_weight"].T + x.get(f"biases.{i}", 0.0)
        heads = torch.stack(y.chunk(2, dim=-1), dim=1)
        assert_close(getattr(actual, name), heads, name)
    assert_close(actual.o, u @ x["o_weight"].T + x.get("biases.3", 0.0), "o")
    cap = options.get("gate_soft_cap", 15.0)
    gates = []
    for weight, bias in zip(x["gate_weight"], x["gate_bias"], strict=True):
        preact = (u @ weight.T + bias).mT
        gates.append(cap * torch.tanh(preact / cap) if cap else preact)
    assert_close(actual.log_i, gates[0], "log_i")
    assert_close(actual.log_f, -torch.log1p(torch.exp(-gates[1])), "log_f")


@each_biases
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("eps", [1e-6, 0.2])
def test_plain_output_is_the_formula(with_biases: bool, with_residual: bool, eps: float) -> None:
    x = large_output_inputs(2, 3, 5, 2, 4, with_biases=with_biases, with_residual=with_residual)
    heads = []
    for head in x["h"].unbind(1):
        deviation = head - head.mean(-1, keepdim=True)
        heads.append(deviation / (deviation.square().mean(-1, keepdim=True) + eps).sqrt())
    normed = torch.cat(heads, -1) * x["norm_weight"] + x.get("norm_bias", 0.0)
    y = (normed / (1 + torch.exp(-x["o"]))) @ x["out_weight"].T + x.get("out_bias", 0.0)
    expected = y + x.get("residual", 0.0)
    assert_close(call(large_output, x, eps=eps, backend="torch"), expected)


@needs_native
@settings(max_examples=100)
@given(
    batch=BATCHES,
    heads=HEADS,
    D=st.integers(3, 40),
    with_biases=st.booleans(),
    eps=st.sampled_from([1e-6, 0.1]),
    gate_soft_cap=st.sampled_from([0.0, 1.0, 15.0]),
    seed=st.integers(0, 999),
)
@example((2, 130), (4, 16, 32), 128, True, 1e-6, 15.0, 0)
@example((1, 250), (3, 7, 5), 300, False, 1e-6, 0.0, 0)
def test_native_input_is_the_plain(
    batch: tuple[int, int], heads: tuple[int, int, int], D: int, with_biases: bool, eps: float,
    gate_soft_cap: float, seed: int,
) -> None:  # fmt: skip
    x = large_input_inputs(*batch, D, *heads, with_biases=with_biases, seed=seed)
    check_native(large_input, x, eps=eps, gate_soft_cap=gate_soft_cap)


@needs_native
@settings(max_examples=100)
@given(
    batch=BATCHES,
    heads=HEADS,
    D=st.integers(1, 40),
    with_biases=st.booleans(),
    with_residual=st.booleans(),
    eps=st.sampled_from([1e-5, 0.1]),
    seed=st.integers(0, 999),
)
@example((2, 130), (4, 16, 32), 128, True, True, 1e-6, 0)
@example((1, 250), (3, 7, 5), 300, False, False, 1e-6, 0)
def test_native_output_is_the_plain(
    batch: tuple[int, int], heads: tuple[int, int, int], D: int, with_biases: bool,
    with_residual: bool, eps: float, seed: int,
) -> None:  # fmt: skip
    NH, _, DHV = heads
    eps = eps if DHV > 2 else 1.0  # two numbers less their mean are nearly nothing
    options = {"with_biases": with_biases, "with_residual": with_residual, "seed": seed}
    check_native(large_output, large_output_inputs(*batch, D, NH, DHV, **options), eps=eps)


@needs_native
@pytest.mark.parametrize("bias", ["norm_bias", "out_bias"])
def test_native_output_with_one_bias(bias: str) -> None:
    x = large_output_inputs(1, 11, 5, 2, 4)
    del x[bias]
    check_native(large_output, x)


@needs_native
def test_capped_gates_are_finite() -> None:
    """Far out a gate is its cap, and its slope nothing."""
    x = large_input_inputs(2, 9, 5, 2, 3, 4)
    x["gate_weight"] *= 300
    check_native(large_input, x)
    narrow = call(large_input, {name: part.float() for name, part in x.items()}, backend="native")
    assert narrow.log_i.abs().max() <= 15


def test_gates_of_bfloat16_are_float32() -> None:
    x = large_input_inputs(2, 9, 5, 2, 3, 4)
    narrow = call(large_input, {name: part.bfloat16() for name, part in x.items()})
    assert {part.dtype for part in narrow[:3]} == {torch.bfloat16}
    assert narrow.log_i.dtype == narrow.log_f.dtype == torch.float32


@needs_native
def test_few_rows_are_left_to_torch() -> None:
    check_few_rows(large_input, *(large_input_inputs(1, T, 5, 2, 3, 4) for T in (8, 9)))
    check_few_rows(large_output, *(large_output_inputs(1, T, 5, 2, 4) for T in (8, 9)))
