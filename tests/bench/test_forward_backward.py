"""Turns of forward and backward, and comparing their answers."""

import math

import pytest
import torch
from torch import Tensor, nn

from openxlstm.bench.forward_backward import differentiated, disagreement, module_pass


def test_a_turn_has_output_and_gradients() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = torch.tensor([3.0, 5.0], requires_grad=True)
    dh = torch.tensor([1.0, 10.0])
    repetition = differentiated(lambda: x * x * y, [x, y], dh)
    for _ in range(2):  # and leaves nothing behind
        h, dx, dy = repetition()
        assert h.tolist() == [3.0, 20.0]
        assert not h.requires_grad
        assert dx.tolist() == [6.0, 200.0]
        assert dy.tolist() == [1.0, 40.0]
    assert x.grad is None


class Stateful(nn.Module):
    """Doubles, and returns a state as well."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x * self.scale, None


def test_a_turn_of_a_module() -> None:
    y, dx, dscale = module_pass(Stateful(), B=2, T=3, width=4)()
    assert y.shape == dx.shape == (2, 3, 4)
    assert float(dscale) == pytest.approx(float((dx / 2 * y / 2).sum()), rel=1e-5)
    outputs = module_pass(nn.LSTM(4, 4, batch_first=True), B=2, T=3, width=4)()
    assert len(outputs) == 1 + 1 + 4, "output, input, weights and biases"


def test_disagreement_by_hand() -> None:
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    assert disagreement([one], [one]) == 0
    assert disagreement([other], [one]) == pytest.approx(0.1)
    assert disagreement([one, other], [one, one]) == pytest.approx(0.1), "the largest"
    assert disagreement([other, one], [one, one]) == pytest.approx(0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_agrees_with_nothing(bad: float) -> None:
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([3.0, bad])
    assert not disagreement([one, other], [one, one]) <= 1e9
    assert not disagreement([one, one], [other, one]) <= 1e9


def test_other_shapes_do_not_agree() -> None:
    one = torch.ones(2)
    assert disagreement([one], [torch.ones(2, 2)]) == math.inf, "broadcasting would hide it"
    assert disagreement([one], [one, one]) == math.inf
