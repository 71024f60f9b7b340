"""sLSTM over a sequence or a step: what goes in, what comes out, and who computes it."""

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
from openxlstm.ops.native import slstm as native_slstm
from openxlstm.ops.plain import export_loop as scan
from openxlstm.ops.plain import slstm as torch_slstm
from openxlstm.reference import slstm as reference
from openxlstm.states import SLSTMState

BACKENDS = (
    Backend("native", native.refuses, native_slstm.slstm),
    Backend("scan", export_only, scan.slstm),
    Backend("torch", plain_only, torch_slstm.slstm),
    Backend("reference", never, reference.recurrent, slow=True),
)


def slstm(
    x: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor | None = None,
    state: SLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    forget_gate: str = "sigmoid",
    backend: str | None = None,
) -> tuple[Tensor, SLSTMState]:
    """sLSTM with memory mixing inside each head (arXiv:2405.04517, eqs. 8-17).

    Gradients are the true ones, of every input, of the initial state and of the final state.
    Inputs may be strided. float64 is computed as float64; everything else as float32, the dtype of
    the state, with h in the dtype of x.

    Args:
        x: gate pre-activations W x of the input (B, T, NH, 4, DH), gates in the order i, f, z, o.
        recurrent_weight: R (NH, 4, DH, DH), [head, gate, out, in].
        bias: (NH, 4, DH); None for one that x already holds.
        state: where to start; None is empty, and so is every place where state.n is 0.
        reset: (B, T) bool; the state is emptied before a step where it is true.
        forget_gate: "sigmoid" or "exp".
        backend: the name of one of BACKENDS; None takes the first that can run this.

    Returns:
        h (B, T, NH, DH) and the state after the last step.

    Raises:
        ValueError: on shapes or dtypes that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("x", x, "B, T, NH, 4, DH")
    B, T, NH, G, DH = x.shape
    if G != 4:
        raise ValueError(f"x must be (B, T, NH, 4, DH), not {tuple(x.shape)}")
    if forget_gate not in ("sigmoid", "exp"):
        raise ValueError(f"forget_gate must be 'sigmoid' or 'exp', not {forget_gate!r}")
    dtype, h_dtype = state_dtype(x.dtype), x.dtype
    parts = () if state is None else zip(SLSTMState._fields, state, strict=True)
    check_tensors(
        x,
        [
            ("recurrent_weight", recurrent_weight, (NH, 4, DH, DH), (x.dtype, dtype)),
            ("bias", bias, (NH, 4, DH), (x.dtype, dtype)),
            ("reset", reset, (B, T), (torch.bool,)),
            *((f"state.{name}", part, (B, NH, DH), (dtype,)) for name, part in parts),
        ],
    )
    sizes = (("B", B), ("T", T), ("NH", NH), ("DH", DH))
    request = Request(x.device.type, x.dtype, sizes, torch.is_grad_enabled())
    run = choose("slstm", BACKENDS, request, backend)

    x, recurrent_weight = x.to(dtype), recurrent_weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    h, final = run(x, recurrent_weight, bias, state, reset=reset, forget_gate=forget_gate)
    return h.to(h_dtype), final
