"""Plans the native step (`ops/native/step.py`) of a model: whether it may run, and its weights.

B batch
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from openxlstm.nn.bare import BareBlock
from openxlstm.nn.block import Block
from openxlstm.nn.conv import weights_of
from openxlstm.nn.dropout import Dropout
from openxlstm.nn.fusion import find_fault, global_hook, is_watched
from openxlstm.nn.large_block import LargeBlock
from openxlstm.nn.mlstm import MLSTMLayer
from openxlstm.nn.norm import EPS, LayerNorm, RMSNorm, WholeNorm
from openxlstm.nn.slstm import SLSTMLayer
from openxlstm.nn.stack import BLOCKS, Stack
from openxlstm.ops.native import backend as native
from openxlstm.ops.native.step import (
    BareMLSTMStepWeights,
    BareSLSTMStepWeights,
    LargeStepWeights,
    LayerPlan,
    MLSTMStepWeights,
    ModelStepWeights,
    PackedPlan,
    SLSTMStepWeights,
    StepPlan,
)
from openxlstm.states import LayerState, ModelState


class StepParts(NamedTuple):
    """The modules that a native step replaces, and their settings."""

    kind: type[nn.Module]
    """The class whose `forward` the step replaces. A subclass must not override it."""
    stack: Stack
    in_proj: nn.Linear | None = None
    """The projection before the stack, for a layer that reads features."""
    token_embedding: nn.Embedding | None = None
    position_embedding: nn.Embedding | None = None
    dropout: Dropout | None = None
    head: nn.Linear | None = None
    logit_soft_cap: float = 0.0


class Plan(NamedTuple):
    """A native step that is ready to run."""

    packed: PackedPlan
    out: Tensor
    """The result of a step, overwritten by the next: (B, V) float32, or (B, D) without a head."""
    widened: list[Tensor]
    """float32 copies of bfloat16 weights that are not matrices: biases, norms, …"""
    stored: list[Tensor]
    """The originals of `widened`."""
    watched: Any
    """Everything that must stay as it is while the plan is used; see the extension's `watched`."""
    kept: list[Tensor]
    """Tensors whose memory the plan points to, kept alive."""


KINDS: dict[str, Any] = {
    "in_proj": nn.Linear,
    "token_embedding": nn.Embedding,
    "position_embedding": nn.Embedding,
    "dropout": Dropout,
    "head": nn.Linear,
}
"""The expected classes of the parts outside the stack."""


def why_not_native(model: Any) -> str | None:
    """Why single steps of a model cannot run natively, with the module's name, or None."""
    reason = native.missing() or global_hook()
    if reason is not None:
        return reason
    parts: StepParts = model.step_parts()
    if is_watched(model):
        return "the model itself has hooks, or a forward that was replaced or compiled"
    if type(model).forward is not parts.kind.forward:
        return f"{type(model).__name__} overrides forward"
    stack = parts.stack
    if type(stack) is not Stack or is_watched(stack):
        return f"stack is watched, or of class {type(stack).__name__}, not Stack"
    blocks = ((f"stack.blocks.{i}", block) for i, block in enumerate(stack.blocks))
    named = [
        *((name, getattr(parts, name), kind) for name, kind in KINDS.items()),
        *((name, block, BLOCKS[stack.config.block.kind]) for name, block in blocks),
        ("stack.norm", stack.norm, (LayerNorm, RMSNorm, nn.Identity)),
    ]
    for fault in (find_fault(*part) for part in named):
        if fault is not None:
            return str(fault)
    return _why_weights_differ(_modules(model, parts))


def make_plan(model: Any, state: Any, batch_size: int) -> Plan:
    """Plans the native step of a model for which `why_not_native` has no reason.

    Args:
        state: a ModelState or a StackState, contiguous and in float32; the step overwrites it.

    Raises:
        ValueError: if sizes, dtypes or layouts of the weights do not fit together.
    """
    parts: StepParts = model.step_parts()
    stack, head, in_proj = parts.stack, parts.head, parts.in_proj
    stack_state, position = state if isinstance(state, ModelState) else (state, None)
    widen = _Widened()
    tokens, positions = parts.token_embedding, parts.position_embedding
    D = stack.config.embedding_dim
    width = D if head is None else head.weight.shape[0]
    out = torch.empty(batch_size, width, dtype=torch.float32, device="cpu")
    weights = ModelStepWeights(
        tokens=None if tokens is None else tokens.weight,
        positions=None if positions is None else positions.weight,
        proj=None if in_proj is None else in_proj.weight,
        proj_bias=None if in_proj is None else widen(in_proj.bias),
        norm=None if isinstance(stack.norm, nn.Identity) else widen(stack.norm.weight),
        norm_bias=widen(stack.norm.bias) if isinstance(stack.norm, RMSNorm) else None,
        head=None if head is None else head.weight,
    )
    features = D if in_proj is None else in_proj.weight.shape[1]
    blocks = zip(stack.blocks, stack_state.blocks, strict=True)
    plan = StepPlan(
        batch_size=batch_size,
        dim=D,
        num_heads=_only("number of heads", {block.layer.num_heads for block in stack.blocks}),  # pyright: ignore
        weights=weights,
        layers=[_layer_plan(block, layer_state, widen) for block, layer_state in blocks],
        out=out,
        dtype=_matrix_dtype(stack),
        position=position,
        num_features=features if tokens is None else 0,
        rms_norm=stack.config.block.kind == "large",
        norm_eps=_only("eps of norms", _norm_eps(stack)),
        logit_soft_cap=parts.logit_soft_cap,
    )
    modules = _modules(model, parts)
    parameters = [p for module in modules for p in module._parameters.values() if p is not None]
    return Plan(
        plan.pack(), out, widen.copies, widen.sources, _watched(modules, parameters),
        [parameter.detach() for parameter in parameters],
    )  # fmt: skip


