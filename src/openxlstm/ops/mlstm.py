"""mLSTM over a sequence or a step: what goes in, what comes out, and who computes it."""

import torch
from torch import Tensor

from openxlstm.ops.check import check_floating, check_tensors, state_dtype
from openxlstm.ops.dispatch import (
    Backend,
    Request,
    choose,
    export_only,
    never,
    plain_only,
)
from openxlstm.ops.native import backend as native
from openxlstm.ops.native import mlstm as native_mlstm
from openxlstm.ops.plain import export_loop as scan
from openxlstm.ops.plain import mlstm as torch_mlstm
from openxlstm.reference import mlstm as reference
from openxlstm.states import MLSTMState

BACKENDS = (
    Backend("native", native.refuses, native_mlstm.mlstm),
    Backend("scan", export_only, scan.mlstm),
    Backend("torch", plain_only, torch_mlstm.mlstm),
    Backend("reference", never, reference.chunkwise, slow=True),
)


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

    Gradients are the true ones, of every input, of the initial state and of the final state.
    Inputs may be strided. float64 is computed as float64; everything else as float32, the dtype of
    the state, with h in the dtype of v.

    Args:
        q, k: queries and keys (B, NH, T, DQK); q is scaled by 1/√DQK here.
        v: values (B, NH, T, DHV).
        log_i: logarithm of the input gate (B, NH, T), the plain pre-activation for i = exp(ĩ).
        log_f: logarithm of the forget gate (B, NH, T), log σ(f̃) or f̃. Finite; `reset` forgets all.
        state: where to start; None is empty.
        reset: (B, T) bool; the state is emptied before a step where it is true.
        chunk_size: steps that are computed in parallel; None chooses. It changes speed and memory,
            never the answer, and T need not be a multiple of it.
        eps: added to the denominator of eq. 21; 0 is exact.
        backend: the name of one of BACKENDS; None takes the first that can run this.

    Returns:
        h (B, NH, T, DHV) and the state after the last step.

    Raises:
        ValueError: on shapes or dtypes that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    sizes = _check(q, k, v, log_i, log_f, state, reset, chunk_size)
    request = Request(q.device.type, q.dtype, tuple(sizes.items()), torch.is_grad_enabled())
    run = choose("mlstm", BACKENDS, request, backend)

    dtype, h_dtype = state_dtype(q.dtype), v.dtype
    q, k, v, log_i, log_f = (x.to(dtype) for x in (q, k, v, log_i, log_f))
    options = {} if chunk_size is None else {"chunk_size": chunk_size}
    h, final = run(q, k, v, log_i, log_f, state, reset=reset, eps=eps, **options)
    return h.to(h_dtype), final


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_i: Tensor,
    log_f: Tensor,
    state: MLSTMState | None,
    reset: Tensor | None,
    chunk_size: int | None,
) -> dict[str, int]:
    check_floating("q", q, "B, NH, T, DQK")
    check_floating("v", v, "B, NH, T, DHV")
    B, NH, T, DQK = q.shape
    DHV = v.shape[-1]
    inputs, states = (q.dtype,), (state_dtype(q.dtype),)
    check_tensors(
        q,
        [
            ("k", k, (B, NH, T, DQK), inputs),
            ("v", v, (B, NH, T, DHV), inputs),
            ("log_i", log_i, (B, NH, T), inputs + states),
            ("log_f", log_f, (B, NH, T), inputs + states),
            ("reset", reset, (B, T), (torch.bool,)),
        ],
    )
    if state is not None:
        C, n, m = state
        check_tensors(
            q,
            [
                ("state.C", C, (B, NH, DQK, DHV), states),
                ("state.n", n, (B, NH, DQK), states),
                ("state.m", m, (B, NH), states),
            ],
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
    return {"B": B, "NH": NH, "T": T, "DQK": DQK, "DHV": DHV}
