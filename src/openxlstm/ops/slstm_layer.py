"""sLSTM with the projections in front of it: what goes in, and who computes it."""

import torch
from torch import Tensor

from openxlstm.ops.check import check_floating, check_tensors, state_dtype
from openxlstm.ops.dispatch import Backend, Request, choose, never
from openxlstm.ops.native import backend as native
from openxlstm.ops.native import slstm as native_slstm
from openxlstm.ops.slstm import slstm
from openxlstm.states import SLSTMState


def slstm_layer(
    convolved: Tensor,
    raw: Tensor,
    input_weight: Tensor,
    bias: Tensor,
    recurrent_weight: Tensor,
    state: SLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    forget_gate: str = "sigmoid",
    backend: str | None = None,
) -> tuple[Tensor, SLSTMState]:
    """`slstm` of W x + b, where x is `convolved` for the input and forget gates, and `raw` for cell
    input and output gate (arXiv:2405.04517, figure 10).

    Args:
        convolved, raw: (B, T, D), D = NH·DH.
        input_weight: W (NH, 4, DH, DH), [head, gate, out, in], gates in the order i, f, z, o.
        bias: b (NH, 4, DH).
        recurrent_weight: R (NH, 4, DH, DH), as W.
        state: where to start; None is empty.
        reset: (B, T) bool; the state is emptied before a step where it is true.
        forget_gate: "sigmoid" or "exp".
        backend: the name of one of BACKENDS; None takes the first that can run this.

    Returns:
        h (B, T, NH, DH) and the state after the last step.

    Raises:
        ValueError: on shapes or dtypes that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("raw", raw, "B, T, D")
    check_floating("input_weight", input_weight, "NH, 4, DH, DH")
    B, T, D = raw.shape
    NH, _, DH, _ = input_weight.shape
    if D != NH * DH:
        raise ValueError(f"raw must be (B, T, NH·DH) = (B, T, {NH * DH}), not {tuple(raw.shape)}")
    if forget_gate not in ("sigmoid", "exp"):
        raise ValueError(f"forget_gate must be 'sigmoid' or 'exp', not {forget_gate!r}")
    dtypes, states = (raw.dtype,), (state_dtype(raw.dtype),)
    parts = () if state is None else zip(SLSTMState._fields, state, strict=True)
    check_tensors(
        raw,
        [
            ("convolved", convolved, (B, T, D), dtypes),
            ("input_weight", input_weight, (NH, 4, DH, DH), dtypes),
            ("bias", bias, (NH, 4, DH), dtypes),
            ("recurrent_weight", recurrent_weight, (NH, 4, DH, DH), dtypes),
            ("reset", reset, (B, T), (torch.bool,)),
            *((f"state.{name}", part, (B, NH, DH), states) for name, part in parts),
        ],
    )
    sizes = (("rows", B * T), ("NH", NH), ("DH", DH))
    request = Request(raw.device.type, raw.dtype, sizes, torch.is_grad_enabled())
    run = choose("slstm_layer", BACKENDS, request, backend)
    weights = input_weight, bias, recurrent_weight
    return run(convolved, raw, *weights, state, reset=reset, forget_gate=forget_gate)


def plain(
    convolved: Tensor,
    raw: Tensor,
    input_weight: Tensor,
    bias: Tensor,
    recurrent_weight: Tensor,
    state: SLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    forget_gate: str = "sigmoid",
) -> tuple[Tensor, SLSTMState]:
    """`slstm_layer` in plain PyTorch and `slstm`, for inputs that it has checked."""
    if convolved is raw:
        gates = _project(raw, input_weight, bias, slice(0, 4))
    else:
        i_and_f = _project(convolved, input_weight, bias, slice(0, 2))
        z_and_o = _project(raw, input_weight, bias, slice(2, 4))
        gates = torch.cat([i_and_f, z_and_o], dim=3)  # (B, T, NH, 4, DH)
    return slstm(gates, recurrent_weight, state=state, reset=reset, forget_gate=forget_gate)


def _project(x: Tensor, input_weight: Tensor, bias: Tensor, which: slice) -> Tensor:
    """Pre-activations of some gates (B, T, NH, gates, DH)."""
    B, T, _ = x.shape
    NH, _, DH, _ = input_weight.shape
    weight = input_weight[:, which].flatten(1, 2)  # (NH, gates·DH, DH)
    by_head = x.reshape(B * T, NH, DH).transpose(0, 1)
    preact = torch.baddbmm(bias[:, which].reshape(NH, 1, -1), by_head, weight.mT)
    return preact.view(NH, B, T, -1, DH).permute(1, 2, 0, 3, 4)


BACKENDS = (
    Backend("native", native.refuses_layer, native_slstm.slstm_layer),
    Backend("torch", never, plain),
)