class _Widened:
    """Converts weights that are not matrices to float32, and records the copies."""

    def __init__(self) -> None:
        self.sources: list[Tensor] = []
        self.copies: list[Tensor] = []

    @overload
    def __call__(self, x: Tensor) -> Tensor: ...
    @overload
    def __call__(self, x: Tensor | None) -> Tensor | None: ...
    def __call__(self, x: Tensor | None) -> Tensor | None:
        if x is None or x.dtype == torch.float32:
            return None if x is None else x.detach()
        self.sources.append(x.detach())
        self.copies.append(x.detach().float())
        return self.copies[-1]


def _modules(model: nn.Module, parts: StepParts) -> list[nn.Module]:
    """The model and all modules in its parts."""
    found = (part for part in parts if isinstance(part, nn.Module))
    return [model, *(module for part in found for module in part.modules())]


def _watched(modules: list[nn.Module], parameters: Sequence[Tensor]) -> Any:
    """Watches modules and parameters, their memory, and the settings that a plan has copied."""
    tables = (
        table for module in modules for table in (module._modules, module._parameters) if table
    )
    settings = (
        (vars(module), name, value)
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, float | str) and not isinstance(module, nn.Dropout)
    )
    return native.extension().watched(
        torch.ops.openxlstm.watch(list(parameters)),
        (
            tuple((table, tuple(table.values())) for table in tables),
            tuple((vars(module), len(vars(module))) for module in modules),
            tuple((module, type(module)) for module in modules),
            tuple(settings),
        ),
    )


def _why_weights_differ(modules: list[nn.Module]) -> str | None:
    dtypes = set[torch.dtype]()
    for module in modules[1:]:
        for name, weight in vars(module).items():
            if isinstance(weight, Tensor):  # as in a replica, or set by a hypernetwork
                return f"{name} of a {type(module).__name__} is not a registered parameter"
        for weight in module._parameters.values():
            if weight is None:
                continue
            if weight.device.type != "cpu":
                return f"it runs on the CPU, and a weight is on {weight.device.type}"
            if weight.dtype not in (torch.float32, torch.bfloat16):
                return f"it reads float32 and bfloat16, and a weight is {weight.dtype}"
            if not weight.is_contiguous():
                return "a weight is not contiguous"
            dtypes.add(weight.dtype)
    if len(dtypes) > 1:
        return "some weights are torch.float32, and some torch.bfloat16"
    return None


def _matrix_dtype(stack: Stack) -> torch.dtype:
    return next(stack.parameters()).dtype


def _norm_eps(stack: Stack) -> set[float]:
    norms = (norm.eps for norm in stack.modules() if isinstance(norm, WholeNorm))
    return set(norms) if stack.config.block.kind == "large" else {EPS}


def _only(what: str, values: set[Any]) -> Any:
    """The one value. Raises ValueError if there are several, which a step has no room for."""
    if len(values) != 1:
        raise ValueError(f"the native step has one {what}, and blocks have {sorted(values)}")
    return values.pop()


def _layer_plan(block: nn.Module, state: LayerState, wide: Callable[..., Any]) -> LayerPlan:
    """The plan of a block, over the state that a step overwrites."""
    if isinstance(block, BareBlock):
        return _bare_plan(block, state, wide)
    if isinstance(block, LargeBlock):
        return _large_plan(block, state, wide)
    assert isinstance(block, Block)
    return _paper_plan(block, state, wide)


def _bare_plan(block: BareBlock, state: LayerState, wide: Callable[..., Any]) -> LayerPlan:
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
    weights = BareMLSTMStepWeights(
        *before,
        qkvo=layer.qkvo_proj.weight,
        qkvo_bias=wide(layer.qkvo_proj.bias),
        gate=layer.gate_weight,
        gate_bias=wide(layer.gate_bias),
    )
    return LayerPlan(weights, state.cell, eps=layer.eps)


def _large_plan(block: LargeBlock, state: LayerState, wide: Callable[..., Any]) -> LayerPlan:
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


def _paper_plan(block: Block, state: LayerState, wide: Callable[..., Any]) -> LayerPlan:
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
