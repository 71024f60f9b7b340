"""Where a stack's weights and states are, for the native step (`ops/native_step.py`)."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from openxlstm.nn.bare import BareBlock
from openxlstm.nn.block import Block
from openxlstm.nn.conv import weights_of
from openxlstm.nn.large import LargeBlock
from openxlstm.nn.mlstm import MLSTMLayer
from openxlstm.nn.norm import EPS, RMSNorm
from openxlstm.nn.slstm import SLSTMLayer
from openxlstm.nn.stack import Stack
from openxlstm.ops.native import backend as native
from openxlstm.ops.native.step import LayerPlan, Norms
from openxlstm.states import LayerState, S, StackState, map_state


def refuses(stack: Stack, *others: nn.Module | None) -> str | None:
    """Why a stack, with what stands before and after it, cannot be stepped natively, or None."""
    dtypes = set[torch.dtype]()
    for part in (stack, *others):
        for parameter in () if part is None else part.parameters():
            if parameter.device.type != "cpu":
                return f"it runs on the CPU, and a weight is on {parameter.device.type}"
            if parameter.dtype not in (torch.float32, torch.bfloat16):
                return f"it reads float32 and bfloat16, and a weight is {parameter.dtype}"
            if not parameter.is_contiguous():
                return "a weight is not in one piece"
            dtypes.add(parameter.dtype)
    if len(dtypes) > 1:
        return "some weights are torch.float32, and some torch.bfloat16"
    return native.missing()


def layer_plans(stack: Stack, state: StackState) -> list[LayerPlan]:
    """A plan for each block, over the state that a step overwrites."""
    return list(_plans(stack, state))


def own(state: S, *, widened: bool = False) -> S:
    """A copy of a state, every part in one piece, that steps may overwrite; `widened` to what the
    native step computes in."""

    def copy(part: Tensor) -> Tensor:
        part = part.detach().clone(memory_format=torch.contiguous_format)
        return part.float() if widened and part.is_floating_point() else part

    return map_state(copy, state)


def in_dtypes(state: S, dtypes: Iterable[torch.dtype]) -> S:
    """A copy of a state with its parts in these dtypes, one for each."""
    each = iter(dtypes)
    return map_state(lambda part: part.to(next(each), copy=True), state)


def wide(x: Tensor | None) -> Tensor | None:
    """What is no matrix, in float32: a copy where a model is in bfloat16, else x itself."""
    return None if x is None else x.detach().float()


def is_narrow(stack: Stack) -> bool:
    """Whether its weights are in bfloat16."""
    return next(stack.parameters()).dtype == torch.bfloat16


def norms_of(stack: Stack) -> Norms:
    """What is to be known of the norms of its rows."""
    config, norm = stack.config, stack.norm
    large = config.block == "large"
    weight = None if isinstance(norm, nn.Identity) else wide(norm.weight)
    bias = wide(norm.bias) if isinstance(norm, RMSNorm) else None
    return Norms(large, config.large_norm_eps if large else EPS, weight, bias)


def _plans(stack: Stack, state: StackState) -> Iterator[LayerPlan]:
    for block, layer_state in zip(stack.blocks, state.blocks, strict=True):
        if isinstance(block, BareBlock):
            yield _bare_plan(block, layer_state)
        elif isinstance(block, LargeBlock):
            yield _large_plan(block, layer_state)
        else:
            assert isinstance(block, Block)
            yield _paper_plan(block, layer_state)


def _bare_plan(block: BareBlock, state: LayerState) -> LayerPlan:
    layer, proj = block.layer, block.proj
    options: dict[str, Any] = {
        "norm": None, "head_norm": None, "state": state.cell,
        "proj": (None, None) if proj is None else (proj.weight, wide(proj.bias)),
    }  # fmt: skip
    if isinstance(layer, SLSTMLayer):
        weights = (layer.input_weight, wide(layer.bias), layer.recurrent_weight)
        option = int(layer.forget_gate == "exp")
        return LayerPlan("slstm", 0, weights=weights, option=option, **options)
    qkvo, DH = layer.qkvo_proj, layer.head_dim
    weights = (qkvo.weight, wide(qkvo.bias), layer.gate_weight, wide(layer.gate_bias))
    dims = {"inner": layer.num_heads * DH, "head_dims": (DH, DH), "eps": layer.eps}
    return LayerPlan("mlstm", weights=weights, **dims, **options)


def _large_plan(block: LargeBlock, state: LayerState) -> LayerPlan:
    layer, ff = block.layer, block.ff
    projections = layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj
    halves = ff.gate_proj, ff.up_proj, ff.down_proj
    return LayerPlan(
        kind="large",
        inner=ff.down_proj.weight.shape[1],
        head_dims=layer.head_dims,
        eps=layer.eps,
        gate_soft_cap=layer.gate_soft_cap,
        norm=wide(block.norm.weight),
        norm_bias=wide(block.norm.bias),
        head_norm=wide(layer.norm.weight),
        head_norm_bias=wide(layer.norm.bias),
        weights=(
            *(projection.weight for projection in projections),
            layer.gate_weight,
            *(wide(projection.bias) for projection in projections),
            wide(layer.gate_bias),
            layer.out_proj.weight,
            wide(layer.out_proj.bias),
            wide(block.ff_norm.weight),
            wide(block.ff_norm.bias),
            *(half.weight for half in halves),
            *(wide(half.bias) for half in halves),
        ),
        state=state.cell,
    )


def _paper_plan(block: Block, state: LayerState) -> LayerPlan:
    layer = block.layer
    conv_weight, conv_bias = weights_of(layer.conv)
    shared: dict[str, Any] = {
        "kernel_size": 0 if conv_weight is None else conv_weight.shape[1],
        "norm": wide(block.norm.weight),
        "conv": (wide(conv_weight), wide(conv_bias)),
        "head_norm": None if layer.norm is None else wide(layer.norm.weight),
        "window": None if state.conv is None else state.conv.x,
        "state": state.cell,
    }
    if isinstance(layer, MLSTMLayer):
        projections, DH = (layer.q_proj, layer.k_proj, layer.v_proj), layer.head_dim
        weights = (
            layer.up_proj.weight,
            wide(layer.up_proj.bias),
            *(wide(projection.weight) for projection in projections),
            *(wide(projection.bias) for projection in projections),
            layer.gate_weight,
            wide(layer.gate_bias),
            wide(layer.skip),
            layer.down_proj.weight,
            wide(layer.down_proj.bias),
        )
        dims = {"inner": layer.num_heads * DH, "head_dims": (DH, DH), "eps": layer.eps}
        side = layer.q_proj.weight.shape[-1]
        return LayerPlan("mlstm", weights=weights, option=side, **dims, **shared)
    assert isinstance(layer, SLSTMLayer)
    ff, ff_norm = block.ff, block.ff_norm
    feedforward = ()
    if ff is not None and ff_norm is not None:
        up, down = ff.up_proj, ff.down_proj
        feedforward = (
            wide(ff_norm.weight), up.weight, wide(up.bias), down.weight, wide(down.bias)
        )  # fmt: skip
    return LayerPlan(
        kind="slstm",
        inner=0 if ff is None else ff.down_proj.weight.shape[1],
        option=int(layer.forget_gate == "exp"),
        weights=(layer.input_weight, wide(layer.bias), layer.recurrent_weight, *feedforward),
        **shared,
    )
