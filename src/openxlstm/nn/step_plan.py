"""Where a stack's weights and states are, for the native step (`ops/native/step.py`)."""

from collections.abc import Iterable, Iterator
from typing import Any, overload

import torch
from torch import Tensor, nn

from openxlstm.config import LargeBlockConfig
from openxlstm.nn.bare import BareBlock, BareMLSTMLayer
from openxlstm.nn.block import Block
from openxlstm.nn.conv import weights_of
from openxlstm.nn.large import LargeBlock
from openxlstm.nn.mlstm import MLSTMLayer
from openxlstm.nn.norm import EPS, RMSNorm
from openxlstm.nn.slstm import SLSTMLayer
from openxlstm.nn.stack import Stack
from openxlstm.ops.native import backend as native
from openxlstm.ops.native.step import (
    BareMLSTMStepWeights,
    BareSLSTMStepWeights,
    LargeStepWeights,
    LayerPlan,
    MLSTMStepWeights,
    SLSTMStepWeights,
)
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


@overload
def wide(x: Tensor) -> Tensor: ...
@overload
def wide(x: Tensor | None) -> Tensor | None: ...
def wide(x: Tensor | None) -> Tensor | None:
    """x in float32, a copy where it is in bfloat16: for weights that are no matrices."""
    return None if x is None else x.detach().float()


def matrix_dtype(stack: Stack) -> torch.dtype:
    """The dtype of its matrices."""
    return next(stack.parameters()).dtype


def norm_options(stack: Stack) -> dict[str, Any]:
    """The kind and the epsilon of the norms of its rows, as a `StepPlan` takes them."""
    block = stack.config.block
    is_large = isinstance(block, LargeBlockConfig)
    return {"rms_norm": is_large, "norm_eps": block.norm_eps if is_large else EPS}


def norm_weights(stack: Stack) -> dict[str, Tensor | None]:
    """Weight and bias of its last norm, as `ModelStepWeights` takes them."""
    norm = stack.norm
    return {
        "norm": None if isinstance(norm, nn.Identity) else wide(norm.weight),
        "norm_bias": wide(norm.bias) if isinstance(norm, RMSNorm) else None,
    }


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
    before = (None, None) if proj is None else (proj.weight, wide(proj.bias))
    if isinstance(layer, SLSTMLayer):
        weights = BareSLSTMStepWeights(
            *before,
            input=layer.input_weight,
            bias=wide(layer.bias),
            recurrent=layer.recurrent_weight,
        )
        return LayerPlan(weights, state.cell, exp_forget_gate=layer.forget_gate == "exp")
    assert isinstance(layer, BareMLSTMLayer)
    weights = BareMLSTMStepWeights(
        *before,
        qkvo=layer.qkvo_proj.weight,
        qkvo_bias=wide(layer.qkvo_proj.bias),
        gate=layer.gate_weight,
        gate_bias=wide(layer.gate_bias),
    )
    return LayerPlan(weights, state.cell, eps=layer.eps)


def _large_plan(block: LargeBlock, state: LayerState) -> LayerPlan:
    layer, ff = block.layer, block.ff
    weights = LargeStepWeights(
        norm=wide(block.norm.weight),
        norm_bias=wide(block.norm.bias),
        q=layer.q_proj.weight,
        k=layer.k_proj.weight,
        v=layer.v_proj.weight,
        o=layer.o_proj.weight,
        gate=layer.gate_weight,
        q_bias=wide(layer.q_proj.bias),
        k_bias=wide(layer.k_proj.bias),
        v_bias=wide(layer.v_proj.bias),
        o_bias=wide(layer.o_proj.bias),
        gate_bias=wide(layer.gate_bias),
        head_norm=wide(layer.norm.weight),
        head_norm_bias=wide(layer.norm.bias),
        out=layer.out_proj.weight,
        out_bias=wide(layer.out_proj.bias),
        ff_norm=wide(block.ff_norm.weight),
        ff_norm_bias=wide(block.ff_norm.bias),
        ff_gate=ff.gate_proj.weight,
        ff_up=ff.up_proj.weight,
        ff_down=ff.down_proj.weight,
        ff_gate_bias=wide(ff.gate_proj.bias),
        ff_up_bias=wide(ff.up_proj.bias),
        ff_down_bias=wide(ff.down_proj.bias),
    )
    return LayerPlan(weights, state.cell, eps=layer.eps, gate_soft_cap=layer.gate_soft_cap)


def _paper_plan(block: Block, state: LayerState) -> LayerPlan:
    layer = block.layer
    conv, conv_bias = weights_of(layer.conv)
    window = None if state.conv is None else state.conv.x
    if isinstance(layer, MLSTMLayer):
        weights = MLSTMStepWeights(
            norm=wide(block.norm.weight),
            conv=wide(conv),
            conv_bias=wide(conv_bias),
            up=layer.up_proj.weight,
            up_bias=wide(layer.up_proj.bias),
            q=wide(layer.q_proj.weight),
            k=wide(layer.k_proj.weight),
            v=wide(layer.v_proj.weight),
            q_bias=wide(layer.q_proj.bias),
            k_bias=wide(layer.k_proj.bias),
            v_bias=wide(layer.v_proj.bias),
            gate=layer.gate_weight,
            gate_bias=wide(layer.gate_bias),
            head_norm=wide(layer.norm.weight),
            skip=wide(layer.skip),
            down=layer.down_proj.weight,
            down_bias=wide(layer.down_proj.bias),
        )
        return LayerPlan(weights, state.cell, window, eps=layer.eps)
    assert isinstance(layer, SLSTMLayer)
    assert layer.norm is not None
    ff, ff_norm, feedforward = block.ff, block.ff_norm, dict[str, Tensor | None]()
    if ff is not None and ff_norm is not None:
        feedforward = {
            "ff_norm": wide(ff_norm.weight),
            "ff_up": ff.up_proj.weight,
            "ff_up_bias": wide(ff.up_proj.bias),
            "ff_down": ff.down_proj.weight,
            "ff_down_bias": wide(ff.down_proj.bias),
        }
    weights = SLSTMStepWeights(
        norm=wide(block.norm.weight),
        conv=wide(conv),
        conv_bias=wide(conv_bias),
        input=layer.input_weight,
        bias=wide(layer.bias),
        recurrent=layer.recurrent_weight,
        head_norm=wide(layer.norm.weight),
        **feedforward,
    )
    return LayerPlan(weights, state.cell, window, exp_forget_gate=layer.forget_gate == "exp")
