"""Gates that are computed once more, against the reference recurrences."""

import math
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close
from torch import Tensor, nn

from openxlstm.config import StackConfig
from openxlstm.nn.gates import Gates, GateStatistics, gates_of, statistics
from openxlstm.nn.large_block import LargeMLSTMLayer
from openxlstm.nn.mlstm import MLSTMLayer
from openxlstm.nn.norm import RMSNorm
from openxlstm.nn.slstm import SLSTMLayer
from openxlstm.reference import mlstm as reference_mlstm
from openxlstm.reference import slstm as reference_slstm
from openxlstm.states import MLSTMState, SLSTMState

Randomize = Callable[[nn.Module], None]
State = TypeVar("State", MLSTMState, SLSTMState)

B, T, D, NH = 2, 9, 16, 2


def config(**options: object) -> StackConfig:
    return StackConfig.from_options(
        **{"embedding_dim": D, "num_heads": NH, "layers": "sm", **options}
    )  # pyright: ignore


def inputs(mask: bool) -> tuple[Tensor, Tensor | None]:
    torch.manual_seed(1)
    x = torch.randn(B, T, D, dtype=torch.float64)
    return x, (torch.rand(B, T) < 0.3 if mask else None)


def emptied(state: State, reset: Tensor | None, t: int) -> State:
    if reset is None:
        return state
    keep = (~reset[:, t]).double()
    return state._make(part * keep.view(-1, *[1] * (part.dim() - 1)) for part in state)


