"""Norms, the convolution and the fused blocks: cases by hand, and what is left to others."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_cases import OPS, assert_all_close, everything, needs_native
from tolerances import assert_close

from openxlstm.ops import TABLE, FeedForwardWeights, causal_conv, gated_feedforward, layer_norm
from openxlstm.ops.dispatch import BackendError
from openxlstm.ops.native.slstm_block import num_tasks
from openxlstm.states import ConvState

each_conv_backend = pytest.mark.parametrize("backend", [b.name for b in TABLE["causal_conv"]])
each_norm_backend = pytest.mark.parametrize("backend", [b.name for b in TABLE["layer_norm"]])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """With more threads the fused blocks leave few samples to the unfused ops."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@each_conv_backend
def test_newest_weight_is_last_by_hand(backend: str) -> None:
    x = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1).expand(4, 3, 1)
    state = ConvState(torch.tensor([0.01, 0.1]).view(1, 2, 1).expand(4, 2, 1))
    weight, bias = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([1000.0])
    y, after = causal_conv(x, weight, bias, state, backend=backend)
    assert y[3].flatten().tolist() == pytest.approx([1001.23, 1012.3, 1123.0])
    assert after.x[3].flatten().tolist() == [10.0, 100.0]


@each_conv_backend
def test_a_step_is_seen_by_K_steps_of_its_channel_and_sample(backend: str) -> None:
    inputs = {way: x.float() for way, x in OPS["causal_conv"].make(2, 10, 3, 4).items()}
    x, weight, bias, before = inputs.values()
    other = x.clone()
    other[0, 3, 1] += 1.0
    y, y_other = (
        causal_conv(each, weight, bias, ConvState(before), backend=backend)[0]
        for each in (x, other)
    )
    expected = torch.zeros(2, 10, 3, dtype=torch.bool)
    expected[0, 3:7, 1] = True
    assert torch.equal(y_other != y, expected)


@each_conv_backend
def test_nan_does_not_pass_a_reset(backend: str) -> None:
    x, weight = torch.randn(2, 70, 5), torch.randn(5, 4)
    reset = torch.zeros(2, 70, dtype=torch.bool)
    reset[:, [5, 65]] = True
    x[:, [4, 64]] = math.nan
    y, _ = causal_conv(x, weight, reset=reset, backend=backend)
    assert y.isfinite().all(-1).logical_not().nonzero()[:, 1].unique().tolist() == [4, 64]


@each_norm_backend
def test_a_large_mean_is_no_loss(backend: str) -> None:
    """The variance is that of what is left of a row, not a difference of large squares."""
    x, weight = (1000 + torch.randn(3, 50)), torch.randn(50)
    y = layer_norm(x, weight, backend=backend)
    expected = OPS["layer_norm"].truth(x=x.double(), weight=weight.double(), num_groups=1)
    assert_close(y, expected, tolerance=1e-3)


@each_norm_backend
def test_a_row_of_equals_is_zero(backend: str) -> None:
    """And its gradient is finite."""
    op = OPS["layer_norm"]
    inputs = {"x": torch.full((3, 1, 21), 0.5), "weight": torch.ones(21)}
    after = everything(lambda x: op.outputs(x, backend=backend), inputs)
    assert not after["out 0"].any()
    assert after["d x"].isfinite().all()
    assert after["d x"].any()


def test_rms_of_bfloat16_is_taken_in_float32() -> None:
    op = OPS["rms_norm"]
    x, ones = torch.randn(1, 3, 300).bfloat16(), torch.ones(300).bfloat16()
    exact = op.truth(x.double(), ones.double())
    assert (op.function(x, ones).double() - exact).abs().max() <= exact.abs().max() / 2**8


def test_gates_of_a_large_block_are_float32_and_capped() -> None:
    op, (inputs, options) = OPS["large_input"], OPS["large_input"].example()
    inputs["weights.gates"] *= 300
    narrow = op.outputs(op.cast(inputs, torch.bfloat16), **options)
    assert {narrow[name].dtype for name in "qkv"} == {torch.bfloat16}
    assert narrow["log_i"].dtype == narrow["log_f"].dtype == torch.float32
    for backend in TABLE["large_input"]:
        wide = op.cast(inputs, torch.float32)
        actual = everything(lambda x, b=backend.name: op.outputs(x, backend=b, **options), wide)
        expected = everything(lambda x: op.outputs(x, op.truth, **options), inputs)
        assert_all_close(actual, expected, gradients=1e-3)
        assert actual["out log_i"].abs().max() <= 15


@pytest.mark.parametrize(("name", "way"), [("mlstm_input", "gate_bias"), ("slstm_layer", "bias")])
def test_extreme_gates_are_finite(name: str, way: str) -> None:
    op, (inputs, options) = OPS[name], OPS[name].example()
    inputs[f"weights.{way}"] = 200 * inputs[f"weights.{way}"].sign()
    for backend in TABLE[name]:
        narrow = op.cast(inputs, torch.float32)
        actual = everything(lambda x, b=backend.name: op.outputs(x, backend=b, **options), narrow)
        assert all(x.isfinite().all() for x in actual.values())


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_large_gates_of_a_feedforward_are_finite(activation: str) -> None:
    """Far out the activation is the identity or nothing, and so is its slope."""
    op, (inputs, _) = OPS["gated_feedforward"], OPS["gated_feedforward"].example()
    inputs["weights.up"] *= 300
    options: dict[str, Any] = {"activation": activation}
    expected = everything(lambda x: op.outputs(x, op.truth, **options), inputs)
    for backend in TABLE["gated_feedforward"]:
        narrow = op.cast(inputs, torch.float32)
        actual = everything(lambda x, b=backend.name: op.outputs(x, backend=b, **options), narrow)
        finite = {key: x.nan_to_num() for key, x in expected.items()}  # exp(300) in the truth
        assert all(x.isfinite().all() for x in actual.values())
        assert_close(actual["out 0"], finite["out 0"])


