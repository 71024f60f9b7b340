"""The mLSTM cell over a sequence or a step."""

import torch
from torch import Tensor

from openxlstm.ops.check import check_floating, check_parts, check_tensor, state_dtype
from openxlstm.ops.dispatch import Backend, never, outside_export, outside_plain, pick
from openxlstm.ops.native import backend as native
from openxlstm.ops.native import mlstm as native_mlstm
from openxlstm.ops.plain import export_loop
from openxlstm.ops.plain import mlstm as plain_mlstm
from openxlstm.reference import mlstm as reference
from openxlstm.states import MLSTMState


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_i: Tensor,
    log_f: Tensor,
    state: MLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    chunk_size: int | None = None,
    eps: float = 0.0,
    backend: str | None = None,
) -> tuple[Tensor, MLSTMState]:
    """mLSTM with the matrix memory C_t = f_t C_{t-1} + i_t k_t v_tᵀ (arXiv:2405.04517, eqs. 19-21).

    Gradients are the true ones of every input, the initial state and the final state. Inputs may be
    strided. float64 is computed in float64, everything else in float32, which is the dtype of the
    state; h has the dtype of v.

    Args:
        q, k: queries and keys (B, NH, T, DQK); the op scales q by 1/√DQK.
        v: values (B, NH, T, DHV).
        log_i: logarithm of the input gate (B, NH, T): the pre-activation ĩ for i = exp(ĩ).
        log_f: logarithm of the forget gate (B, NH, T): log σ(f̃) or f̃. It must be finite; `reset`
            forgets everything.
        state: the state before the first step; None is empty.
        reset: (B, T) bool; the state is emptied before a step where it is true.
        chunk_size: steps that are computed in parallel; None chooses. It changes speed and memory,
            not the answer, and T need not be a multiple of it.
        eps: added to the denominator of eq. 21; 0 is exact.
        backend: the name of a backend in BACKENDS; None takes the first that can run this.

    Returns:
        h (B, NH, T, DHV) and the state after the last step.

    Raises:
        ValueError: on shapes, dtypes or devices that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("q", q, "B, NH, T, DQK")
    check_floating("v", v, "B, NH, T, DHV")
    (B, NH, T, DQK), DHV = q.shape, v.shape[-1]
    dtype, h_dtype = state_dtype(q.dtype), v.dtype
    check_tensor("k", k, (B, NH, T, DQK), q)
    check_tensor("v", v, (B, NH, T, DHV), q)
    check_tensor("log_i", log_i, (B, NH, T), q, q.dtype, dtype)
    check_tensor("log_f", log_f, (B, NH, T), q, q.dtype, dtype)
    check_tensor("reset", reset, (B, T), q, torch.bool)
    check_parts("state", state, q, (dtype,), C=(B, NH, DQK, DHV), n=(B, NH, DQK), m=(B, NH))
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
    sizes = {"B": B, "NH": NH, "T": T, "DQK": DQK, "DHV": DHV}
    run = pick("mlstm", BACKENDS, q, sizes, backend)

    q, k, v, log_i, log_f = (x.to(dtype) for x in (q, k, v, log_i, log_f))
    options = {} if chunk_size is None else {"chunk_size": chunk_size}
    h, final = run(q, k, v, log_i, log_f, state, reset=reset, eps=eps, **options)
    return h.to(h_dtype), final


BACKENDS = {
    "mlstm": (
        Backend("native", native.refuses, native_mlstm.mlstm),
        Backend("scan", outside_export, export_loop.mlstm),
        Backend("torch", outside_plain, plain_mlstm.mlstm),
        Backend("reference", never, reference.chunkwise, slow=True),
    )
}
