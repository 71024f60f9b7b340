"""An sLSTM block in one on the native CPU backend (`cpu/slstm_block.cpp`)."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.dispatch import Request
from openxlstm.ops.native.backend import dense, long_kernel, present, refuses_layer, register, saves
from openxlstm.ops.native.slstm import of_initial, upstream
from openxlstm.states import ConvState, SLSTMState

MOST_SAMPLES, STEPS = 6, 48
"""Of a task, and how many steps it goes through at a time."""
MOST_WEIGHTS = 1 << 19
"""Numbers in the weights, up to which each task had better go through all of them."""


def refuses(request: Request) -> str | None:
    """Why it cannot run a request, or None."""
    return refuses_layer(request) or long_kernel(request) or _unsuited(request)


def _unsuited(request: Request) -> str | None:
    """Why the ops one after the other are better, or None."""
    if torch.compiler.is_compiling():
        return "what is compiled has lengths of its own"
    sizes, threads = dict(request.sizes), torch.get_num_threads()
    if "B" in sizes and num_tasks(sizes["B"]) < threads:
        return f"a thread takes whole samples, and {sizes['B']} are too few for {threads} of them"
    D, DH, F = (sizes.get(name, 0) for name in ("D", "DH", "F"))
    if D % 16:
        return f"the width {D} is not a multiple of 16"
    if D * (8 * DH + 3 * F) > MOST_WEIGHTS:
        return "the weights are too many for it"
    return None


def slstm_block(
    x: Tensor,
    norm_weight: Tensor,
    input_weight: Tensor,
    bias: Tensor,
    recurrent_weight: Tensor,
    head_norm_weight: Tensor,
    ff_norm_weight: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    before: ConvState | None = None,
    state: SLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    forget_gate: str = "sigmoid",
    eps: float = 1e-5,
) -> tuple[Tensor, ConvState | None, SLSTMState]:
    """`openxlstm.ops.slstm_block` for inputs that it has checked."""
    (B, T, _), (NH, _, DH, _) = x.shape, input_weight.shape
    stacked = x.new_zeros(4, B, NH, DH) if state is None else torch.stack(state)
    operands = (
        x, norm_weight, conv_weight, conv_bias, input_weight, recurrent_weight, bias,
        head_norm_weight, ff_norm_weight, up_weight, down_weight, up_bias, down_bias,
        None if before is None else before.x,
    )  # fmt: skip
    operands = (*(dense(each) for each in operands), stacked)
    y, after, final, *_ = torch.ops.openxlstm.slstm_block(
        *operands, dense(reset), forget_gate == "exp", eps, num_tasks(B), min(T, STEPS),
        saves(*operands),
    )  # fmt: skip
    return y, None if conv_weight is None else ConvState(after), SLSTMState(*final.unbind(0))


def num_tasks(B: int) -> int:
    """Tasks, each some samples: of as many for two threads, four or eight, where there are enough,
    and as many for any number of threads, which then changes no result."""
    tasks = -(-B // MOST_SAMPLES)
    even = 8 if B >= 32 else 4 if B >= 16 else 2
    return min(B, -(-tasks // even) * even)


def _fake(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    B, T, D = x.shape
    conv_weight, up, state = rest[1], rest[8], rest[13]
    *_, steps, save = rest
    rows = (B * T, D), (B * T, 5, D), (B * T, up.shape[0]), (-(-T // steps) * B, 4, D)
    back = (0, 0, 0) if conv_weight is None else (B, conv_weight.shape[1] - 1, D)
    kept = (x.new_empty(size if save else (0,) * len(size)) for size in rows)
    return torch.empty_like(x), x.new_empty(back), torch.empty_like(state), *kept


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, eps, tiles, steps, _ = inputs
    ctx.options = eps, tiles, steps
    ctx.save_for_backward(*tensors, *output[2:])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, dy: Tensor | None, d_after: Tensor | None, d_final: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    *operands, state, reset, final, h, saved, preact, states = ctx.saved_tensors
    dy, d_final = upstream(dy, d_final, operands[0], final)
    d_after = None if operands[2] is None else dense(d_after)
    *grads, d_state = torch.ops.openxlstm.slstm_block_grad(
        *operands, reset, *ctx.options, final, h, saved, preact, states, dy, d_after, d_final
    )
    return *present(grads, operands), of_initial(d_state, state), *(None,) * 6


def _grad_fake(*arguments: Any) -> tuple[Tensor, ...]:
    x, *operands = arguments[:14]
    *_, d_final = arguments
    empty = (0, 0, 0)
    shapes = [None if each is None else each.shape for each in operands]
    NH, G, DH = operands[5].shape
    shapes[5] = (NH, G * DH)
    sizes = [(0,) if shape is None else shape for shape in shapes]
    if shapes[1] is None:
        sizes[1] = (x.shape[2], 0)
    if shapes[12] is None:
        sizes[12] = empty
    made = (x.new_empty(tuple(size)) for size in sizes)
    return torch.empty_like(x), *made, torch.empty_like(d_final)


register("slstm_block", _fake, _setup, _backward, _grad_fake)
