"""Every native operator checks all that it is given before it touches memory.

CASES holds a valid call of each: tensors by their shapes, integers after "=", all else by value. A
size of one argument only, which nothing contradicts, has "~" in front of it.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from op_cases import needs_native
from torch import Tensor

pytestmark = needs_native

SIZES = {
    "B": 3, "T": 5, "NH": 2, "DQK": 3, "DHV": 4, "D": 16, "DH": 8, "E": 32, "EH": 16, "F": 6,
    "R": 7, "K": 3, "chunk": 2, "tiles": 2, "steps": 3,
}  # fmt: skip

CONV = {"x": "B T D", "weight": "D K", "bias": "D", "before": "B K-1 D", "reset": "B T"}
MLSTM = {
    "q": "B NH T DQK", "k": "B NH T DQK", "v": "B NH T DHV", "log_i": "B NH T", "log_f": "B NH T",
    "m_0": "B NH", "reset": "B T", "eps": 0.1, "chunk_size": "=chunk",
}  # fmt: skip
INPUT = {
    "x": "B T D", "up": "2*E D", "q": "E/4 4 4", "k": "E/4 4 4", "v": "E/4 4 4",
    "gate": "2*NH 3*E", "gate_bias": "2*NH", "conv_weight": "E K", "conv_bias": "E",
    "before": "B K-1 E", "reset": "B T",
}  # fmt: skip
OUTPUT = {
    "h": "B NH T EH", "c": "B T E", "z": "B T E", "norm": "E", "skip": "E", "down": "~D E",
    "eps": 0.1,
}  # fmt: skip
BLOCK = {
    **INPUT, "m_0": "B NH", "norm": "E", "skip": "E", "down": "D E", "eps": 0.1,
    "chunk_size": "=chunk",
}  # fmt: skip
SLSTM = {"R": "NH 4 DH DH", "bias": "NH 4 DH", "state": "4 B NH DH", "reset": "B T"}
SCAN = {
    "h": "B T NH DH", "final": "4 B NH DH", "saved": "NH B T 5 DH", "dh": "B T NH DH",
    "d_final": "4 B NH DH",
}  # fmt: skip
LAYER = {"convolved": "B T D", "raw": "B T D", "W": "NH 4 DH DH", **SLSTM}
SLSTM_BLOCK = {
    "x": "B T D", "norm": "D", "conv_weight": "D K", "conv_bias": "D", "W": "NH 4 DH DH",
    "R": "NH 4 DH DH", "bias": "NH 4 DH", "head_norm": "D", "ff_norm": "D", "up": "2*F D",
    "down": "D F", "up_bias": "2*F", "down_bias": "D", "before": "B K-1 D", "reset": "B T",
    "eps": 0.1, "tiles": "=tiles", "steps": "=steps",
}  # fmt: skip
NORM = {"x": "~R D", "weight": "D", "bias": "D", "groups": "=NH", "rms": True, "eps": 0.1}
FEEDFORWARD = {
    "x": "~R D", "norm": "D", "norm_bias": "D", "up": "F D", "value": "F D", "down": "D F",
    "up_bias": "F", "value_bias": "F", "down_bias": "D", "silu": True, "residual": True,
    "rms": True, "eps": 0.1,
}  # fmt: skip
LARGE_INPUT = {
    "x": "~B ~T D", "norm": "D", "norm_bias": "D", "q": "NH*DQK D", "k": "NH*DQK D",
    "v": "NH*DHV D", "o": "NH*DHV D", "gates": "2*NH D", "q_bias": "NH*DQK", "k_bias": "NH*DQK",
    "v_bias": "NH*DHV", "o_bias": "NH*DHV", "gate_bias": "2*NH", "eps": 0.1, "cap": 15.0,
}  # fmt: skip
LARGE_OUTPUT = {
    "h": "B NH T DHV", "o": "B T NH*DHV", "norm": "NH*DHV", "norm_bias": "NH*DHV",
    "down": "D NH*DHV", "down_bias": "D", "eps": 0.1,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "conv": {**CONV, "silu": True},
    "conv_grad": {**CONV, "silu": True, "dy": "B T D"},
    "norm": NORM,
    "norm_grad": {**NORM, "dy": "R D"},
    "feedforward": {**FEEDFORWARD, "save": True},
    "feedforward_grad": {**FEEDFORWARD, "preact": "R 2*F", "dy": "R D"},
    "mlstm": {**MLSTM, "C_0": "B NH DQK DHV", "n_0": "B NH DQK", "save": True},
    "mlstm_grad": {
        **MLSTM, "h": "B NH T DHV", "C_chunks": "B NH T/chunk DQK DHV",
        "n_chunks": "B NH T/chunk DQK", "m_steps": "B NH T", "normalizer": "B NH T",
        "dh": "B NH T DHV", "dC_T": "B NH DQK DHV", "dn_T": "B NH DQK", "initial": True,
    },
    "mlstm_input": INPUT,
    "mlstm_input_grad": {
        **INPUT, "a": "B T E", "f_preact": "B NH T", "dz": "B T E", "dc": "B T E", "dq": "B T E",
        "dk": "B T E", "dv": "B T E", "dlog_i": "B NH T", "dlog_f": "B NH T",
    },
    "mlstm_output": OUTPUT,
    "mlstm_output_grad": {**OUTPUT, "dy": "B T D"},
    "mlstm_block": {**BLOCK, "C_0": "B NH EH EH", "n_0": "B NH EH", "save": True},
    "mlstm_block_grad": {
        **BLOCK, "a": "B T E", "z": "B T E", "h": "B NH T EH", "f_preact": "B NH T",
        "log_i": "B NH T", "log_f": "B NH T", "C_chunks": "B NH T/chunk EH EH",
        "n_chunks": "B NH T/chunk EH", "m_steps": "B NH T", "normalizer": "B NH T",
        "dy": "B T D", "dC_T": "B NH EH EH", "dn_T": "B NH EH", "more_i": "B NH T",
        "more_f": "B NH T", "initial": True,
    },
    "slstm": {**SLSTM, "x": "B T NH 4 DH", "exp_gate": True, "save": True},
    "slstm_grad": {**SLSTM, **SCAN},
    "slstm_layer": {**LAYER, "exp_gate": True, "save": True},
    "slstm_layer_grad": {**{k: v for k, v in LAYER.items() if k != "bias"}, **SCAN, "inputs": True},
    "slstm_block": {**SLSTM_BLOCK, "state": "4 B NH DH", "exp_gate": True, "save": True},
    "slstm_block_grad": {
        **SLSTM_BLOCK, "final": "4 B NH DH", "h": "B*T D", "saved": "B*T 5 D", "preact": "B*T 2*F",
        "states": "B*T/steps 4 D", "dy": "B T D", "d_after": "B K-1 D", "d_final": "4 B NH DH",
    },
    "large_input": LARGE_INPUT,
    "large_input_grad": {
        **LARGE_INPUT, "log_i": "B NH T", "f": "B NH T", "dq": "B T NH*DQK", "dk": "B T NH*DQK",
        "dv": "B T NH*DHV", "d_o": "B T NH*DHV", "dlog_i": "B NH T", "dlog_f": "B NH T",
    },
    "large_output": {**LARGE_OUTPUT, "residual": "B T D"},
    "large_output_grad": {**LARGE_OUTPUT, "dy": "B T D"},
    "lanes": {},
}  # fmt: skip


def size_of(text: str, sizes: dict[str, int]) -> int:
    """A size such as "2*E", "K-1" or "T/chunk", which is rounded up."""
    text = text.removeprefix("~")
    if "*" in text:
        first, rest = text.split("*", 1)
        return size_of(first, sizes) * size_of(rest, sizes)
    if "/" in text:
        over, under = (size_of(part, sizes) for part in text.split("/"))
        return -(-over // under)
    if "-" in text:
        whole, less = text.split("-")
        return sizes[whole] - int(less)
    return sizes[text] if text in sizes else int(text)


def valid_call(op: str, sizes: dict[str, int], seed: int = 0) -> dict[str, Any]:
    """Arguments that the operator takes, tensors random."""
    generator, arguments = torch.Generator().manual_seed(seed), {}
    for name, value in CASES[op].items():
        if isinstance(value, str) and value.startswith("="):
            value = size_of(value[1:], sizes)
        elif isinstance(value, str):
            shape = [size_of(size, sizes) for size in value.split()]
            value = 0.5 * torch.randn(shape, generator=generator)
            value = value > 0.4 if name == "reset" else value
        arguments[name] = value
    return arguments


def call(op: str, arguments: dict[str, Any]) -> Any:
    return getattr(torch.ops.openxlstm, op)(**arguments)


def error_of(op: str, arguments: dict[str, Any]) -> str | None:
    try:
        call(op, arguments)
    except RuntimeError as error:
        return str(error)
    return None


def wrong_tensors(x: Tensor, shape: str) -> Iterator[tuple[str, Tensor]]:
    yield "dtype", x.to(torch.uint8) if x.dtype == torch.bool else x.double()
    yield "rank", x[None]
    yield "rank", x[0]
    yield "strides", torch.stack([x, x], dim=-1)[..., 0]
    yield "device", x.to("meta")
    for dim, size in enumerate(shape.split()):
        if not size.startswith("~"):
            length = x.shape[dim]
            yield f"size {size}", x.narrow(dim, 0, length - 1).contiguous()
            yield f"size {size}", torch.cat([x, x.narrow(dim, 0, 1)], dim)


each_operator = pytest.mark.parametrize("op", CASES)


def test_each_operator_has_a_case() -> None:
    registered = torch._C._dispatch_get_all_op_names()
    found = {name.split("::")[1] for name in registered if name.startswith("openxlstm::")}
    assert found == {*CASES, "watch"}  # which reads addresses alone


@each_operator
@pytest.mark.parametrize(
    "sizes", [{}, {"B": 0, "tiles": 1}, {"T": 0, "steps": 1}, {"R": 0}], ids=str
)
def test_valid_calls_run(op: str, sizes: dict[str, int]) -> None:
    """Empty batches and sequences included."""
    call(op, valid_call(op, SIZES | sizes))


@each_operator
def test_a_wrong_tensor_raises(op: str) -> None:
    valid, accepted = valid_call(op, SIZES), []
    for name, x in valid.items():
        for what, wrong in wrong_tensors(x, CASES[op][name]) if isinstance(x, Tensor) else ():
            message = error_of(op, valid | {name: wrong})
            named = message is not None and message.startswith(f"openxlstm.{op}: ")
            if not named or "\n" in str(message):
                accepted.append((name, what, message))
    assert not accepted


@each_operator
def test_a_wrong_integer_raises(op: str) -> None:
    valid = valid_call(op, SIZES)
    integers = [name for name, value in valid.items() if type(value) is int]
    tried = itertools.product(integers, (0, -1, 1 << 40))
    assert all(f"openxlstm.{op}" in (error_of(op, valid | {n: v}) or "") for n, v in tried)


@each_operator
def test_without_optional_tensors_it_runs_or_raises(op: str) -> None:
    schema = getattr(torch.ops.openxlstm, op).default._schema
    optional = [a.name for a in schema.arguments if str(a.type) == "Optional[Tensor]"]
    valid = valid_call(op, SIZES)
    for count in (1, len(optional)):
        for names in itertools.combinations(optional, count):
            message = error_of(op, valid | dict.fromkeys(names))
            assert message is None or message.startswith(f"openxlstm.{op}: "), names


def test_limits_are_the_extensions() -> None:
    """Longer chunks and convolutions would overrun what the kernels have on the stack."""
    from openxlstm.ops import _native  # pyright: ignore[reportAttributeAccessIssue]

    for limit, op, size in (
        (_native.MAX_CHUNK, "mlstm", "chunk"),
        (_native.MAX_KERNEL, "conv", "K"),
    ):
        assert error_of(op, valid_call(op, SIZES | {size: limit})) is None
        assert "must be from 1 to" in (
            error_of(op, valid_call(op, SIZES | {size: limit + 1})) or ""
        )


@pytest.mark.parametrize(
    ("op", "names"), [("mlstm", "qkv"), ("mlstm_grad", ["q", "k", "v", "h", "dh"]), ("slstm", "x")]
)
def test_rows_may_lie_anywhere(op: str, names: Any) -> None:
    """Only the last dimension of these has to be dense."""
    valid = valid_call(op, SIZES)
    strided = {name: valid[name].transpose(0, 1).contiguous().transpose(0, 1) for name in names}
    assert not any(x.is_contiguous() for x in strided.values())
    expected, found = call(op, valid), call(op, valid | strided)
    for x, y in zip(expected, found, strict=True):
        assert math.isnan(x.sum()) or torch.equal(x, y)
