"""What the tests of the recurrent ops share: inputs of any size, and all that comes of them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tolerances import assert_close
from torch import Tensor

from openxlstm.states import MLSTMState, SLSTMState


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
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).double()

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
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).double()

    x, weight = randn(B, T, NH, 4, DH), (randn(NH, 4, DH, DH) / math.sqrt(DH)).float().double()
    bias = randn(NH, 4, DH) if with_bias else None
    if not with_state:
        return SLSTMInputs(x, weight, bias)
    n = randn(B, NH, DH).abs() + 0.25
    n[torch.rand(n.shape, generator=generator) < empty] = 0.0
    h = randn(B, NH, DH).tanh().float().double()
    return SLSTMInputs(x, weight, bias, h, randn(B, NH, DH), n, randn(B, NH, DH))


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
