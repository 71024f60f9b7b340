"""The fused sLSTM block on the native CPU backend (`cpu/slstm_block.cpp`)."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.dispatch import Request, Sizes, by_sizes
from openxlstm.ops.native.backend import (
    compiled,
    contiguous,
    grads_or_none,
    long_kernel,
    needs_saving,
    refuses_layer,
    register,
)
from openxlstm.ops.native.slstm import grad_of_initial_state, stack_state, upstream_of_scan
from openxlstm.ops.weights import SLSTMBlockWeights
from openxlstm.states import ConvState, LayerState, MLSTMState, SLSTMState

MOST_SAMPLES, STEPS = 6, 48
"""Most samples per task, and time steps per chunk."""
MOST_WEIGHTS = 1 << 19
"""Most weights for which it is faster that each task reads all of them."""


def refuses(request: Request) -> str | None:
    """Why it cannot run a request, or None."""
    return refuses_layer(request) or long_kernel(request) or compiled() or _unsuited_sizes(request)


@by_sizes
def _unsuited_sizes(sizes: Sizes) -> str | None:
    """Why the unfused ops are faster or needed, or None."""
    B, threads = sizes["B"], torch.get_num_threads()
    if num_tasks(B) < threads:
        return f"a thread takes whole samples, and {B} are too few for {threads} threads"
    D, DH, F = sizes["D"], sizes["DH"], sizes["F"]
    if D % 16:
        return f"the width {D} is not a multiple of 16"
    if D * (8 * DH + 3 * F) > MOST_WEIGHTS:
        return "the weights are too many for it"
    return None


def slstm_block(
    x: Tensor,
    weights: SLSTMBlockWeights,
    state: LayerState | None = None,
    *,
    reset: Tensor | None = None,
    forget_gate: str = "sigmoid",
    eps: float = 1e-5,
) -> tuple[Tensor, LayerState]:
    """`openxlstm.ops.slstm_block` for checked inputs."""
    (B, T, _), (NH, _, DH, _) = x.shape, weights.input_weight.shape
    conv_state, cell_state = (None, None) if state is None else state
    before = None if conv_state is None else conv_state.x
    assert not isinstance(cell_state, MLSTMState)
    stacked = stack_state(x, cell_state, (B, NH, DH))
    tensors = (*map(contiguous, (x, *weights, before)), stacked)
    y, after, final, *_ = torch.ops.openxlstm.slstm_block(
        *tensors, contiguous(reset), forget_gate == "exp", eps, num_tasks(B), min(T, STEPS),
        needs_saving(*tensors),
    )  # fmt: skip
    conv_state = None if weights.conv_weight is None else ConvState(after)
    return y, LayerState(conv_state, SLSTMState(*final.unbind(0)))


def num_tasks(B: int) -> int:
    """Number of tasks that the samples are split into: even for two, four or eight threads where
    there are enough samples, and independent of the number of threads, as results shall be."""
    tasks = -(-B // MOST_SAMPLES)
    even = 8 if B >= 32 else 4 if B >= 16 else 2
    return min(B, -(-tasks // even) * even)


def _fake(given: Any) -> tuple[Tensor, ...]:
    x, (B, T, D), NC = given.x, given.x.shape, -(-given.x.shape[1] // given.steps)
    K = 0 if given.conv_weight is None else given.conv_weight.shape[1]
    after = (B, K - 1, D) if K else (0, 0, 0)
    saved = (B * T, D), (B * T, 5, D), (B * T, len(given.up)), (NC * B, 4, D)
    kept = (x.new_empty(size if given.save else (0,) * len(size)) for size in saved)
    return torch.empty_like(x), x.new_empty(after), torch.empty_like(given.state), *kept


def _backward(saved: Any, upstream: Any, needs_grad: Any) -> dict[str, Tensor | None]:
    *operands, state = saved
    inputs = {name: getattr(saved, name) for name in WITH_GRAD}
    dy, d_final = upstream_of_scan(upstream.y, upstream.final, saved.x, saved.final)
    d_after = None if saved.conv_weight is None else contiguous(upstream.after)
    *grads, d_state = torch.ops.openxlstm.slstm_block_grad(
        *operands, dy=dy, d_after=d_after, d_final=d_final
    )
    return grads_or_none(inputs, grads) | {"state": grad_of_initial_state(d_state, state)}


def _grad_fake(given: Any) -> list[Tensor]:
    """Empty tensors where an input was not given, but for the sizes that the kernel knows."""
    x, D, (NH, _, DH) = given.x, given.x.shape[2], given.bias.shape
    shapes = {name: getattr(given, name) for name in WITH_GRAD}
    shapes = {name: (0,) if part is None else part.shape for name, part in shapes.items()}
    shapes["bias"] = NH, 4 * DH
    if given.conv_weight is None:
        shapes["conv_weight"] = D, 0
    if given.before is None:
        shapes["before"] = 0, 0, 0
    return [*map(x.new_empty, shapes.values()), torch.empty_like(given.d_final)]


OPERANDS = [
    {"input_weight": "W", "recurrent_weight": "R"}.get(name, name)
    for name in SLSTMBlockWeights._fields
]
"""Names of the weights in the operator's schema."""
WITH_GRAD = "x", *OPERANDS, "before"
"""Names of the inputs whose gradients the operator returns, before that of the state."""

register(
    "slstm_block",
    (*WITH_GRAD, "state", "reset", "exp_gate", "eps", "tiles", "steps", "save"),
    fake=_fake,
    backward=_backward,
    grad_fake=_grad_fake,
    also_saved=("state",),
)
