"""From the residual stream to the gates of an sLSTM: what goes in, and who computes it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from openxlstm.ops import native_slstm_input
from openxlstm.ops.check import check_floating, check_tensors
from openxlstm.ops.conv import causal_conv
from openxlstm.ops.dispatch import Backend, Request, choose, never
from openxlstm.states import ConvState


def slstm_input(
    x: Tensor,
    input_weight: Tensor,
    bias: Tensor,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    state: ConvState | None = None,
    *,
    reset: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, ConvState | None]:
    """Pre-activations W x + b of the gates (arXiv:2405.04517, figure 10, up to the cell).

    The input and forget gates read SiLU of the causal convolution of x, the cell input and the
    output gate x itself. Without a convolution all four read x.

    Args:
        x: (B, T, D), D = NH·DH.
        input_weight: (NH, 4, DH, DH), [head, gate, out, in], gates in the order i, f, z, o.
        bias: (NH, 4, DH).
        conv_weight, conv_bias: (D, K) and (D,), both or neither.
        state: the K-1 inputs before x; None is zeros.
        reset: (B, T) bool; inputs before a step where it is true are forgotten there.
        backend: the name of one of BACKENDS; None takes the first that can run this.

    Returns:
        gates (B, T, NH, 4, DH), and the convolution's state after the last step (None without one).

    Raises:
        ValueError: on shapes or dtypes that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("x", x, "B, T, D")
    check_floating("input_weight", input_weight, "NH, 4, DH, DH")
    B, T, D = x.shape
    NH, _, DH, _ = input_weight.shape
    if D != NH * DH:
        raise ValueError(f"x must be (B, T, NH·DH) = (B, T, {NH * DH}), not {tuple(x.shape)}")
    if (conv_weight is None) != (conv_bias is None):
        raise ValueError("conv_weight and conv_bias must be given both or neither")
    K = 0 if conv_weight is None else conv_weight.shape[-1]
    check_tensors(
        x,
        [
            ("input_weight", input_weight, (NH, 4, DH, DH), (x.dtype,)),
            ("bias", bias, (NH, 4, DH), (x.dtype,)),
            ("conv_weight", conv_weight, (D, K), (x.dtype,)),
            ("conv_bias", conv_bias, (D,), (x.dtype,)),
            ("state.x", None if state is None else state.x, (B, K - 1, D), (x.dtype,)),
            ("reset", reset, (B, T), (torch.bool,)),
        ],
    )
    sizes = (("rows", B * T), ("NH", NH), ("DH", DH), ("K", K))
    request = Request(x.device.type, x.dtype, sizes, torch.is_grad_enabled())
    run = choose("slstm_input", BACKENDS, request, backend)
    return run(x, input_weight, bias, conv_weight, conv_bias, state, reset=reset)


def plain(
    x: Tensor,
    input_weight: Tensor,
    bias: Tensor,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    state: ConvState | None = None,
    *,
    reset: Tensor | None = None,
) -> tuple[Tensor, ConvState | None]:
    """`slstm_input` in plain PyTorch, for inputs that it has checked."""
    if conv_weight is None:
        return _gates(x, input_weight, bias, slice(0, 4)), None
    c, state = causal_conv(x, conv_weight, conv_bias, state, reset=reset)
    i_and_f = _gates(F.silu(c), input_weight, bias, slice(0, 2))
    z_and_o = _gates(x, input_weight, bias, slice(2, 4))
    return torch.cat([i_and_f, z_and_o], dim=3), state


def _gates(x: Tensor, input_weight: Tensor, bias: Tensor, which: slice) -> Tensor:
    """Pre-activations of some gates (B, T, NH, gates, DH)."""
    B, T, _ = x.shape
    NH, _, DH, _ = input_weight.shape
    weight = input_weight[:, which].flatten(1, 2)  # (NH, gates·DH, DH)
    by_head = x.reshape(B * T, NH, DH).transpose(0, 1)
    preact = torch.baddbmm(bias[:, which].reshape(NH, 1, -1), by_head, weight.mT)
    return preact.view(NH, B, T, -1, DH).permute(1, 2, 0, 3, 4)


BACKENDS = (
    Backend("native", native_slstm_input.refuses, native_slstm_input.slstm_input),
    Backend("torch", never, plain),
)
