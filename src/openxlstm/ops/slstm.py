"""The sLSTM cell over a sequence or a step."""

import torch
from torch import Tensor

from openxlstm.ops.check import (
    check_choice,
    check_floating,
    check_parts,
    check_tensor,
    state_dtype,
)
from openxlstm.ops.dispatch import Backend, never, outside_export, outside_plain, pick
from openxlstm.ops.native import backend as native
from openxlstm.ops.native import slstm as native_slstm
from openxlstm.ops.plain import export_loop
from openxlstm.ops.plain import slstm as plain_slstm
from openxlstm.reference import slstm as reference
from openxlstm.states import SLSTMState


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

    Gradients are the true ones of every input, the initial state and the final state. Inputs may be
    strided. float64 is computed in float64, everything else in float32, which is the dtype of the
    state; h has the dtype of x.

    Args:
        x: gate pre-activations W x of the input (B, T, NH, 4, DH), gates in the order i, f, z, o.
        recurrent_weight: R (NH, 4, DH, DH), [head, gate, out, in].
        bias: (NH, 4, DH); None adds nothing, as where x holds it already.
        state: the state before the first step; None is empty, and so is a unit whose n is 0.
        reset: (B, T) bool; the state is emptied before a step where it is true.
        forget_gate: "sigmoid" or "exp".
        backend: the name of a backend in BACKENDS; None takes the first that can run this.

    Returns:
        h (B, T, NH, DH) and the state after the last step.

    Raises:
        ValueError: on shapes, dtypes or devices that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("x", x, "B, T, NH, 4, DH")
    B, T, NH, G, DH = x.shape
    if G != 4:
        raise ValueError(f"x must be (B, T, NH, 4, DH), not {tuple(x.shape)}")
    check_choice("forget_gate", forget_gate, "sigmoid", "exp")
    dtype, h_dtype, shape = state_dtype(x.dtype), x.dtype, (B, NH, DH)
    check_tensor("recurrent_weight", recurrent_weight, (NH, 4, DH, DH), x, x.dtype, dtype)
    check_tensor("bias", bias, (NH, 4, DH), x, x.dtype, dtype)
    check_tensor("reset", reset, (B, T), x, torch.bool)
    check_parts("state", state, x, (dtype,), h=shape, c=shape, n=shape, m=shape)
    sizes = {"B": B, "T": T, "NH": NH, "DH": DH}
    run = pick("slstm", BACKENDS, x, sizes, backend)

    x, recurrent_weight = x.to(dtype), recurrent_weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    h, final = run(x, recurrent_weight, bias, state, reset=reset, forget_gate=forget_gate)
    return h.to(h_dtype), final


BACKENDS = {
    "slstm": (
        Backend("native", native.refuses, native_slstm.slstm),
        Backend("scan", outside_export, export_loop.slstm),
        Backend("torch", outside_plain, plain_slstm.slstm),
        Backend("reference", never, reference.recurrent, slow=True),
    )
}
