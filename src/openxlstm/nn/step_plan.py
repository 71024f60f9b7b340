"""Where a stack's weights and states are, for the native step (`ops/native_step.py`)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from openxlstm.nn.bare import BareBlock
from openxlstm.nn.block import Block
from openxlstm.nn.conv import weights_of
from openxlstm.nn.mlstm import MLSTMLayer
from openxlstm.nn.norm import HeadNorm, LayerNorm
from openxlstm.nn.slstm import SLSTMLayer
from openxlstm.nn.stack import Stack
from openxlstm.ops import native
from openxlstm.ops.native_step import LayerPlan
from openxlstm.states import LayerState, S, StackState, map_state


def refuses(stack: Stack, *others: nn.Module | None) -> str | None:
    """Why a stack, with what stands before and after it, cannot be stepped natively, or None."""
    if stack.config.block == "large":
        return "it knows the paper's blocks and bare ones, and these are large"
    for part in (stack, *others):
        for parameter in () if part is None else part.parameters():
            if parameter.device.type != "cpu":
                return f"it runs on the CPU, and a weight is on {parameter.device.type}"
            if parameter.dtype != torch.float32:
                return f"it computes in float32, and a weight is {parameter.dtype}"
            if not parameter.is_contiguous():
                return "a weight is not in one piece"
    return native.missing()


def layer_plans(stack: Stack, state: StackState) -> list[LayerPlan]:
    """A plan for each block, over the state that a step overwrites."""
    return list(_plans(stack, state))


def own(state: S) -> S:
    """A copy of a state, every part in one piece, that steps may overwrite."""
    return map_state(_copy, state)


def _copy(part: Tensor) -> Tensor:
    return part.detach().clone(memory_format=torch.contiguous_format)


def norm_weight(norm: nn.Module | None) -> Tensor | None:
    """The scale of a norm that may not be there, as after bare blocks."""
    return norm.weight if isinstance(norm, LayerNorm | HeadNorm) else None


def _plans(stack: Stack, state: StackState) -> Iterator[LayerPlan]:
    for block, layer_state in zip(stack.blocks, state.blocks, strict=True):
        if isinstance(block, BareBlock):
            yield _bare_plan(block, layer_state)
        else:
            assert isinstance(block, Block)
            yield _paper_plan(block, layer_state)


def _bare_plan(block: BareBlock, state: LayerState) -> LayerPlan:
    layer, proj = block.layer, block.proj
    is_slstm = isinstance(layer, SLSTMLayer)
    if is_slstm:
        weights = (layer.input_weight, layer.bias, layer.recurrent_weight)
    else:
        qkvo = layer.qkvo_proj
        weights = (qkvo.weight, qkvo.bias, layer.gate_weight, layer.gate_bias)
    return LayerPlan(
        is_slstm=is_slstm,
        inner=0 if is_slstm else layer.num_heads * layer.head_dim,
        kernel_size=0,
        option=int(is_slstm and layer.forget_gate == "exp"),
        eps=0.0 if is_slstm else layer.eps,
        norm=None,
        conv=(None, None),
        head_norm=None,
        weights=weights,
        window=None,
        state=state.cell,
        proj=(None, None) if proj is None else (proj.weight, proj.bias),
    )


def _paper_plan(block: Block, state: LayerState) -> LayerPlan:
    layer, window = block.layer, None if state.conv is None else state.conv.x
    if isinstance(layer, MLSTMLayer):
        projections = (layer.q_proj, layer.k_proj, layer.v_proj)
        return LayerPlan(
            is_slstm=False,
            inner=layer.num_heads * layer.head_dim,
            kernel_size=0 if layer.conv is None else layer.conv.weight.shape[1],
            option=layer.q_proj.weight.shape[-1],
            eps=layer.eps,
            norm=block.norm.weight,
            conv=weights_of(layer.conv),
            head_norm=layer.norm.weight,
            weights=(
                layer.up_proj.weight,
                layer.up_proj.bias,
                *(projection.weight for projection in projections),
                *(projection.bias for projection in projections),
                layer.gate_weight,
                layer.gate_bias,
                layer.skip,
                layer.down_proj.weight,
                layer.down_proj.bias,
            ),
            window=window,
            state=state.cell,
        )
    assert isinstance(layer, SLSTMLayer)
    ff, ff_norm = block.ff, block.ff_norm
    feedforward = ()
    if ff is not None and ff_norm is not None:
        up, down = ff.up_proj, ff.down_proj
        feedforward = (ff_norm.weight, up.weight, up.bias, down.weight, down.bias)
    return LayerPlan(
        is_slstm=True,
        inner=0 if ff is None else ff.down_proj.weight.shape[1],
        kernel_size=0 if layer.conv is None else layer.conv.weight.shape[1],
        option=int(layer.forget_gate == "exp"),
        eps=0.0,
        norm=block.norm.weight,
        conv=weights_of(layer.conv),
        head_norm=norm_weight(layer.norm),
        weights=(layer.input_weight, layer.bias, layer.recurrent_weight, *feedforward),
        window=window,
        state=state.cell,
    )
