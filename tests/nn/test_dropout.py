"""Where dropout is, part by part; what it does to a whole model is tested there."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from openxlstm.config import StackConfig
from openxlstm.nn.dropout import Dropout
from openxlstm.nn.feedforward import GatedFeedForward
from openxlstm.nn.mlstm import MLSTMLayer
from openxlstm.nn.slstm import SLSTMLayer

CONFIG = StackConfig(embedding_dim=16, num_heads=2, dropout=0.5)
PARTS: list[Callable[[StackConfig], nn.Module]] = [MLSTMLayer, SLSTMLayer, GatedFeedForward]


def output(part: nn.Module, x: Tensor) -> Tensor:
    """What a part adds to the residual stream."""
    y = part(x)
    return y[0] if isinstance(y, tuple) else y


@pytest.mark.parametrize("make", PARTS)
def test_training_drops_and_evaluation_does_not(
    make: Callable[[StackConfig], nn.Module], randomize: Callable[[nn.Module], None]
) -> None:
    part, x = make(CONFIG), torch.randn(2, 5, 16)
    randomize(part)
    assert not torch.allclose(output(part, x), output(part, x))
    part.eval()
    assert torch.equal(output(part, x), output(part, x))


@pytest.mark.parametrize("make", [MLSTMLayer, GatedFeedForward])
def test_what_goes_back_to_the_residual_stream_is_dropped_or_scaled(
    make: Callable[[StackConfig], nn.Module], randomize: Callable[[nn.Module], None]
) -> None:
    part, x = make(CONFIG), torch.randn(8, 50, 16)
    randomize(part)
    dropped = output(part, x)
    whole = output(part.eval(), x)
    kept = dropped.abs() > 1e-6  # what was added to x and taken away again is rounded
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.allclose(dropped[kept], 2 * whole[kept], atol=1e-5)


@pytest.mark.parametrize("make", [MLSTMLayer, GatedFeedForward])
def test_channels_are_dropped_for_a_whole_sequence(
    make: Callable[[StackConfig], nn.Module], randomize: Callable[[nn.Module], None]
) -> None:
    part, x = make(CONFIG.replace(dropout_kind="channels")), torch.randn(30, 5, 16)
    randomize(part)
    kept = output(part, x).abs() > 1e-6
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize("kind", ["elements", "channels"])
def test_what_is_kept_is_scaled(kind: Literal["elements", "channels"]) -> None:
    """So that the mean stays what it was."""
    dropout = Dropout(0.2, kind)
    y = dropout(torch.ones(40, 25, 16))
    assert set(y.unique().tolist()) == {0.0, 1.25}
    assert y.mean().item() == pytest.approx(1, abs=0.06)
    x = torch.randn(2, 3, 16)
    assert torch.equal(dropout.eval()(x), x)


def test_an_slstm_drops_before_its_norm(randomize: Callable[[nn.Module], None]) -> None:
    """The heads are normed after dropout, so that nothing in the output is 0; and the state, which
    goes on to the next step, is whole."""
    layer, x = SLSTMLayer(CONFIG), torch.randn(2, 5, 16)
    randomize(layer)
    y, state = layer(x)
    assert (y != 0).all()
    _, whole = layer.eval()(x)
    assert torch.equal(state.cell.h, whole.cell.h)
