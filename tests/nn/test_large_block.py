"""The large block against the equations of xLSTM-7B (arXiv:2503.13427), written down a second time.

The second time is naive: one sequence after another, one step after another, one head after
another, in float64. B batch · T time · D width · NH heads · DQK, DHV widths of a head.
"""

import math
from collections.abc import Callable

import pytest
import torch
from tolerances import assert_close
from torch import Tensor, nn

from openxlstm.config import LargeBlockConfig, ModelConfig, StackConfig
from openxlstm.errors import UserError
from openxlstm.nn.large_block import LargeBlock, soft_cap
from openxlstm.nn.stack import Stack
from openxlstm.reference.mlstm import initial_state, step
from openxlstm.states import LayerState, MLSTMState

Weights = dict[str, Tensor]
Randomize = Callable[[nn.Module], None]

B, T, D, NH = 2, 9, 16, 2
CONFIG = StackConfig.from_options(
    embedding_dim=D, layers="mm", num_heads=NH, block="large", eps=1e-6
)


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    y = w[f"{name}.weight"] @ x
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def affine(w: Weights, name: str, x: Tensor) -> Tensor:
    y = w[f"{name}.weight"] * x
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def rms_norm(w: Weights, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
    return affine(w, name, x / torch.sqrt((x * x).mean() + eps))


def layer_norm(x: Tensor, eps: float) -> Tensor:
    deviation = x - x.mean()
    return deviation / torch.sqrt((deviation * deviation).mean() + eps)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def cap(x: Tensor, a: float) -> Tensor:
    return a * (torch.exp(2 * x / a) - 1) / (torch.exp(2 * x / a) + 1) if a else x


def naive_mlstm(w: Weights, block: LargeBlockConfig, rows: Tensor) -> Tensor:
    """The layer, for one sequence (T, D) that the norm has been through."""
    state, outputs = None, []
    for u in rows:
        q, k, v = (linear(w, f"{name}_proj", u).view(NH, -1) for name in "qkv")
        i_preact, f_preact = (
            cap(w["gate_weight"][g] @ u + w["gate_bias"][g], block.gate_soft_cap) for g in range(2)
        )
        if state is None:
            state = initial_state(q[None, :, None], v[None, :, None])
        log_f = -torch.log1p(torch.exp(-f_preact))
        h, state = step(q[None], k[None], v[None], i_preact[None], log_f[None], state, block.eps)
        h = affine(w, "norm", torch.cat([layer_norm(head, block.norm_eps) for head in h[0]]))
        outputs.append(linear(w, "out_proj", sigmoid(linear(w, "o_proj", u)) * h))
    return torch.stack(outputs)


def naive_block(w: Weights, config: StackConfig, x: Tensor) -> Tensor:
    """A whole block, for a batch x (B, T, D)."""
    layer, ff, options = part(w, "layer"), part(w, "ff"), config.block
    assert isinstance(options, LargeBlockConfig)
    results = []
    for row in x:
        eps = options.norm_eps
        u = torch.stack([rms_norm(w, "norm", x_t, eps) for x_t in row])
        row = row + naive_mlstm(layer, options, u)
        steps = []
        for x_t in row:
            u = rms_norm(w, "ff_norm", x_t, eps)
            gate, up = linear(ff, "gate_proj", u), linear(ff, "up_proj", u)
            steps.append(x_t + linear(ff, "down_proj", gate * sigmoid(gate) * up))
        results.append(torch.stack(steps))
    return torch.stack(results)


def part(w: Weights, name: str) -> Weights:
    """The weights of a submodule."""
    return {key.removeprefix(f"{name}."): x for key, x in w.items() if key.startswith(f"{name}.")}


def check(module: nn.Module, naive: Callable[[Weights, Tensor], Tensor]) -> None:
    """Compares output and every gradient of a module with those of a function of its weights."""
    module.double()
    w = {name: x.detach().clone().requires_grad_() for name, x in module.named_parameters()}
    x = torch.randn(B, T, D, dtype=torch.float64)
    x_here, x_there = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, _ = module(x_here)
    expected = naive(w, x_there)
    assert_close(y, expected, "output")
    upstream = torch.randn_like(y)
    y.backward(upstream)
    expected.backward(upstream)
    assert x_here.grad is not None
    assert x_there.grad is not None
    assert_close(x_here.grad, x_there.grad, "gradient of the input")
    for name, parameter in module.named_parameters():
        gradient = w[name].grad
        assert gradient is not None, name
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        assert_close(parameter.grad, gradient, f"gradient of {name}")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True},
        {"eps": 0.0},
        {"gate_soft_cap": 0.0},
        {"gate_soft_cap": 0.5},
        {"norm_eps": 0.1},
        {"ff_multiple": 7},
        {"qk_dim_factor": 1.0, "v_dim_factor": 0.75, "ff_factor": 5.0},
    ],
    ids=str,
)
def test_block_is_that_of_xlstm_7b(options: dict[str, float], randomize: Randomize) -> None:
    config = CONFIG.replace(**options)
    block = LargeBlock(config)
    randomize(block)
    check(block, lambda w, x: naive_block(w, config, x))


@pytest.mark.parametrize("bias", [False, True])
def test_stack_is_its_blocks_and_an_rms_norm(bias: bool, randomize: Randomize) -> None:
    config = CONFIG.replace(bias=bias)
    stack = Stack(config)
    randomize(stack)

    def naive(w: Weights, x: Tensor) -> Tensor:
        for index in range(2):
            x = naive_block(part(w, f"blocks.{index}"), config, x)
        return torch.stack([torch.stack([rms_norm(w, "norm", x_t) for x_t in row]) for row in x])

    check(stack, naive)


