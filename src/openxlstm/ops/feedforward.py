"""The gated feed-forward: what goes in, what comes out, and who computes it."""

from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from openxlstm.ops.check import check_floating, check_tensors
from openxlstm.ops.dispatch import Backend, Request, choose, never
from openxlstm.ops.native import backend as native
from openxlstm.ops.native import feedforward as native_feedforward
from openxlstm.ops.norm import layer_norm, rms_norm

ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu}


def gated_feedforward(
    x: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    *,
    value_weight: Tensor | None = None,
    value_bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm: Literal["layer", "rms"] = "layer",
    eps: float = 1e-5,
    residual: bool = False,
    activation: str = "gelu",
    backend: str | None = None,
) -> Tensor:
    """down(act(gate) ⊙ value), with [gate; value] = up(x) (arXiv:2002.05202, without its biases).

    With `norm_weight` it is of a norm of x, with `residual` it is added to x.

    Args:
        x: (…, D).
        up_weight: (2·F, D), the gate's rows first; the gate's alone (F, D) with `value_weight`.
        down_weight: (D, F).
        up_bias, down_bias: (2·F,) and (D,); with `value_weight` the former is the gate's (F,).
        value_weight, value_bias: the value's (F, D) and (F,), where they are not in those of up.
        norm_weight, norm_bias: scale and bias of a norm before it (D,).
        norm: "layer", the scale given less 1, or "rms", the scale given whole.
        eps: of that norm.
        residual: whether to add x.
        activation: "gelu", the exact one, or "silu".
        backend: the name of one of BACKENDS; None takes the first that can run this.

    Returns:
        y (…, D).

    Raises:
        ValueError: on shapes or dtypes that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("x", x, "…, D")
    check_floating("down_weight", down_weight, "D, F")
    D, inner = x.shape[-1], down_weight.shape[1]
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be 'gelu' or 'silu', not {activation!r}")
    if norm not in ("layer", "rms"):
        raise ValueError(f"norm must be 'layer' or 'rms', not {norm!r}")
    for name, other, one, two in (
        ("value_bias", "value_weight", value_bias, value_weight),
        ("norm_bias", "norm_weight", norm_bias, norm_weight),
    ):
        if one is not None and two is None:
            raise ValueError(f"{name} needs {other}, which was not given")
    rows, dtypes = 2 * inner if value_weight is None else inner, (x.dtype,)
    check_tensors(
        x,
        [
            ("up_weight", up_weight, (rows, D), dtypes),
            ("value_weight", value_weight, (inner, D), dtypes),
            ("down_weight", down_weight, (D, inner), dtypes),
            ("up_bias", up_bias, (rows,), dtypes),
            ("value_bias", value_bias, (inner,), dtypes),
            ("down_bias", down_bias, (D,), dtypes),
            ("norm_weight", norm_weight, (D,), dtypes),
            ("norm_bias", norm_bias, (D,), dtypes),
        ],
    )
    sizes = (("rows", prod(x.shape[:-1])), ("D", D), ("F", inner))
    request = Request(x.device.type, x.dtype, sizes, torch.is_grad_enabled())
    run = choose("gated_feedforward", BACKENDS, request, backend)
    return run(
        x, up_weight, down_weight, up_bias, down_bias, value_weight=value_weight,
        value_bias=value_bias, norm_weight=norm_weight, norm_bias=norm_bias, norm=norm, eps=eps,
        residual=residual, activation=activation,
    )  # fmt: skip


def plain(
    x: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    *,
    value_weight: Tensor | None = None,
    value_bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm: str = "layer",
    eps: float = 1e-5,
    residual: bool = False,
    activation: str = "gelu",
) -> Tensor:
    """`gated_feedforward` in plain PyTorch, for inputs that it has checked."""
    normed = x
    if norm_weight is not None and norm == "rms":
        normed = rms_norm(x, norm_weight, norm_bias, eps=eps)
    elif norm_weight is not None:
        normed = layer_norm(x, norm_weight, eps=eps)
        normed = normed if norm_bias is None else normed + norm_bias
    up = F.linear(normed, up_weight, up_bias)
    if value_weight is None:
        gate, value = up.chunk(2, dim=-1)
    else:
        gate, value = up, F.linear(normed, value_weight, value_bias)
    y = F.linear(ACTIVATIONS[activation](gate) * value, down_weight, down_bias)
    return x + y if residual else y


BACKENDS = (
    Backend("native", native.refuses_layer, native_feedforward.gated_feedforward),
    Backend("torch", never, plain),
)
