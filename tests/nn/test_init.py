"""How parameters start, against numerics given as formulas and figures."""

import math
import subprocess
import sys
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from openxlstm.config import ModelConfig, StackConfig
from openxlstm.lm.model import LanguageModel
from openxlstm.nn.feedforward import GatedFeedForward
from openxlstm.nn.init import powerlaw_forget_bias, without_memory
from openxlstm.nn.mlstm import MLSTMLayer
from openxlstm.nn.norm import HeadNorm, LayerNorm
from openxlstm.nn.slstm import SLSTMLayer
from openxlstm.nn.stack import Stack

D, LAYERS = 256, "msms"
CONFIG = StackConfig(embedding_dim=D, layers=LAYERS, num_heads=4, bias=True)
SMALL = math.sqrt(2 / (5 * D))
WANG = 2 / (len(LAYERS) * math.sqrt(D))


def assert_normal(x: Tensor, std: float) -> None:
    """Whether the moments of x are those of N(0, std), as far as so many numbers can tell."""
    x, n = x.detach().double().flatten(), x.numel()
    assert n > 500
    assert abs(x.mean()) < 5 * std / math.sqrt(n)
    assert abs(x.std() / std - 1) < 5 / math.sqrt(2 * n)
    assert abs(x.pow(4).mean() / std**4 - 3) < 5 * math.sqrt(96 / n)  # no uniform distribution


def assert_uniform(x: Tensor, bound: float) -> None:
    """Whether x fills ±bound evenly."""
    assert x.abs().max() <= bound
    assert x.max() > 0.98 * bound
    assert x.min() < -0.98 * bound
    assert x.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def zeros(*tensors: Tensor | None) -> bool:
    return all(x is not None and not x.any() for x in tensors)


def test_mlstm_layer() -> None:
    layer = MLSTMLayer(CONFIG)
    for proj in (layer.up_proj, layer.q_proj, layer.k_proj, layer.v_proj):
        assert_normal(proj.weight, SMALL)
        assert zeros(proj.bias)
    assert_normal(layer.down_proj.weight, WANG)
    assert zeros(layer.down_proj.bias, layer.gate_weight)
    assert torch.equal(layer.skip, torch.ones(CONFIG.block.mlstm_dims(D)[0]))
    assert layer.gate_bias[1].tolist() == [3, 4, 5, 6]


def test_mlstm_input_gate_bias_is_a_little_noise() -> None:
    config = StackConfig(embedding_dim=512, layers="m", num_heads=1024)
    layer = MLSTMLayer(config)
    assert_normal(layer.gate_bias[0], 0.1)
    assert torch.equal(layer.gate_bias[1], torch.linspace(3, 6, 1024))


