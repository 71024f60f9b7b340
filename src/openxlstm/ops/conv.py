"""Causal depthwise convolution over a sequence or a step."""

import torch
from torch import Tensor

from openxlstm.ops.check import check_choice, check_floating, check_parts, check_tensor
from openxlstm.ops.dispatch import Backend, never, outside_plain, pick
from openxlstm.ops.native import conv as native_conv
from openxlstm.ops.plain import conv as plain_conv
from openxlstm.states import ConvState


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
    """y_t = bias + Σ_j weight[:, j] x_{t-K+1+j}, per channel, with zeros before the start.

    Args:
        x: (B, T, D).
        weight: (D, K), the newest step's weight last.
        bias: (D,).
        state: the K-1 inputs before x; None is zeros.
        reset: (B, T) bool; all inputs before a step where it is true are forgotten.
        activation: "silu" for SiLU(y), None for y.
        backend: the name of a backend in BACKENDS; None takes the first that can run this.

    Returns:
        y (B, T, D), and the last K-1 inputs as the state after x.

    Raises:
        ValueError: on shapes, dtypes or devices that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("x", x, "B, T, D")
    check_floating("weight", weight, "D, K")
    check_choice("activation", activation, "silu", None)
    (B, T, D), K = x.shape, weight.shape[1]
    check_tensor("weight", weight, (D, K), x)
    check_tensor("bias", bias, (D,), x)
    check_parts("state", state, x, x=(B, K - 1, D))
    check_tensor("reset", reset, (B, T), x, torch.bool)
    sizes = {"rows": B * T, "D": D, "K": K}
    run = pick("causal_conv", BACKENDS, x, sizes, backend)
    return run(x, weight, bias, state, reset=reset, activation=activation)


BACKENDS = {
    "causal_conv": (
        Backend("native", native_conv.refuses, native_conv.causal_conv),
        Backend("torch", outside_plain, plain_conv.causal_conv),
        Backend("plain", never, plain_conv.traceable),
    )
}
