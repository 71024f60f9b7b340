"""A language model that reads one token at a time, as fast as a CPU can.

`forward` does the same, a small operation at a time; what its fifty calls into torch take is more
than the arithmetic. A decoder runs a whole step in one call. It owns the states that it overwrites;
its weights are the model's own, so that it says what the model was last trained to say.

B batch · V tokens
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from openxlstm.nn.block import Block
from openxlstm.nn.conv import weights_of
from openxlstm.nn.mlstm import MLSTMLayer
from openxlstm.nn.norm import EPS, HeadNorm, LayerNorm
from openxlstm.nn.slstm import SLSTMLayer
from openxlstm.nn.stack import Stack
from openxlstm.ops import native
from openxlstm.ops.native_step import LayerPlan, StepPlan, step
from openxlstm.states import LayerState, ModelState, map_state, select, tensors


class Decoder:
    """Runs the steps of `embedding → stack → head` for some sequences.

    Args:
        tokens, positions: the embeddings; positions may be None.
        stack: the blocks.
        head: from the stack to the logits.
        state: what each sequence has read so far. It is copied.

    Raises:
        ValueError: where `refuses` has a reason, or if the state is not one of this stack's.
    """

    def __init__(
        self,
        tokens: nn.Embedding,
        positions: nn.Embedding | None,
        stack: Stack,
        head: nn.Linear,
        state: ModelState,
    ) -> None:
        reason = refuses(tokens, positions, stack, head)
        if reason is not None:
            raise ValueError(f"the native decoder cannot run this model: {reason}")
        _check_state(state, stack)
        self._modules = tokens, positions, stack, head
        self._state: ModelState = map_state(_copy, state)
        self._logits = torch.empty(len(self._state.position), tokens.num_embeddings)
        self._size = self._logits.shape[0]
        plan = StepPlan(
            num_heads=stack.config.num_heads,
            norm_eps=EPS,
            tokens=tokens.weight,
            positions=None if positions is None else positions.weight,
            norm=_weight(stack.norm),
            head=head.weight,
            layers=[
                _layer_plan(block, layer_state)
                for block, layer_state in zip(_blocks(stack), self._state.stack.blocks, strict=True)
            ],
            position=self._state.position,
            logits=self._logits,
        )
        # What the plan points to stays alive, even if the model lets go of it, as `model.to` does.
        self._alive = plan, [x.detach() for part in self._parts() for x in part.parameters()]
        self._packed = plan.pack()

    def _parts(self) -> list[nn.Module]:
        return [part for part in self._modules if part is not None]

    def step(self, ids: Tensor) -> Tensor:
        """Reads one token a sequence: ids (B,) int64 → logits (B, V), good until the next step.

        Raises:
            ValueError: if ids are not (B,) int64.
            IndexError: if one of them is no token of the model; nothing has changed then.
        """
        if ids.shape != (self._size,) or ids.dtype != torch.long:
            raise ValueError(
                f"ids must be ({self._size},) int64, not {tuple(ids.shape)} {ids.dtype}"
            )
        step(self._packed, ids.contiguous())
        return self._logits

    @property
    def state(self) -> ModelState:
        """What has been read so far, as a value of its own."""
        return map_state(Tensor.clone, self._state)

    def select(self, rows: Sequence[int]) -> "Decoder":
        """A decoder of some of the sequences, by index, in the order given."""
        return Decoder(*self._modules, select(self._state, rows))


def refuses(
    tokens: nn.Embedding, positions: nn.Embedding | None, stack: Stack, head: nn.Linear
) -> str | None:
    """Why a model cannot be decoded natively, or None."""
    if stack.config.block != "paper":
        return f"it knows the paper's blocks, and these are {stack.config.block}"
    parts = [part for part in (tokens, positions, stack, head) if part is not None]
    for part in parts:
        for parameter in part.parameters():
            if parameter.device.type != "cpu":
                return f"it runs on the CPU, and a weight is on {parameter.device.type}"
            if parameter.dtype != torch.float32:
                return f"it computes in float32, and a weight is {parameter.dtype}"
            if not parameter.is_contiguous():
                return "a weight is not in one piece"
    return native.missing()


def _check_state(state: ModelState, stack: Stack) -> None:
    expected = stack.initial_state(len(state.position))
    parts, likes = tensors(state.stack), tensors(expected)
    if [(x.shape, x.dtype) for x in parts] != [(x.shape, x.dtype) for x in likes]:
        raise ValueError("the state is not one of this model's: shapes or dtypes differ")


def _copy(part: Tensor) -> Tensor:
    return part.detach().clone(memory_format=torch.contiguous_format)


def _blocks(stack: Stack) -> list[Block]:
    return [block for block in stack.blocks if isinstance(block, Block)]


def _weight(norm: nn.Module | None) -> Tensor:
    assert isinstance(norm, LayerNorm | HeadNorm), "the paper's blocks have norms"
    return norm.weight


def _layer_plan(block: Block, state: LayerState) -> LayerPlan:
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
        head_norm=_weight(layer.norm),
        weights=(layer.input_weight, layer.bias, layer.recurrent_weight, *feedforward),
        window=window,
        state=state.cell,
    )
