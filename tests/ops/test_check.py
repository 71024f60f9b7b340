"""What does not fit together is a ValueError that begins with the name of the argument."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from openxlstm.ops import (
    causal_conv,
    gated_feedforward,
    large_input,
    large_output,
    layer_norm,
    mlstm,
    mlstm_block,
    mlstm_input,
    mlstm_output,
    slstm,
    slstm_block,
    slstm_layer,
    state_dtype,
)
from openxlstm.states import ConvState, MLSTMState, SLSTMState

META = torch.device("meta")  # stands for any device other than the inputs'


def assert_refused(
    function: Callable[..., Any], arguments: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    function(**arguments)  # which are right without the change
    with pytest.raises(ValueError, match=message):
        function(**arguments | change)


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def mask(*shape: int, device: Any = None) -> Tensor:
    return torch.zeros(shape, dtype=torch.bool, device=device)


class TestMLSTM:
    arguments = {  # noqa: RUF012
        "q": zeros(2, 3, 9, 4), "k": zeros(2, 3, 9, 4), "v": zeros(2, 3, 9, 5),
        "log_i": zeros(2, 3, 9), "log_f": zeros(2, 3, 9), "reset": mask(2, 9), "chunk_size": 4,
        "state": MLSTMState(zeros(2, 3, 4, 5), zeros(2, 3, 4), zeros(2, 3)),
    }  # fmt: skip

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"q": zeros(2, 3, 9)}, r"^q must be \(B, NH, T, DQK\), not \(2, 3, 9\)"),
            ({"q": zeros(2, 3, 9, 4, dtype=torch.int64)}, "^q must be floating point"),
            ({"q": zeros(2, 3, 0, 4)}, "^q .* size 0"),
            ({"q": zeros(0, 3, 9, 4)}, "^q .* size 0"),
            ({"k": zeros(2, 3, 9, 5)}, r"^k must have shape \(2, 3, 9, 4\), not \(2, 3, 9, 5\)"),
            ({"k": zeros(2, 3, 9, 4).double()}, "^k must be torch.float32, not torch.float64"),
            ({"k": zeros(2, 3, 9, 4, device=META)}, "^k must be on cpu, not meta"),
            ({"v": zeros(2, 9, 5)}, r"^v must be \(B, NH, T, DHV\)"),
            ({"v": zeros(2, 3, 9, 0)}, "^v .* size 0"),
            ({"v": zeros(2, 3, 8, 5)}, "^v must have shape"),
            ({"v": zeros(2, 3, 9, 5).half()}, "^v must be torch.float32, not torch.float16"),
            ({"log_i": zeros(2, 9, 3)}, "^log_i must have shape"),
            ({"log_i": zeros(2, 3, 9, 1)}, "^log_i must have shape"),
            ({"log_i": zeros(2, 3, 9).double()}, "^log_i must be torch.float32"),
            ({"log_f": zeros(1, 3, 9)}, "^log_f must have shape"),
            ({"log_f": zeros(2, 3, 9, dtype=torch.int64)}, "^log_f must be torch.float32"),
            ({"reset": zeros(2, 9)}, "^reset must be torch.bool"),
            ({"reset": mask(2, 3, 9)}, r"^reset must have shape \(2, 9\)"),
            ({"reset": mask(2, 9, device=META)}, "^reset must be on cpu"),
            ({"chunk_size": 0}, "^chunk_size must be at least 1, not 0"),
            ({"chunk_size": -3}, "^chunk_size must be at least 1"),
            ({"backend": "abacus"}, "^mlstm has no backend 'abacus'; it has: .*torch"),
        ],
    )
    def test_argument(self, change: dict[str, Any], message: str):
        assert_refused(mlstm, self.arguments, change, message)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"C": zeros(2, 3, 5, 4)}, r"^state\.C must have shape \(2, 3, 4, 5\)"),
            ({"C": zeros(2, 3, 4, 5).double()}, r"^state\.C must be torch.float32"),
            ({"C": zeros(2, 3, 4, 5, device=META)}, r"^state\.C must be on cpu"),
            ({"n": zeros(2, 3, 4, 1)}, r"^state\.n must have shape"),
            ({"m": zeros(1, 3)}, r"^state\.m must have shape"),
            ({"m": zeros(2, 3, dtype=torch.int64)}, r"^state\.m must be torch.float32"),
        ],
    )
    def test_state(self, change: dict[str, Tensor], message: str):
        state = self.arguments["state"]._replace(**change)
        assert_refused(mlstm, self.arguments, {"state": state}, message)

    def test_state_is_wider_than_bfloat16(self):
        narrow = {name: self.arguments[name].bfloat16() for name in ("q", "k", "v")}
        state = MLSTMState(*(part.bfloat16() for part in self.arguments["state"]))
        message = r"^state\.C must be torch.float32, not torch.bfloat16"
        assert_refused(mlstm, self.arguments | narrow, {"state": state}, message)


class TestSLSTM:
    arguments = {  # noqa: RUF012
        "x": zeros(2, 9, 3, 4, 5), "recurrent_weight": zeros(3, 4, 5, 5), "bias": zeros(3, 4, 5),
        "state": SLSTMState(*(zeros(2, 3, 5) for _ in range(4))), "reset": mask(2, 9),
    }  # fmt: skip

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": zeros(2, 9, 3, 5)}, r"^x must be \(B, T, NH, 4, DH\), not \(2, 9, 3, 5\)"),
            ({"x": zeros(2, 9, 4, 3, 5)}, r"^x must be \(B, T, NH, 4, DH\)"),
            ({"x": zeros(2, 0, 3, 4, 5)}, "^x .* size 0"),
            ({"x": zeros(2, 9, 3, 4, 5, dtype=torch.int32)}, "^x must be floating point"),
            ({"recurrent_weight": zeros(3, 5, 4, 5)}, "^recurrent_weight must have shape"),
            ({"recurrent_weight": zeros(1, 4, 5, 5)}, "^recurrent_weight must have shape"),
            ({"recurrent_weight": zeros(3, 4, 5, 5).double()}, "^recurrent_weight must be torch"),
            ({"recurrent_weight": zeros(3, 4, 5, 5, device=META)}, "^recurrent_weight must be on"),
            ({"bias": zeros(60)}, r"^bias must have shape \(3, 4, 5\), not \(60,\)"),
            ({"bias": zeros(3, 4, 5, dtype=torch.int64)}, "^bias must be torch.float32"),
            ({"reset": zeros(2, 9)}, "^reset must be torch.bool"),
            ({"reset": mask(9, 2)}, "^reset must have shape"),
            ({"forget_gate": "tanh"}, "^forget_gate must be 'sigmoid' or 'exp', not 'tanh'"),
            ({"backend": "abacus"}, "^slstm has no backend 'abacus'; it has: .*torch"),
        ],
    )
    def test_argument(self, change: dict[str, Any], message: str):
        assert_refused(slstm, self.arguments, change, message)

    @pytest.mark.parametrize("name", SLSTMState._fields)
    def test_state(self, name: str):
        for part, message in (
            (zeros(2, 5, 3), rf"^state\.{name} must have shape \(2, 3, 5\)"),
            (zeros(2, 3, 5).double(), rf"^state\.{name} must be torch.float32"),
            (zeros(2, 3, 5, device=META), rf"^state\.{name} must be on cpu"),
        ):
            state = self.arguments["state"]._replace(**{name: part})
            assert_refused(slstm, self.arguments, {"state": state}, message)


class TestCausalConv:
    arguments = {  # noqa: RUF012
        "x": zeros(2, 9, 3), "weight": zeros(3, 4), "bias": zeros(3), "reset": mask(2, 9),
        "state": ConvState(zeros(2, 3, 3)),
    }  # fmt: skip

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": zeros(9, 3)}, r"^x must be \(B, T, D\)"),
            ({"x": zeros(2, 0, 3)}, "^x .* size 0"),
            ({"x": zeros(2, 9, 3, dtype=torch.int64)}, "^x must be floating point"),
            ({"weight": zeros(3, 1, 4)}, r"^weight must be \(D, K\)"),
            ({"weight": zeros(3, 0)}, "^weight .* size 0"),
            ({"weight": zeros(4, 3)}, "^weight must have shape"),
            ({"weight": zeros(3, 4).double()}, "^weight must be torch.float32"),
            ({"weight": zeros(3, 4, device=META)}, "^weight must be on cpu"),
            ({"bias": zeros(4)}, "^bias must have shape"),
            ({"state": ConvState(zeros(2, 4, 3))}, r"^state\.x must have shape \(2, 3, 3\)"),
            ({"state": ConvState(zeros(2, 3, 3).double())}, r"^state\.x must be torch.float32"),
            ({"reset": mask(2, 8)}, "^reset must have shape"),
            ({"activation": "gelu"}, "^activation must be 'silu' or None, not 'gelu'"),
            ({"backend": "abacus"}, "^causal_conv has no backend 'abacus'; it has: .*torch"),
        ],
    )
    def test_argument(self, change: dict[str, Any], message: str):
        assert_refused(causal_conv, self.arguments, change, message)


class TestLayerNorm:
    arguments = {"x": zeros(2, 5, 6), "weight": zeros(6), "num_groups": 3}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": zeros()}, r"^x must be \(…, D\), not \(\)"),
            ({"x": zeros(0, 6)}, "^x .* size 0"),
            ({"x": zeros(2, 6, dtype=torch.int64)}, "^x must be floating point"),
            ({"weight": zeros(5)}, r"^weight must have shape \(6,\), not \(5,\)"),
            ({"weight": zeros(1, 6)}, "^weight must have shape"),
            ({"weight": zeros(6).double()}, "^weight must be torch.float32"),
            ({"weight": zeros(6, device=META)}, "^weight must be on cpu"),
            ({"num_groups": 4}, "^num_groups must divide D = 6, which 4 does not"),
            ({"num_groups": 0}, "^num_groups must divide"),
            ({"num_groups": -2}, "^num_groups must divide"),
            ({"backend": "abacus"}, "^layer_norm has no backend 'abacus'; it has: .*torch"),
        ],
    )
    def test_argument(self, change: dict[str, Any], message: str):
        assert_refused(layer_norm, self.arguments, change, message)


class TestGatedFeedforward:
    arguments = {  # noqa: RUF012
        "x": zeros(2, 9, 3), "up_weight": zeros(10, 3), "down_weight": zeros(3, 5),
        "up_bias": zeros(10), "down_bias": zeros(3), "norm_weight": zeros(3),
    }  # fmt: skip

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": zeros()}, r"^x must be \(…, D\)"),
            ({"x": zeros(2, 0, 3)}, "^x .* size 0"),
            ({"x": zeros(2, 9, 3, dtype=torch.int64)}, "^x must be floating point"),
            ({"x": zeros(2, 9, 4)}, "^up_weight must have shape"),
            ({"up_weight": zeros(5, 3)}, r"^up_weight must have shape \(10, 3\), not \(5, 3\)"),
            ({"up_weight": zeros(10, 3).half()}, "^up_weight must be torch.float32"),
            ({"down_weight": zeros(15)}, r"^down_weight must be \(D, F\)"),
            ({"down_weight": zeros(4, 5)}, "^down_weight must have shape"),
            ({"down_weight": zeros(3, 5, device=META)}, "^down_weight must be on cpu"),
            ({"up_bias": zeros(5)}, "^up_bias must have shape"),
            ({"down_bias": zeros(5)}, "^down_bias must have shape"),
            ({"norm_weight": zeros(4)}, "^norm_weight must have shape"),
            ({"norm_weight": zeros(3).double()}, "^norm_weight must be torch.float32"),
            ({"activation": "relu"}, "^activation must be 'gelu' or 'silu', not 'relu'"),
            ({"norm": "batch"}, "^norm must be 'layer' or 'rms', not 'batch'"),
            ({"norm_weight": None, "norm_bias": zeros(5)}, "^norm_bias needs norm_weight"),
            ({"value_bias": zeros(7)}, "^value_bias needs value_weight, which was not given"),
            ({"value_weight": zeros(7, 5)}, "^up_weight must have shape"),
            ({"backend": "abacus"}, "^gated_feedforward has no backend 'abacus'"),
        ],
    )
    def test_argument(self, change: dict[str, Any], message: str):
        assert_refused(gated_feedforward, self.arguments, change, message)


class TestSLSTMLayer:
    arguments = {  # noqa: RUF012
        "convolved": zeros(2, 9, 15), "raw": zeros(2, 9, 15), "input_weight": zeros(3, 4, 5, 5),
        "bias": zeros(3, 4, 5), "recurrent_weight": zeros(3, 4, 5, 5), "reset": mask(2, 9),
        "state": SLSTMState(*(zeros(2, 3, 5) for _ in range(4))),
    }  # fmt: skip

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"raw": zeros(2, 15)}, r"^raw must be \(B, T, D\)"),
            ({"raw": zeros(2, 9, 16)}, r"^raw must be .* = \(B, T, 15\), not \(2, 9, 16\)"),
            ({"raw": zeros(2, 0, 15)}, "^raw .* size 0"),
            ({"raw": zeros(2, 9, 15, dtype=torch.int64)}, "^raw must be floating point"),
            ({"convolved": zeros(2, 9, 5)}, "^convolved must have shape"),
            ({"convolved": zeros(1, 9, 15)}, "^convolved must have shape"),
            ({"convolved": zeros(2, 9, 15).double()}, "^convolved must be torch.float32"),
            ({"input_weight": zeros(3, 4, 5)}, r"^input_weight must be \(NH, 4, DH, DH\)"),
            ({"input_weight": zeros(3, 4, 5, 6)}, "^input_weight must have shape"),
            ({"input_weight": zeros(3, 5, 5, 5)}, "^input_weight must have shape"),
            ({"bias": zeros(60)}, "^bias must have shape"),
            ({"recurrent_weight": zeros(1, 4, 5, 5)}, "^recurrent_weight must have shape"),
            ({"recurrent_weight": zeros(3, 4, 5, 5, device=META)}, "^recurrent_weight must be on"),
            ({"reset": zeros(2, 9)}, "^reset must be torch.bool"),
            ({"reset": mask(2, 10)}, "^reset must have shape"),
            ({"forget_gate": "tanh"}, "^forget_gate must be 'sigmoid' or 'exp', not 'tanh'"),
            ({"backend": "abacus"}, "^slstm_layer has no backend 'abacus'"),
        ],
    )
    def test_argument(self, change: dict[str, Any], message: str):
        assert_refused(slstm_layer, self.arguments, change, message)

    @pytest.mark.parametrize("part", [zeros(2, 3, 6), zeros(3, 3, 5), zeros(2, 3, 5).double()])
    @pytest.mark.parametrize("backend", [None, "torch"])
    def test_state(self, part: Tensor, backend: str | None):
        """All four alike, so that nothing else could fail first."""
        change = {"state": SLSTMState(part, part, part, part), "backend": backend}
        assert_refused(slstm_layer, self.arguments, change, r"^state\.h must (have shape|be torch)")


class TestSLSTMBlock:
    arguments = {
        "x": zeros(2, 9, 16), "input_weight": zeros(2, 4, 8, 8), "bias": zeros(2, 4, 8),
        "recurrent_weight": zeros(2, 4, 8, 8), "up_weight": zeros(10, 16),
        "down_weight": zeros(16, 5), "up_bias": zeros(10), "down_bias": zeros(16),
        "conv_weight": zeros(16, 4), "conv_bias": zeros(16), "before": ConvState(zeros(2, 3, 16)),
        "state": SLSTMState(*(zeros(2, 2, 8) for _ in range(4))), "reset": mask(2, 9),
    } | {f"{name}_weight": zeros(16) for name in ("norm", "head_norm", "ff_norm")}  # fmt: skip

    @pytest.mark.parametrize("backend", [None, "torch"])
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": zeros(9, 16)}, r"^x must be \(B, T, D\)"),
            ({"x": zeros(2, 0, 16)}, "^x .* size 0"),
            ({"x": zeros(2, 9, 16, dtype=torch.int64)}, "^x must be floating point"),
            ({"x": zeros(2, 9, 17)}, r"^x must be .* = \(B, T, 16\), not \(2, 9, 17\)"),
            ({"norm_weight": zeros(8)}, "^norm_weight must have shape"),
            ({"head_norm_weight": zeros(2, 8)}, "^head_norm_weight must have shape"),
            ({"ff_norm_weight": zeros(16).double()}, "^ff_norm_weight must be torch.float32"),
            ({"input_weight": zeros(2, 8, 8)}, r"^input_weight must be \(NH, 4, DH, DH\)"),
            ({"bias": zeros(64)}, "^bias must have shape"),
            ({"recurrent_weight": zeros(2, 4, 8, 8, device=META)}, "^recurrent_weight must be on"),
            ({"down_weight": zeros(16)}, r"^down_weight must be \(D, F\)"),
            ({"up_weight": zeros(5, 16)}, "^up_weight must have shape"),
            ({"up_bias": zeros(5)}, "^up_bias must have shape"),
            ({"down_bias": zeros(5)}, "^down_bias must have shape"),
            ({"conv_weight": zeros(8, 4)}, "^conv_weight must have shape"),
            ({"conv_weight": None}, "^conv_bias and before go with conv_weight"),
            ({"before": ConvState(zeros(2, 4, 16))}, r"^before\.x must have shape"),
            ({"reset": zeros(2, 9)}, "^reset must be torch.bool"),
            ({"forget_gate": "tanh"}, "^forget_gate must be 'sigmoid' or 'exp', not 'tanh'"),
            (
                {"state": SLSTMState(*(zeros(2, 2, 7) for _ in range(4)))},
                r"^state\.h must have shape",
            ),
        ],
    )
    def test_argument(self, change: dict[str, Any], message: str, backend: str | None):
        assert_refused(slstm_block, self.arguments, change | {"backend": backend}, message)

    def test_backend(self):
        change = {"backend": "abacus"}
        assert_refused(slstm_block, self.arguments, change, "^slstm_block has no backend 'abacus'")


class TestMLSTMInput:
    arguments = {
        "x": zeros(2, 9, 5), "up_weight": zeros(64, 5), "gate_weight": zeros(2, 2, 96),
        "gate_bias": zeros(2, 2), "conv_weight": zeros(32, 4), "conv_bias": zeros(32),
        "state": ConvState(zeros(2, 3, 32)), "reset": mask(2, 9),
    } | {f"{name}_weight": zeros(8, 4, 4) for name in "qkv"}  # fmt: skip

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": zeros(9, 5)}, r"^x must be \(B, T, D\)"),
            ({"x": zeros(2, 0, 5)}, "^x .* size 0"),
            ({"x": zeros(2, 9, 5, dtype=torch.int64)}, "^x must be floating point"),
            ({"up_weight": zeros(64)}, r"^up_weight must be \(2·E, D\)"),
            ({"up_weight": zeros(65, 5)}, r"^up_weight must have shape \(64, 5\)"),
            ({"up_weight": zeros(64, 5).double()}, "^up_weight must be torch.float32"),
            ({"q_weight": zeros(8, 4)}, r"^q_weight must be \(E/S, S, S\)"),
            ({"q_weight": zeros(8, 5, 4)}, "^q_weight must have shape"),
            ({"k_weight": zeros(32, 1, 1)}, "^k_weight must have shape"),
            ({"v_weight": zeros(8, 4, 4, device=META)}, "^v_weight must be on cpu"),
            ({"gate_weight": zeros(2, 96)}, r"^gate_weight must be \(2, NH, 3·E\)"),
            ({"gate_weight": zeros(2, 3, 96)}, "^the inner width 32 is not a multiple of NH = 3"),
            ({"gate_weight": zeros(2, 2, 64)}, "^gate_weight must have shape"),
            ({"gate_bias": zeros(4)}, "^gate_bias must have shape"),
            ({"conv_weight": None}, "^conv_weight and conv_bias must be given both or neither"),
            ({"conv_bias": None}, "^conv_weight and conv_bias must be given both or neither"),
            ({"conv_weight": zeros(16, 4)}, "^conv_weight must have shape"),
            ({"conv_bias": zeros(16)}, "^conv_bias must have shape"),
            ({"state": ConvState(zeros(2, 4, 32))}, r"^state\.x must have shape \(2, 3, 32\)"),
            ({"state": ConvState(zeros(2, 3, 32).half())}, r"^state\.x must be torch.float32"),
            ({"reset": mask(2, 10)}, "^reset must have shape"),
            ({"reset": zeros(2, 9)}, "^reset must be torch.bool"),
            ({"biases": (zeros(64), *[zeros(32)] * 2, zeros(16))}, r"^biases\[3\] must have shape"),
            ({"biases": (zeros(32), *[zeros(32)] * 3)}, r"^biases\[0\] must have shape"),
            ({"backend": "abacus"}, "^mlstm_input has no backend 'abacus'"),
        ],
    )
    def test_argument(self, change: dict[str, Any], message: str):
        assert_refused(mlstm_input, self.arguments, change, message)

    def test_blocks_do_not_divide_the_inner_width(self):
        change = {f"{name}_weight": zeros(6, 5, 5) for name in "qkv"}
        assert_refused(mlstm_input, self.arguments, change, r"^(the inner width 32|q_weight)")


class TestMLSTMBlock:
    arguments = {
        "x": zeros(2, 9, 5), "up_weight": zeros(64, 5), "gate_weight": zeros(2, 2, 96),
        "gate_bias": zeros(2, 2), "norm_weight": zeros(32), "skip": zeros(32),
        "down_weight": zeros(5, 32), "down_bias": zeros(5), "conv_weight": zeros(32, 4),
        "conv_bias": zeros(32), "before": ConvState(zeros(2, 3, 32)), "reset": mask(2, 9),
        "state": MLSTMState(zeros(2, 2, 16, 16), zeros(2, 2, 16), zeros(2, 2)),
    } | {f"{name}_weight": zeros(8, 4, 4) for name in "qkv"}  # fmt: skip

    @pytest.mark.parametrize("backend", [None, "torch"])
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": zeros(9, 5)}, r"^x must be \(B, T, D\)"),
            ({"x": zeros(2, 9, 5, dtype=torch.int64)}, "^x must be floating point"),
            ({"up_weight": zeros(65, 5)}, r"^up_weight must have shape \(64, 5\)"),
            ({"q_weight": zeros(8, 4)}, r"^q_weight must be \(E/S, S, S\)"),
            ({"v_weight": zeros(8, 4, 4, device=META)}, "^v_weight must be on cpu"),
            ({"gate_weight": zeros(2, 96)}, r"^gate_weight must be \(2, NH, 3·E\)"),
            ({"gate_weight": zeros(2, 3, 96)}, "^the inner width 32 is not a multiple of NH = 3"),
            ({"q_weight": zeros(6, 5, 5)}, "^the inner width 32 is not a multiple of the blocks'"),
            ({"norm_weight": zeros(16)}, "^norm_weight must have shape"),
            ({"down_weight": zeros(5, 30)}, "^down_weight must have shape"),
            ({"down_bias": zeros(32)}, "^down_bias must have shape"),
            ({"conv_bias": None}, "^conv_weight and conv_bias must be given both or neither"),
            ({"before": ConvState(zeros(2, 4, 32))}, r"^before\.x must have shape"),
            ({"reset": zeros(2, 9)}, "^reset must be torch.bool"),
            (
                {"state": MLSTMState(zeros(2, 2, 16, 8), zeros(2, 2, 16), zeros(2, 2))},
                r"^state\.C must have shape",
            ),
        ],
    )
    def test_argument(self, change: dict[str, Any], message: str, backend: str | None):
        assert_refused(mlstm_block, self.arguments, change | {"backend": backend}, message)

    def test_backend(self):
        change = {"backend": "abacus"}
        assert_refused(mlstm_block, self.arguments, change, "^mlstm_block has no backend 'abacus'")


class TestMLSTMOutput:
    arguments = {  # noqa: RUF012
        "h": zeros(2, 3, 9, 4), "c": zeros(2, 9, 12), "z": zeros(2, 9, 12),
        "norm_weight": zeros(12), "skip": zeros(12), "down_weight": zeros(5, 12),
        "down_bias": zeros(5),
    }  # fmt: skip

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"h": zeros(2, 9, 12)}, r"^h must be \(B, NH, T, DH\)"),
            ({"h": zeros(2, 3, 0, 4)}, "^h .* size 0"),
            ({"h": zeros(2, 3, 9, 4, dtype=torch.int64)}, "^h must be floating point"),
            ({"h": zeros(2, 9, 3, 4)}, "^c must have shape"),
            ({"c": zeros(2, 9, 4)}, r"^c must have shape \(2, 9, 12\), not \(2, 9, 4\)"),
            ({"z": zeros(2, 8, 12)}, "^z must have shape"),
            ({"z": zeros(2, 9, 12).half()}, "^z must be torch.float32"),
            ({"norm_weight": zeros(4)}, "^norm_weight must have shape"),
            ({"skip": zeros(3, 4)}, "^skip must have shape"),
            ({"skip": zeros(12, device=META)}, "^skip must be on cpu"),
            ({"down_weight": zeros(60)}, r"^down_weight must be \(D, E\)"),
            ({"down_weight": zeros(5, 4)}, "^down_weight must have shape"),
            ({"down_bias": zeros(12)}, "^down_bias must have shape"),
            ({"backend": "abacus"}, "^mlstm_output has no backend 'abacus'"),
        ],
    )
    def test_argument(self, change: dict[str, Any], message: str):
        assert_refused(mlstm_output, self.arguments, change, message)


class TestLargeInput:
    arguments = {  # noqa: RUF012
        "x": zeros(2, 9, 5), "norm_weight": zeros(5), "norm_bias": zeros(5),
        "q_weight": zeros(6, 5), "k_weight": zeros(6, 5), "v_weight": zeros(8, 5),
        "o_weight": zeros(8, 5), "gate_weight": zeros(2, 2, 5), "gate_bias": zeros(2, 2),
        "biases": (zeros(6), zeros(6), zeros(8), zeros(8)),
    }  # fmt: skip

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": zeros(9, 5)}, r"^x must be \(B, T, D\)"),
            ({"norm_weight": zeros(6)}, "^norm_weight must have shape"),
            ({"norm_bias": zeros(6)}, "^norm_bias must have shape"),
            ({"q_weight": zeros(30)}, r"^q_weight must be \(QK, D\)"),
            ({"q_weight": zeros(7, 5)}, "^q_weight must have a multiple of NH = 2 rows, not 7"),
            ({"v_weight": zeros(9, 5)}, "^v_weight must have a multiple of NH = 2 rows, not 9"),
            ({"k_weight": zeros(8, 5)}, r"^k_weight must have shape \(6, 5\)"),
            ({"o_weight": zeros(8, 5).half()}, "^o_weight must be torch.float32"),
            ({"gate_weight": zeros(4, 5)}, r"^gate_weight must be \(2, NH, D\)"),
            ({"gate_bias": zeros(4)}, "^gate_bias must have shape"),
            ({"biases": (zeros(6), zeros(6), zeros(8), zeros(6))}, "^the bias of o must have"),
            ({"backend": "abacus"}, "^large_input has no backend 'abacus'"),
        ],
    )
    def test_argument(self, change: dict[str, Any], message: str):
        assert_refused(large_input, self.arguments, change, message)


class TestLargeOutput:
    arguments = {  # noqa: RUF012
        "h": zeros(2, 3, 9, 4), "o": zeros(2, 9, 12), "norm_weight": zeros(12),
        "norm_bias": zeros(12), "out_weight": zeros(5, 12), "out_bias": zeros(5),
        "residual": zeros(2, 9, 5),
    }  # fmt: skip

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"h": zeros(2, 9, 12)}, r"^h must be \(B, NH, T, DHV\)"),
            ({"o": zeros(2, 9, 4)}, "^o must have shape"),
            ({"norm_weight": zeros(4)}, "^norm_weight must have shape"),
            ({"norm_bias": zeros(12, device=META)}, "^norm_bias must be on cpu"),
            ({"out_weight": zeros(60)}, r"^out_weight must be \(D, V\)"),
            ({"out_bias": zeros(12)}, "^out_bias must have shape"),
            ({"residual": zeros(2, 9, 12)}, "^residual must have shape"),
            ({"backend": "abacus"}, "^large_output has no backend 'abacus'"),
        ],
    )
    def test_argument(self, change: dict[str, Any], message: str):
        assert_refused(large_output, self.arguments, change, message)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_states_are_float32_or_wider(dtype: torch.dtype, expected: torch.dtype):
    assert state_dtype(dtype) == expected
