"""What does not fit together is a ValueError that begins with the name of the argument."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from openxlstm.ops import causal_conv, mlstm, slstm, state_dtype
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
            ({"backend": "abacus"}, "^causal_conv has no backend 'abacus'; it has: .*torch"),
        ],
    )
    def test_argument(self, change: dict[str, Any], message: str):
        assert_refused(causal_conv, self.arguments, change, message)


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
