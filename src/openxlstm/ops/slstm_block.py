"""The sLSTM block from the residual stream and back: what goes in, and who computes it."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.check import check_floating, check_tensors, state_dtype
from openxlstm.ops.conv import causal_conv
from openxlstm.ops.dispatch import Backend, Request, choose, never
from openxlstm.ops.feedforward import gated_feedforward
from openxlstm.ops.native import slstm_block as native_slstm_block
from openxlstm.ops.norm import layer_norm
from openxlstm.ops.slstm_layer import slstm_layer
from openxlstm.states import ConvState, SLSTMState


def slstm_block(
    x: Tensor,
    norm_weight: Tensor,
    input_weight: Tensor,
    bias: Tensor,
    recurrent_weight: Tensor,
    head_norm_weight: Tensor,
    ff_norm_weight: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    before: ConvState | None = None,
    state: SLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    forget_gate: str = "sigmoid",
    eps: float = 1e-5,
    backend: str | None = None,
) -> tuple[Tensor, ConvState | None, SLSTMState]:
    """x + head norm(sLSTM(norm(x))), and the gated feed-forward of that added to it
    (arXiv:2405.04517, figure 10): `layer_norm`, `causal_conv` with SiLU, `slstm_layer`, the norm of
    each head and `gated_feedforward`, where the arguments are described.

    Args:
        x: (B, T, D), D = NH·DH.
        norm_weight, head_norm_weight, ff_norm_weight: scales less 1 (D,).
        conv_weight, conv_bias: (D, K) and (D,); None leaves the convolution out.
        before, state: where to start, of the convolution and of the cell; None is empty.
        reset: (B, T) bool; both are emptied before a step where it is true.
        eps: of all norms.
        backend: the name of one of BACKENDS; None takes the first that can run this.

    Returns:
        y (B, T, D), and both states after the last step.

    Raises:
        ValueError: on shapes or dtypes that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("x", x, "B, T, D")
    check_floating("input_weight", input_weight, "NH, 4, DH, DH")
    check_floating("down_weight", down_weight, "D, F")
    (B, T, D), inner = x.shape, down_weight.shape[1]
    NH, _, DH, _ = input_weight.shape
    if D != NH * DH:
        raise ValueError(f"x must be (B, T, NH·DH) = (B, T, {NH * DH}), not {tuple(x.shape)}")
    if forget_gate not in ("sigmoid", "exp"):
        raise ValueError(f"forget_gate must be 'sigmoid' or 'exp', not {forget_gate!r}")
    if conv_weight is None and (conv_bias is not None or before is not None):
        raise ValueError("conv_bias and before go with conv_weight")
    K = 0 if conv_weight is None else conv_weight.shape[-1]
    dtypes, states = (x.dtype,), (state_dtype(x.dtype),)
    parts = () if state is None else zip(SLSTMState._fields, state, strict=True)
    check_tensors(
        x,
        [
            ("norm_weight", norm_weight, (D,), dtypes),
            ("conv_weight", conv_weight, (D, K), dtypes),
            ("conv_bias", conv_bias, (D,), dtypes),
            ("input_weight", input_weight, (NH, 4, DH, DH), dtypes),
            ("bias", bias, (NH, 4, DH), dtypes),
            ("recurrent_weight", recurrent_weight, (NH, 4, DH, DH), dtypes),
            ("head_norm_weight", head_norm_weight, (D,), dtypes),
            ("ff_norm_weight", ff_norm_weight, (D,), dtypes),
            ("up_weight", up_weight, (2 * inner, D), dtypes),
            ("down_weight", down_weight, (D, inner), dtypes),
            ("up_bias", up_bias, (2 * inner,), dtypes),
            ("down_bias", down_bias, (D,), dtypes),
            ("before.x", None if before is None else before.x, (B, K - 1, D), dtypes),
            ("reset", reset, (B, T), (torch.bool,)),
            *((f"state.{name}", part, (B, NH, DH), states) for name, part in parts),
        ],
    )
    sizes = (
        ("rows", B * T), ("B", B), ("T", T), ("D", D), ("DH", DH), ("F", inner), ("K", K),
    )  # fmt: skip
    request = Request(x.device.type, x.dtype, sizes, torch.is_grad_enabled())
    run = choose("slstm_block", BACKENDS, request, backend)
    return run(
        x, norm_weight, input_weight, bias, recurrent_weight, head_norm_weight, ff_norm_weight,
        up_weight, down_weight, up_bias, down_bias, conv_weight, conv_bias, before, state,
        reset=reset, forget_gate=forget_gate, eps=eps,
    )  # fmt: skip


def apart(
    x: Tensor,
    norm_weight: Tensor,
    input_weight: Tensor,
    bias: Tensor,
    recurrent_weight: Tensor,
    head_norm_weight: Tensor,
    ff_norm_weight: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    before: ConvState | None = None,
    state: SLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    forget_gate: str = "sigmoid",
    eps: float = 1e-5,
    backend: str | None = None,
) -> tuple[Tensor, ConvState | None, SLSTMState]:
    """`slstm_block` as the ops that it consists of, each with a backend of its own."""
    raw = convolved = layer_norm(x, norm_weight, eps=eps, backend=backend)
    after = None
    if conv_weight is not None:
        conv = conv_weight, conv_bias, before
        convolved, after = causal_conv(raw, *conv, reset=reset, activation="silu", backend=backend)
    h, final = slstm_layer(
        convolved, raw, input_weight, bias, recurrent_weight, state,
        reset=reset, forget_gate=forget_gate, backend=backend,
    )  # fmt: skip
    x = x + layer_norm(h.flatten(-2), head_norm_weight, h.shape[2], eps=eps, backend=backend)
    y = gated_feedforward(
        x, up_weight, down_weight, up_bias, down_bias,
        norm_weight=ff_norm_weight, eps=eps, residual=True, backend=backend,
    )  # fmt: skip
    return y, after, final


def plain(*arguments: Any, **options: Any) -> tuple[Tensor, ConvState | None, SLSTMState]:
    """`slstm_block` in plain PyTorch, for inputs that it has checked."""
    return apart(*arguments, **options, backend="torch")


BACKENDS = (
    Backend("native", native_slstm_block.refuses, native_slstm_block.slstm_block),
    Backend("apart", never, apart),
    Backend("torch", never, plain),
)