def test_float32_is_close_to_float64(randomize: Randomize) -> None:
    block = LargeBlock(CONFIG)
    randomize(block)
    w = {name: x.detach().double() for name, x in block.named_parameters()}
    x = torch.randn(B, T, D)
    y, _ = block(x)
    assert y.dtype == torch.float32
    assert_close(y, naive_block(w, CONFIG, x.double()))


def test_parameters_and_state() -> None:
    block = LargeBlock(CONFIG.replace(bias=True))
    F = 64
    assert {name: tuple(x.shape) for name, x in block.named_parameters()} == {
        "norm.weight": (D,), "norm.bias": (D,),
        "layer.gate_weight": (2, NH, D), "layer.gate_bias": (2, NH),
        "layer.q_proj.weight": (D // 2, D), "layer.q_proj.bias": (D // 2,),
        "layer.k_proj.weight": (D // 2, D), "layer.k_proj.bias": (D // 2,),
        "layer.v_proj.weight": (D, D), "layer.v_proj.bias": (D,),
        "layer.o_proj.weight": (D, D), "layer.o_proj.bias": (D,),
        "layer.norm.weight": (D,), "layer.norm.bias": (D,),
        "layer.out_proj.weight": (D, D), "layer.out_proj.bias": (D,),
        "ff_norm.weight": (D,), "ff_norm.bias": (D,),
        "ff.gate_proj.weight": (F, D), "ff.gate_proj.bias": (F,),
        "ff.up_proj.weight": (F, D), "ff.up_proj.bias": (F,),
        "ff.down_proj.weight": (D, F), "ff.down_proj.bias": (D,),
    }  # fmt: skip
    without = {name for name, _ in LargeBlock(CONFIG).named_parameters()}
    assert [name for name in without if "bias" in name] == ["layer.gate_bias"]
    conv, cell = block.initial_state(3)
    assert conv is None
    assert isinstance(cell, MLSTMState)
    assert [tuple(x.shape) for x in cell] == [(3, NH, 4, 8), (3, NH, 4), (3, NH)]


def test_a_state_of_an_slstm_is_refused() -> None:
    other = Stack(StackConfig(embedding_dim=D, layers="s", num_heads=NH)).initial_state(B)
    with pytest.raises(AssertionError, match="sLSTM"):
        LargeBlock(CONFIG)(torch.randn(B, T, D), LayerState(None, other.blocks[0].cell))


def test_start_is_that_of_xlstm_7b() -> None:
    """Appendix of arXiv:2405.04517 but for the input gate's bias and the output gate's weights."""
    config = CONFIG.replace(embedding_dim=256, num_heads=4)
    block = LargeBlock(config)
    layer, small, wang = block.layer, math.sqrt(2 / (5 * 256)), 2 / (2 * math.sqrt(256))
    for weight in (layer.q_proj, layer.k_proj, layer.v_proj, block.ff.gate_proj, block.ff.up_proj):
        assert weight.weight.std().item() == pytest.approx(small, rel=0.02)
    for weight in (layer.out_proj, block.ff.down_proj):
        assert weight.weight.std().item() == pytest.approx(wang, rel=0.02)
    assert not layer.o_proj.weight.any()
    assert not layer.gate_weight.any()
    assert layer.gate_bias.tolist() == [[-10] * 4, [3, 4, 5, 6]]
    for norm in (block.norm, layer.norm, block.ff_norm):
        assert norm.weight.eq(1).all()


def test_soft_cap() -> None:
    x = torch.tensor([-1e6, -1e-3, 0.0, 1e-3, 30.0, 1e6])
    assert_close(soft_cap(x, 30), torch.tensor([-30, -1e-3, 0, 1e-3, 30 * math.tanh(1), 30]))
    assert soft_cap(x, 0) is x


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": "msm"}, "block='large' has no sLSTM.*layers='msm'.*'mmm'"),
        ({"num_heads": 3}, "qk_dim_factor × embedding_dim=16 is 8, not a multiple.*=3"),
        ({"v_dim_factor": 0.7}, "v_dim_factor × embedding_dim=16 is 11"),
        ({"qk_dim_factor": 0.01}, "qk_dim_factor × embedding_dim=16 is 0"),
        ({"ff_factor": 0.0}, "ff_factor must be positive"),
        ({"gate_soft_cap": -1.0}, "gate_soft_cap must be 0 or more"),
        ({"logit_soft_cap": -1.0}, "logit_soft_cap must be 0 or more"),
        ({"block": "huge"}, "block must be paper or large or bare"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_a_users_mistake(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ModelConfig.from_options(**{"vocab_size": 5, "layers": "mm", **vars(CONFIG), **options})


@pytest.mark.parametrize(
    ("width", "factor", "inner"),
    [(768, 2.6667, 2048), (3072, 2.6667, 8192), (3072, 2.667, 8256), (4096, 2.6667, 10944)],
)
def test_width_of_the_feed_forward(width: int, factor: float, inner: int) -> None:
    """As the original's own code rounds; what 8/3 has too much in 2.6667 adds no 64 channels."""
    assert LargeBlockConfig(ff_factor=factor).ff_dim(width) == inner
