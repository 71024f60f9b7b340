"""sLSTM and mLSTM for `torch.export`: one loop that runs for any number of steps.

`reference` computes the steps, or chunks of steps. The loop is torch's `scan`, which becomes a Scan
in ONNX. Outside of an export, torch would compile it again for every size.

B batch · T time = NC chunks of L steps, the last one padded · NH heads · DQK, DHV, DH widths
"""

from collections.abc import Callable
from types import CodeType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.scan import scan

from openxlstm.reference import mlstm as mlstm_reference
from openxlstm.reference import slstm as slstm_reference
from openxlstm.states import MLSTMState, SLSTMState

Tensors = tuple[Tensor, ...]
"""A state as a plain tuple, since the loop drops names; or the inputs of one iteration."""

Carried = tuple[Tensors, Tensor]
"""The state after an iteration, and its output."""

CHUNK = 32
"""Time steps of an mLSTM per iteration of the loop."""


def slstm(
    x: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor | None = None,
    state: SLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    forget_gate: str = "sigmoid",
) -> tuple[Tensor, SLSTMState]:
    """`openxlstm.ops.slstm` for checked inputs."""
    if bias is not None:
        x = x + bias
    state = slstm_reference.initial_state(x) if state is None else state

    def iterate(before: Tensors, read: Tensors) -> Carried:
        x_t, *starts = read
        if reset is not None:
            empty = starts[0][:, None, None]
            before = tuple(torch.where(empty, 0.0, part) for part in before)
        after = slstm_reference.step(x_t, recurrent_weight, SLSTMState(*before), forget_gate)
        return tuple(after), after.h.clone()

    read = (x.transpose(0, 1), *(() if reset is None else (reset.T,)))
    if _is_one(x.shape[1]):
        after, h = iterate(state, tuple(part[0] for part in read))
        return h[:, None], SLSTMState(*after)
    after, h = _loop(iterate, tuple(part.clone() for part in state), read)
    return h.transpose(0, 1), SLSTMState(*after)


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_i: Tensor,
    log_f: Tensor,
    state: MLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    eps: float = 0.0,
    chunk_size: int = CHUNK,
) -> tuple[Tensor, MLSTMState]:
    """`openxlstm.ops.mlstm` for checked inputs."""
    state = mlstm_reference.initial_state(q, v) if state is None else state
    T = q.shape[2]
    L = 1 if _is_one(T) else chunk_size

    def iterate(before: Tensors, read: Tensors) -> Carried:
        q, k, v, log_i, log_f, *starts = read
        h, after = mlstm_reference.parallel(
            q, k, v, log_i, log_f, MLSTMState(*before),
            reset=None if reset is None else starts[0], eps=eps,
        )  # fmt: skip
        return tuple(part.clone() for part in after), h

    if L == 1:
        read = q, k, v, log_i, log_f, *(() if reset is None else (reset,))
        after, h = iterate(state, read)
        return h, MLSTMState(*after)

    # Steps that write nothing and forget nothing pad the last chunk. There is always one chunk more
    # than needed, since export would take a number of chunks that may be 1 for a constant.
    NC = (T + 2 * L - 1) // L
    padding = NC * L - T

    def chunks(x: Tensor, value: float = 0.0) -> Tensor:
        """(B, NH, T, …) → (NC, B, NH, L, …)."""
        x = F.pad(x, (*(0, 0) * (x.dim() - 3), 0, padding), value=value)
        return x.unflatten(2, (NC, L)).movedim(2, 0)

    read = (chunks(q), chunks(k), chunks(v), chunks(log_i, -torch.inf), chunks(log_f))
    if reset is not None:
        read += (chunks(reset[:, None])[:, :, 0],)
    after, h = _loop(iterate, tuple(part.clone() for part in state), read)
    h = h.movedim(0, 2).flatten(2, 3)
    # No slice: it would compare T with the padded length, and export would keep that as a guard.
    return h.index_select(2, torch.arange(T, device=h.device)), MLSTMState(*after)


def _loop(iterate: Callable[[Tensors, Tensors], Carried], state: Tensors, read: Tensors) -> Carried:
    """torch's `scan` over the first dimension of `read`.

    `scan` compiles itself and caches the result. A later export would check the cached sizes of an
    earlier one, and keep that as a guard on sizes that must stay free; so the cache is dropped.
    """
    if not torch.compiler.is_dynamo_compiling():
        for constant in scan.__code__.co_consts:
            if isinstance(constant, CodeType):
                torch._dynamo.reset_code(constant)  # pyright: ignore[reportPrivateImportUsage]
    return scan(iterate, state, read)


def _is_one(T: int) -> bool:
    """Whether the program is for a single step, not for any number of steps."""
    return isinstance(T, int) and T == 1