def test_slstm_layer() -> None:
    layer = SLSTMLayer(CONFIG, block_index=1)
    assert_normal(layer.input_weight, SMALL)
    i, f, z, o = layer.bias.unbind(1)
    assert zeros(layer.recurrent_weight, i, z, o)
    for head in f:
        assert torch.equal(head, powerlaw_forget_bias(D // 4, 1, 4))


def test_slstm_uniform_recurrent_weight() -> None:
    layer = SLSTMLayer(CONFIG.replace(slstm_recurrent_init="uniform"))
    assert_uniform(layer.recurrent_weight, 1 / math.sqrt(D))


def test_feedforward() -> None:
    ff = GatedFeedForward(CONFIG)
    assert_normal(ff.up_proj.weight, SMALL)
    assert_normal(ff.down_proj.weight, WANG)
    assert zeros(ff.up_proj.bias, ff.down_proj.bias)


@pytest.mark.parametrize("kernel_size", [1, 4, 9])
def test_convolution(kernel_size: int) -> None:
    options = {
        "mlstm_conv_kernel_size": kernel_size,
        "slstm_conv_kernel_size": kernel_size,
    }
    config = CONFIG.replace(**options)
    for conv in (MLSTMLayer(config).conv, SLSTMLayer(config).conv):
        assert conv is not None
        assert_uniform(conv.weight, 1 / math.sqrt(kernel_size))
        assert_uniform(conv.bias, 1 / math.sqrt(kernel_size))


def test_norms_start_neutral() -> None:
    norms = [part for part in Stack(CONFIG).modules() if isinstance(part, LayerNorm | HeadNorm)]
    assert len(norms) == 2 * 2 + 2 * 3 + 1  # 2 in an mLSTM block, 3 in an sLSTM block, 1 after all
    assert zeros(*(norm.weight for norm in norms))
    x = torch.randn(2, 3, D)
    plain = nn.functional.layer_norm(x, (D,))
    torch.testing.assert_close(LayerNorm(D)(x), plain)


def test_embedding_and_head() -> None:
    config = ModelConfig(vocab_size=50, num_positions=30, embedding_dim=D, layers="m")
    model = LanguageModel(config)
    assert model.position_embedding is not None
    for matrix in (model.token_embedding, model.position_embedding, model.head):
        assert_normal(matrix.weight, SMALL)
    assert not torch.equal(model.head.weight, model.token_embedding.weight)


def test_a_seed_means_the_same_weights() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([x.flatten() for x in Stack(CONFIG).parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


@pytest.mark.parametrize(
    ("head_dim", "block_index", "num_blocks"),
    [(8, 0, 4), (8, 1, 4), (8, 3, 4), (5, 0, 1), (2, 1, 2), (64, 6, 7)],
)
def test_powerlaw_forget_bias(head_dim: int, block_index: int, num_blocks: int) -> None:
    exponent = 0.3 + (1.3 * block_index / (num_blocks - 1) if num_blocks > 1 else 0)
    expected = [5 - 12 * (d / (head_dim - 1)) ** exponent for d in range(head_dim)]
    actual = powerlaw_forget_bias(head_dim, block_index, num_blocks)
    assert actual.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("block_index", "num_blocks", "expected"),
    [
        (0, 1, [5, -2.9170, -4.7470, -6.0078, -7]),  # exponent 0.3: forgets soon
        (1, 2, [5, 3.6943, 1.0415, -2.5733, -7]),  # exponent 1.6: remembers long
    ],
)
def test_powerlaw_forget_bias_in_figures(
    block_index: int, num_blocks: int, expected: Sequence[float]
) -> None:
    actual = powerlaw_forget_bias(5, block_index, num_blocks)
    assert actual.tolist() == pytest.approx(expected, abs=5e-4)


def test_a_head_of_one_channel_remembers() -> None:
    """The formula divides 0 by 0 here."""
    assert powerlaw_forget_bias(1, 0, 1).tolist() == [5]
    assert powerlaw_forget_bias(1, 2, 4).tolist() == [5]
    layer = SLSTMLayer(StackConfig(embedding_dim=4, layers="s", num_heads=4))
    assert layer.bias.isfinite().all()


@pytest.mark.parametrize("block", ["paper", "large"])
def test_without_memory(block: Literal["paper", "large"]) -> None:
    """Names, shapes and what is trained are the model's; its weights are nowhere yet."""
    layers = "mm" if block == "large" else "ms"
    config = ModelConfig.from_options(
        vocab_size=64, embedding_dim=64, layers=layers, block=block, bias=True, num_positions=4,
    )  # fmt: skip
    before = torch.get_rng_state()
    with without_memory():
        empty = LanguageModel(config)
    assert torch.equal(torch.get_rng_state(), before)
    shapes = {name: x.shape for name, x in LanguageModel(config).named_parameters()}
    assert {name: x.shape for name, x in empty.named_parameters()} == shapes
    somewhere = sum(x.numel() for x in empty.parameters() if not x.is_meta)
    assert somewhere < 0.01 * sum(x.numel() for x in empty.parameters())
    assert not torch.empty(1).is_meta


def test_without_memory_costs_no_time() -> None:
    """torch's own meta device imports its compiler to fill tensors."""
    code = (
        "import sys\n"
        "from openxlstm import LanguageModel, ModelConfig\n"
        "from openxlstm.nn.init import without_memory\n"
        "for block in 'paper', 'large':\n"
        "    with without_memory():\n"
        "        LanguageModel(ModelConfig(vocab_size=9, layers='mm', block=block, bias=True))\n"
        "with without_memory():\n"
        "    LanguageModel(ModelConfig(vocab_size=9, layers='ss', tie_weights=True))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "False\n"
