"""Blocks against the text of arXiv:2405.04517, figures 10 and 11, written down a second time.

The second time is naive: one sequence after another, one head after another, in float64, over the
reference cells. Names are the paper's; B batch · T time · D width · E inner width · NH heads.
"""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from tolerances import assert_close
from torch import Tensor, nn

from openxlstm import reference
from openxlstm.config import PaperBlockConfig, StackConfig
from openxlstm.nn.block import Block
from openxlstm.nn.stack import Stack
from openxlstm.reference import mlstm as reference_mlstm
from openxlstm.reference import slstm as reference_slstm

Weights = dict[str, Tensor]
Randomize = Callable[[nn.Module], None]

B, T, D, NH, E, F = 2, 7, 16, 2, 64, 64  # E and F: 2 × 16 and 1.3 × 16, rounded up to 64


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def headwise(w: Weights, name: str, x: Tensor) -> Tensor:
    """Group by group: y[h] = W[h] x[h]."""
    blocks = w[f"{name}.weight"]
    groups = x.chunk(len(blocks), dim=-1)
    y = torch.cat([group @ block.T for group, block in zip(groups, blocks, strict=True)], -1)
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def normed(x: Tensor) -> Tensor:
    deviation = x - x.mean(-1, keepdim=True)
    return deviation / (deviation.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return normed(x) * (1 + w[f"{name}.weight"])


def head_norm(w: Weights, name: str, h: Tensor) -> Tensor:
    """h (T, NH, DH) → (T, NH·DH), each head for itself."""
    return torch.cat([normed(head) for head in h.unbind(-2)], -1) * (1 + w[f"{name}.weight"])


def conv(w: Weights, name: str, x: Tensor) -> Tensor:
    """y_t = b + Σ_j w_j x_{t-K+1+j}, with zeros before the start."""
    weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    K = weight.shape[1]
    steps = []
    for t in range(len(x)):
        y = bias
        for j in range(K):
            if t - K + 1 + j >= 0:
                y = y + weight[:, j] * x[t - K + 1 + j]
        steps.append(y)
    return torch.stack(steps)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def block_of(config: StackConfig) -> PaperBlockConfig:
    assert isinstance(config.block, PaperBlockConfig)
    return config.block


def naive_mlstm(w: Weights, config: StackConfig, x: Tensor) -> Tensor:
    """The layer of an mLSTM block, for one sequence x (T, D)."""
    NH, block = config.num_heads, block_of(config)
    u = linear(w, "up_proj", x)
    a, z = u[:, : u.shape[1] // 2], u[:, u.shape[1] // 2 :]
    c = silu(conv(w, "conv", a) if block.mlstm_conv_kernel_size else a)
    q, k, v = headwise(w, "q_proj", c), headwise(w, "k_proj", c), headwise(w, "v_proj", a)
    qkv = torch.cat([q, k, v], dim=-1)
    i_preact = qkv @ w["gate_weight"][0].T + w["gate_bias"][0]  # (T, NH)
    f_preact = qkv @ w["gate_weight"][1].T + w["gate_bias"][1]

    def heads(x: Tensor) -> Tensor:
        return torch.stack(x.chunk(NH, dim=-1))[None]  # (1, NH, T, DH)

    h, _ = reference_mlstm.recurrent(
        heads(q), heads(k), heads(v), i_preact.T[None], -torch.log1p(torch.exp(-f_preact)).T[None],
        eps=block.mlstm_eps,
    )  # fmt: skip
    h = head_norm(w, "norm", h[0].transpose(0, 1)) + w["skip"] * c
    return linear(w, "down_proj", h * silu(z))


def naive_slstm(w: Weights, config: StackConfig, x: Tensor) -> Tensor:
    """The layer of an sLSTM block, for one sequence x (T, D)."""
    block = block_of(config)
    c = silu(conv(w, "conv", x)) if block.slstm_conv_kernel_size else x
    heads = []
    for weight, bias, c_head, x_head in zip(
        w["input_weight"], w["bias"], c.chunk(NH, -1), x.chunk(NH, -1), strict=True
    ):
        sources = c_head, c_head, x_head, x_head  # of the gates i, f, z, o
        gates = [s @ weight[g].T + bias[g] for g, s in enumerate(sources)]
        heads.append(torch.stack(gates, dim=1))  # (T, 4, DH)
    h, _ = reference_slstm.recurrent(
        torch.stack(heads, dim=1)[None],
        w["recurrent_weight"],
        forget_gate=block.slstm_forget_gate,
    )
    return head_norm(w, "norm", h[0])


def naive_feedforward(w: Weights, x: Tensor) -> Tensor:
    gate, value = linear(w, "up_proj", x).chunk(2, dim=-1)
    gelu = gate * (1 + torch.erf(gate / math.sqrt(2))) / 2
    return linear(w, "down_proj", gelu * value)


def part(w: Weights, name: str) -> Weights:
    """The weights of a submodule."""
    return {key.removeprefix(f"{name}."): x for key, x in w.items() if key.startswith(f"{name}.")}


def naive_block(w: Weights, config: StackConfig, kind: str, x: Tensor) -> Tensor:
    """A whole block, for a batch x (B, T, D)."""
    layer = {"m": naive_mlstm, "s": naive_slstm}[kind]
    x = x + torch.stack([layer(part(w, "layer"), config, row) for row in layer_norm(w, "norm", x)])
    if kind == "s" and block_of(config).slstm_ff_factor:
        x = x + naive_feedforward(part(w, "ff"), layer_norm(w, "ff_norm", x))
    return x


def weights_of(module: nn.Module) -> Weights:
    return {name: x.detach().clone().requires_grad_() for name, x in module.named_parameters()}


def check(module: nn.Module, naive: Callable[[Weights, Tensor], Tensor]) -> None:
    """Compares output and every gradient of a module with those of a function of its weights."""
    module.double()
    w = weights_of(module)
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
        assert_close(parameter.grad, gradient, f"gradient of {name}")


@pytest.mark.parametrize(("kernel_size", "bias"), list(product([0, 1, 4], [False, True])))
def test_mlstm_block_is_the_papers(kernel_size: int, bias: bool, randomize: Randomize) -> None:
    config = StackConfig.from_options(
        embedding_dim=D, layers="m", num_heads=NH, bias=bias, mlstm_conv_kernel_size=kernel_size
    )
    block = Block(config, 0)
    randomize(block)
    check(block, lambda w, x: naive_block(w, config, "m", x))


@pytest.mark.parametrize("options", [{"mlstm_eps": 1e-2}, {"mlstm_qkv_block_size": 16}], ids=str)
def test_mlstm_options(options: dict[str, float], randomize: Randomize) -> None:
    config = StackConfig.from_options(
        **{"embedding_dim": D, "layers": "m", "num_heads": NH, "mlstm_proj_factor": 5.0, **options}
    )
    assert block_of(config).mlstm_inner_dim(D) == 128
    block = Block(config, 0)
    randomize(block)
    check(block, lambda w, x: naive_block(w, config, "m", x))


@pytest.mark.parametrize(
    ("kernel_size", "bias", "forget_gate", "ff_factor"),
    list(product([0, 4], [False, True], ["sigmoid", "exp"], [0.0, 1.3])),
)
def test_slstm_block_is_the_papers(
    kernel_size: int, bias: bool, forget_gate: str, ff_factor: float, randomize: Randomize
) -> None:
    config = StackConfig.from_options(
        embedding_dim=D, layers="s", num_heads=NH, bias=bias, slstm_conv_kernel_size=kernel_size,
        slstm_forget_gate=forget_gate, slstm_ff_factor=ff_factor,
    )  # fmt: skip
    block = Block(config, 0)
    randomize(block)
    check(block, lambda w, x: naive_block(w, config, "s", x))


def test_stack_is_its_blocks_and_a_norm(randomize: Randomize) -> None:
    config = StackConfig(embedding_dim=D, layers="sms", num_heads=NH)
    stack = Stack(config)
    randomize(stack)

    def naive(w: Weights, x: Tensor) -> Tensor:
        for index, kind in enumerate(config.layers):
            x = naive_block(part(w, f"blocks.{index}"), config, kind, x)
        return layer_norm(w, "norm", x)

    check(stack, naive)


@pytest.mark.parametrize("kind", ["m", "s"])
def test_float32_block_is_close_to_float64(kind: str, randomize: Randomize) -> None:
    config = StackConfig(embedding_dim=D, layers=kind, num_heads=NH)
    block = Block(config, 0)
    randomize(block)
    w = {name: x.double() for name, x in weights_of(block).items()}
    x = torch.randn(B, T, D)
    y, _ = block(x)
    assert y.dtype == torch.float32
    assert_close(y, naive_block(w, config, kind, x.double()))


def shapes(config: StackConfig) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in Block(config, 0).named_parameters()}


def test_mlstm_parameters() -> None:
    config = StackConfig(embedding_dim=D, layers="m", num_heads=NH, bias=True)
    assert shapes(config) == {
        "norm.weight": (D,),
        "layer.gate_weight": (2, NH, 3 * E),
        "layer.gate_bias": (2, NH),
        "layer.skip": (E,),
        "layer.up_proj.weight": (2 * E, D),
        "layer.up_proj.bias": (2 * E,),
        "layer.conv.weight": (E, 4),
        "layer.conv.bias": (E,),
        "layer.q_proj.weight": (E // 4, 4, 4),
        "layer.q_proj.bias": (E,),
        "layer.k_proj.weight": (E // 4, 4, 4),
        "layer.k_proj.bias": (E,),
        "layer.v_proj.weight": (E // 4, 4, 4),
        "layer.v_proj.bias": (E,),
        "layer.norm.weight": (E,),
        "layer.down_proj.weight": (D, E),
        "layer.down_proj.bias": (D,),
    }


def test_slstm_parameters() -> None:
    config = StackConfig(embedding_dim=D, layers="s", num_heads=NH, bias=True)
    DH = D // NH
    assert shapes(config) == {
        "norm.weight": (D,),
        "layer.input_weight": (NH, 4, DH, DH),
        "layer.recurrent_weight": (NH, 4, DH, DH),
        "layer.bias": (NH, 4, DH),
        "layer.conv.weight": (D, 4),
        "layer.conv.bias": (D,),
        "layer.norm.weight": (D,),
        "ff_norm.weight": (D,),
        "ff.up_proj.weight": (2 * F, D),
        "ff.up_proj.bias": (2 * F,),
        "ff.down_proj.weight": (D, F),
        "ff.down_proj.bias": (D,),
    }


def test_what_an_option_leaves_out_has_no_parameters() -> None:
    config = StackConfig(embedding_dim=D, num_heads=NH)
    bare = shapes(config.replace(layers="m", mlstm_conv_kernel_size=0))
    assert not [name for name in bare if "conv" in name or name.endswith("proj.bias")]
    bare = shapes(config.replace(layers="s", slstm_conv_kernel_size=0, slstm_ff_factor=0.0))
    assert not [name for name in bare if "conv" in name or "ff" in name]


@pytest.mark.parametrize("kind", ["m", "s"])
def test_a_state_of_the_other_kind_is_refused(kind: str) -> None:
    config = StackConfig(embedding_dim=D, layers="ms", num_heads=NH)
    blocks = {"m": Block(config, 0), "s": Block(config, 1)}
    (other,) = set(blocks) - {kind}
    with pytest.raises((AssertionError, ValueError)):
        blocks[kind](torch.randn(B, T, D), blocks[other].initial_state(B))


@pytest.mark.parametrize("part", ["norm", "layer", "ff"])
def test_who_watches_a_part_sees_it(part: str, randomize: Randomize) -> None:
    """Also where one operation does the whole block."""
    block = Block(StackConfig(embedding_dim=64, layers="s", num_heads=NH), 0)
    randomize(block)
    x, calls = torch.randn(8, 64, 64), []
    before, _ = block(x)
    handle = block.get_submodule(part).register_forward_hook(lambda *call: calls.append(call))
    watched, _ = block(x)
    assert len(calls) == 1
    assert_close(watched, before, "output")
    handle.remove()
    assert torch.equal(block(x)[0], before)


def test_reference_is_not_what_runs() -> None:
    """The comparison above would prove nothing if both sides were the same code."""
    from openxlstm.ops import TABLE

    chosen = [backends[0].run.__module__ for backends in TABLE.values()]
    assert not [load for load in chosen if load.startswith(reference.__name__)]
