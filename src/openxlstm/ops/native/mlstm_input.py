"""The mLSTM's input on the native CPU backend (`cpu/mlstm_block_kernel.h`)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from openxlstm.ops.dispatch import Request
from openxlstm.ops.native import backend as native
from openxlstm.ops.native.backend import (
    dense,
    long_kernel,
    odd_inner_width,
    present,
    register,
)
from openxlstm.ops.plain.conv import last_inputs
from openxlstm.states import ConvState


def refuses(request: Request) -> str | None:
    """Why it cannot run a request, or None."""
    return (
        native.refuses_layer(request)
        or long_kernel(request)
        or odd_inner_width(request)
        or _unlike_the_papers(request)
    )


def _unlike_the_papers(request: Request) -> str | None:
    """Why the block is not one that it was written for, or None."""
    sizes = dict(request.sizes)
    if sizes.get("side", 4) != 4:
        return f"its projections are of blocks of 4, not of {sizes['side']}"
    return "it has no biases in the projections" if sizes.get("biases") else None


def mlstm_input(
    x: Tensor,
    up_weight: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    state: ConvState | None = None,
    *,
    reset: Tensor | None = None,
    biases: None = None,
) -> tuple[tuple[Tensor, ...], ConvState | None]:
    """`openxlstm.ops.mlstm_input` for inputs that it has checked."""
    NH = gate_weight.shape[1]
    weights = up_weight, q_weight, k_weight, v_weight, gate_weight, gate_bias
    _, z, c, q, k, v, log_i, log_f, _ = torch.ops.openxlstm.mlstm_input(
        *operands(x, weights, conv_weight, conv_bias, state, reset)
    )
    q, k, v = (y.unflatten(-1, (NH, -1)).transpose(1, 2) for y in (q, k, v))
    inputs = q, k, v, log_i, log_f, c, z
    if conv_weight is None:
        return inputs, None
    return inputs, conv_state(x, up_weight, conv_weight, state, reset)


def operands(
    x: Tensor,
    weights: Sequence[Tensor],
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    state: ConvState | None,
    reset: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """What the operator takes; weights: of up, q, k, v, gates, and the gates' bias."""
    *others, gate_weight, gate_bias = weights
    return (
        x.contiguous(),
        *(w.contiguous() for w in others),
        gate_weight.flatten(0, 1).contiguous(),
        gate_bias.flatten().contiguous(),
        dense(conv_weight),
        dense(conv_bias),
        None if state is None else state.x.contiguous(),
        dense(reset),
    )


def conv_state(
    x: Tensor,
    up_weight: Tensor,
    conv_weight: Tensor,
    state: ConvState | None,
    reset: Tensor | None,
) -> ConvState:
    """That after x. It makes the last rows of the branch once more, so that their gradient is
    torch's affair."""
    K, E = conv_weight.shape[1], up_weight.shape[0] // 2
    last = F.linear(x[:, -(K - 1) :], up_weight[:E]) if K > 1 else x.new_empty(len(x), 0, E)
    return last_inputs(last, K, state, None if reset is None else reset[:, -(K - 1) :])


def _fake(x: Tensor, up: Tensor, q: Any, k: Any, v: Any, gate: Tensor, *rest: Any) -> Any:
    B, T, _ = x.shape
    wide = (x.new_empty(B, T, up.shape[0] // 2) for _ in range(6))
    return *wide, *(x.new_empty(B, gate.shape[0] // 2, T) for _ in range(3))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    a, *_, f_preact = output
    ctx.save_for_backward(*inputs, a, f_preact)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, _: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    *saved, a, f_preact = ctx.saved_tensors
    wide, narrow = (a,) * 5, (f_preact,) * 2
    dz, dc, dq, dk, dv, dlog_i, dlog_f = (
        torch.zeros_like(like) if grad is None else grad.contiguous()
        for grad, like in zip(grads, (*wide, *narrow), strict=False)
    )
    results = torch.ops.openxlstm.mlstm_input_grad(
        *saved, a, f_preact, dz, dc, dq, dk, dv, dlog_i, dlog_f
    )
    return *present(results, saved), None


def grad_fake(
    x: Tensor, up: Tensor, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, gate_bias: Tensor,
    conv_weight: Any, conv_bias: Any, before: Any, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    E, K = up.shape[0] // 2, 0 if conv_weight is None else conv_weight.shape[1]
    block = (E, 4)
    shapes = (x.shape, up.shape, block, block, block, gate.shape, gate_bias.shape)
    before_shape = (0, 0, 0) if before is None else before.shape
    return tuple(x.new_empty(s) for s in (*shapes, (E, K), (E if K else 0,), before_shape))


register("mlstm_input", _fake, _setup, _backward, grad_fake)
