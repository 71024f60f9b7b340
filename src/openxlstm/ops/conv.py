"""Causal depthwise convolution over a sequence or a step."""

import torch
from torch import Tensor

from openxlstm.ops.check import check_floating, check_tensors
from openxlstm.ops.dispatch import Backend, Request, choose, never, plain_only
from openxlstm.ops.native import conv as native_conv
from openxlstm.ops.plain import conv as torch_conv
from openxlstm.states import ConvState

BACKENDS = (
    Backend("native", native_conv.refuses, native_conv.causal_conv),
    Backend("torch", plain_only, torch_conv.causal_conv),
    Backend("plain", never, torch_conv.plain),
)


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    state: ConvState | None = None,
    *,
    reset: Tensor | None = None,
    activation: str | None = None,
    backend: str | None = None,
) -> tuple[Tensor, ConvState]:
    """y_t = bias + Σ_j weight[:, j] x_{t-K+1+j}, each channel for itself, zeros before the start.

    Args:
        x: (B, T, D).
        weight: (D, K), the newest step's weight last.
        bias: (D,).
        state: the K-1 inputs before x; None is zeros.
        reset: (B, T) bool; inputs before a step where it is true are forgotten there.
        activation: "silu" for SiLU of that, None for none.
        backend: the name of one of BACKENDS; None takes the first that can run this.

    Returns:
        y (B, T, D) and the state after the last step, which has no gradient to weight or bias.

    Raises:
        ValueError: on shapes or dtypes that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("x", x, "B, T, D")
    check_floating("weight", weight, "D, K")
    if activation not in (None, "silu"):
        raise ValueError(f"activation must be 'silu' or None, not {activation!r}")
    B, T, D = x.shape
    K = weight.shape[1]
    check_tensors(
        x,
        [
            ("weight", weight, (D, K), (x.dtype,)),
            ("bias", bias, (D,), (x.dtype,)),
            ("state.x", None if state is None else state.x, (B, K - 1, D), (x.dtype,)),
            ("reset", reset, (B, T), (torch.bool,)),
        ],
    )
    sizes = (("rows", B * T), ("D", D), ("K", K))
    request = Request(x.device.type, x.dtype, sizes, torch.is_grad_enabled())
    run = choose("causal_conv", BACKENDS, request, backend)
    return run(x, weight, bias, state, reset=reset, activation=activation)