@pytest.mark.parametrize("kernel_size", [0, 4])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_slstm(randomize: Randomize, kernel_size: int, mask: bool, forget_gate: str) -> None:
    layer = SLSTMLayer(
        config(slstm_conv_kernel_size=kernel_size, slstm_forget_gate=forget_gate)
    ).double()
    randomize(layer)
    x, reset = inputs(mask)
    gates = gates_of(layer, x, reset)
    assert gates is not None
    assert not gates.has_floor

    convolved = x if layer.conv is None else layer.conv(x, None, reset)[0]
    sources = [part.view(B, T, NH, D // NH) for part in (convolved, convolved, x, x)]
    W, R = layer.input_weight, layer.recurrent_weight
    from_x = [torch.einsum("hoi,bthi->btho", W[:, g], sources[g]) for g in range(4)]
    preacts = torch.stack(from_x, 3) + layer.bias  # (B, T, NH, 4, DH)
    state = reference_slstm.initial_state(preacts)
    for t in range(T):
        state = emptied(state, reset, t)
        preact = preacts[:, t] + torch.einsum("hgoi,bhi->bhgo", R, state.h)
        log_f = F.logsigmoid(preact[:, :, 1]) if forget_gate == "sigmoid" else preact[:, :, 1]
        state = reference_slstm.step(preacts[:, t], R, state, forget_gate)
        assert_close(gates.log_i[:, t], preact[:, :, 0], "log_i")
        assert_close(gates.log_f[:, t], log_f, "log_f")
        assert_close(gates.output[:, t], preact[:, :, 3].sigmoid(), "o")
        assert_close(gates.log_weight[:, t], state.n.log() + state.m, "N")
        assert_close(gates.log_normalizer[:, t], state.n.log() + state.m, "n")


@pytest.mark.parametrize("kernel_size", [0, 4])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_mlstm(randomize: Randomize, kernel_size: int, mask: bool, bias: bool) -> None:
    layer = MLSTMLayer(config(mlstm_conv_kernel_size=kernel_size, bias=bias)).double()
    randomize(layer)
    x, reset = inputs(mask)
    gates = gates_of(layer, x, reset)
    assert gates is not None
    assert gates.has_floor

    (q, k, v, log_i, log_f, _, z), _ = layer.inputs(x, None, reset)
    state = reference_mlstm.initial_state(q, v)
    # With every key at 1, one number wide, n is N.
    ones = torch.ones(B, NH, 1, dtype=torch.float64)
    weight = reference_mlstm.initial_state(ones[:, :, None], ones[:, :, None])
    for t in range(T):
        at = log_i[:, :, t], log_f[:, :, t]
        state, weight = emptied(state, reset, t), emptied(weight, reset, t)
        _, state = reference_mlstm.step(q[:, :, t], k[:, :, t], v[:, :, t], *at, state)
        _, weight = reference_mlstm.step(ones, ones, ones, *at, weight)
        n_q = (state.n * q[:, :, t]).sum(-1) / math.sqrt(q.shape[-1])
        assert_close(gates.log_i[:, t, :, 0], log_i[:, :, t], "log_i")
        assert_close(gates.log_f[:, t, :, 0], log_f[:, :, t], "log_f")
        assert_close(gates.log_weight[:, t, :, 0], weight.n[..., 0].log() + weight.m, "N")
        assert_close(gates.log_normalizer[:, t, :, 0], n_q.abs().log() + state.m, "n q")
        floor = n_q.abs() < torch.exp(-state.m)
        assert torch.equal(gates.log_normalizer[:, t, :, 0] < 0, floor)
    assert_close(gates.output, z.sigmoid(), "o")


@pytest.mark.parametrize("mask", [False, True])
def test_large(randomize: Randomize, mask: bool) -> None:
    layer = LargeMLSTMLayer(config(block="large", layers="m", gate_soft_cap=2.0)).double()
    norm = RMSNorm(D).double()
    randomize(layer)
    randomize(norm)
    residual, reset = inputs(mask)
    x = norm(residual)
    gates = gates_of(layer, x, reset)
    assert gates is not None
    i_preact, f_preact = (
        2 * torch.tanh((torch.einsum("hd,btd->bth", W, x) + bias) / 2)
        for W, bias in zip(layer.gate_weight, layer.gate_bias, strict=True)
    )
    assert_close(gates.log_i[..., 0], i_preact, "log_i")
    assert_close(gates.log_f[..., 0], f_preact.sigmoid().log(), "log_f")
    assert_close(gates.output, (x @ layer.o_proj.weight.T).sigmoid(), "o")
    _, (_, cell) = layer(norm(residual), None, reset)
    q = (x[:, -1] @ layer.q_proj.weight.T).view(B, NH, -1)
    n_q = (cell.n * q).sum(-1) / math.sqrt(q.shape[-1])
    assert_close(gates.log_normalizer[:, -1, :, 0], n_q.abs().log() + cell.m, "n q")


def two_steps(f: float, has_floor: bool = False) -> GateStatistics:
    """Two steps that write with i = 1, with a forget gate f, and a normalizer of 1/2 and 3."""
    log_i = torch.zeros(1, 2, 1, 1)
    log_f = torch.full((1, 2, 1, 1), f).log()
    log_weight = torch.tensor([1.0, 1 + f]).log().view(1, 2, 1, 1)
    log_normalizer = torch.tensor([0.5, 3.0]).log().view(1, 2, 1, 1)
    output = torch.tensor([0.25, 0.75])
    return statistics(Gates(log_i, log_f, output, log_weight, log_normalizer, has_floor))


def test_the_figures() -> None:
    slstm, mlstm = two_steps(0.5), two_steps(0.5, has_floor=True)
    assert slstm.forget == pytest.approx(0.5)
    assert slstm.half_life == slstm.longest_half_life == pytest.approx(1.0)
    assert slstm.log_input == 0
    assert slstm.input == pytest.approx((1 + 1 / 1.5) / 2)
    assert slstm.output == pytest.approx(0.5)
    assert slstm.log_normalizer == pytest.approx(math.log(0.5 * 3) / 2)
    assert slstm.floor is None
    assert mlstm.log_normalizer == pytest.approx(math.log(1 * 3) / 2)
    assert mlstm.floor == 0.5


def test_half_lives_are_of_memories() -> None:
    """Not of the mean gate: one that forgets at once does not hide one that keeps."""
    log_f = -math.log(2) / torch.tensor([0.1, 8.0, 100.0])  # half-lives
    gate = log_f.expand(2, 5, 1, 3)
    zeros = torch.zeros_like(gate)
    found = statistics(Gates(zeros, gate, zeros, zeros, zeros, False))
    assert found.half_life == pytest.approx(8.0)
    assert found.longest_half_life == pytest.approx(100.0)


def test_what_never_fades_is_no_number_in_json() -> None:
    found = two_steps(1.0)
    assert found.half_life == math.inf
    assert found.to_dict()["half_life"] is None
    assert found.to_dict()["forget"] == 1.0
    assert set(found.to_dict()) == set(vars(found))


def test_a_layer_of_another_kind_is_not_looked_into() -> None:
    assert gates_of(nn.Linear(D, D), torch.zeros(B, T, D)) is None


@pytest.mark.parametrize("kind", [SLSTMLayer, MLSTMLayer])
def test_extreme_gates_overflow_nothing(
    kind: type[SLSTMLayer | MLSTMLayer], randomize: Randomize
) -> None:
    layer = kind(config())
    randomize(layer)
    gates = gates_of(layer, 300 * inputs(False)[0].float())
    assert gates is not None
    found = statistics(gates)
    assert all(math.isfinite(value) for value in vars(found).values() if value is not None)
    assert 0 <= found.input <= 1