@pytest.mark.parametrize(
    ("op", "changes", "message"),
    [
        ("norm='batch'", {"norm": "batch"}, "norm must be 'layer' or 'rms', not 'batch'"),
        ("activation", {"activation": "relu"}, "activation must be 'gelu' or 'silu', not 'relu'"),
    ],
)
def test_choices_of_a_feedforward(op: str, changes: dict[str, Any], message: str) -> None:
    up, down = torch.zeros(10, 3), torch.zeros(3, 5)
    weights = FeedForwardWeights(None, None, up, None, down)
    with pytest.raises(ValueError, match=message):
        gated_feedforward(torch.zeros(2, 3), weights, **changes)
    for name in ("value", "norm"):
        lacking = weights._replace(**{f"{name}_bias": torch.zeros(3)})
        with pytest.raises(ValueError, match=f"weights.{name}_bias needs weights.{name}, which"):
            gated_feedforward(torch.zeros(2, 3), lacking)


@pytest.mark.parametrize(
    ("name", "options", "gone", "message"),
    [
        ("slstm", {"forget_gate": "tanh"}, "", "forget_gate must be 'sigmoid' or 'exp', not 'tan"),
        ("slstm_layer", {"forget_gate": "tanh"}, "", "forget_gate must be 'sigmoid' or 'exp'"),
        ("slstm_block", {"forget_gate": "tanh"}, "", "forget_gate must be 'sigmoid' or 'exp'"),
        ("mlstm", {"chunk_size": 0}, "", "chunk_size must be at least 1, not 0"),
        ("causal_conv", {"activation": "gelu"}, "", "activation must be 'silu' or None, not 'gelu"),
        ("layer_norm", {"num_groups": 4}, "", "num_groups must divide D = 21, which 4 does not"),
        ("layer_norm", {"num_groups": 0}, "", "num_groups must divide"),
        ("mlstm_input", {}, "weights.conv_bias", "given both or neither"),
        (
            "mlstm_block",
            {},
            "weights.input.conv_weight",
            "weights.input.conv_weight and weights.in",
        ),
        ("slstm_block", {}, "weights.conv_weight", "need weights.conv_weight, which was not given"),
    ],
)
def test_options_and_what_goes_together(
    name: str, options: dict[str, Any], gone: str, message: str
) -> None:
    op, (inputs, usual) = OPS[name], OPS[name].example(2, 9)
    inputs = {way: x.float() for way, x in inputs.items() if way != gone}
    with pytest.raises(ValueError, match=message):
        op.outputs(inputs, **usual | options)


@needs_native
@pytest.mark.parametrize(
    ("name", "B", "T", "sizes", "options", "message"),
    [
        ("mlstm_input", 2, 9, {"side": 8}, {}, "have diagonal blocks of 4, not of 8"),
        ("mlstm_input", 2, 9, {"heads": (24, 2)}, {}, "inner width 24 is not a multiple of 16"),
        ("mlstm_input", 2, 9, {"with_biases": True}, {}, "biases in the projections"),
        ("mlstm_input", 2, 9, {"K": 9}, {}, "a convolution over 9 steps is too long"),
        ("mlstm_block", 2, 9, {"heads": (24, 2)}, {}, "inner width 24 is not a multiple of 16"),
        ("mlstm_block", 2, 16385, {"heads": (16, 2)}, {}, "the samples are too long"),
        ("mlstm_block", 2, 9, {}, {"eps": 1e-6}, "no eps"),
        ("slstm_block", 2, 9, {"DH": 12, "NH": 2}, {}, "the width 24 is not a multiple of 16"),
        ("slstm_block", 2, 9, {"inner": 6000}, {}, "the weights are too many"),
        ("slstm_block", 2, 9, {"K": 9}, {}, "a convolution over 9 steps is too long"),
        ("causal_conv", 4, 9, {"K": 9}, {}, "a convolution over 9 steps is too long"),
    ],
)
def test_what_the_native_backend_leaves_to_others(
    name: str, B: int, T: int, sizes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    op = OPS[name]
    inputs = {way: x.float() for way, x in op.make(B, T, **op.usual | sizes).items()}
    with pytest.raises(BackendError, match=f"'native' cannot run {name} here: .*{message}"):
        op.outputs(inputs, backend="native", **options)
    other = TABLE[name][1].name
    chosen, same = (op.outputs(inputs, backend=b, **options) for b in (None, other))
    assert all(map(torch.equal, chosen.values(), same.values()))


@needs_native
@pytest.mark.parametrize("name", ["mlstm_block", "slstm_block"])
def test_a_thread_takes_whole_samples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    op, (inputs, options) = OPS[name], OPS[name].example(2, 9)
    with pytest.raises(BackendError, match="2 are too few for 3 threads"):
        op.outputs(op.cast(inputs, torch.float32), backend="native", **options)


@given(st.integers(1, 200))
def test_tasks_are_small_and_even(B: int) -> None:
    tasks = num_tasks(B)
    assert -(-B // 6) <= tasks <= B
    assert tasks % 2 == 0 or B == 1
    assert tasks % 4 == 0 or B < 16
    assert tasks % 8 == 0 or B < 32
