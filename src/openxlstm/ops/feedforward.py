"""The gated feed-forward: what goes in, what comes out, and who computes it."""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from openxlstm.ops import native, native_feedforward
from openxlstm.ops.check import check_floating, check_tensors
from openxlstm.ops.dispatch import Backend, Request, choose, never
from openxlstm.ops.norm import layer_norm

ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu}


def gated_feedforward(
    x: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 1e-5,
    residual: bool = False,
    activation: str = "gelu",
    backend: str | None = None,
) -> Tensor:
    """down(act(gate) ⊙ value), with [gate; value] = up(x) (arXiv:2002.05202, without its biases).

    With `norm_weight` it is of the layer norm of x, with `residual` it is added to x.

    Args:
        x: (…, D).
        up_weight: (2·F, D), the gate's rows first.
        down_weight: (D, F).
        up_bias, down_bias: (2·F,) and (D,).
        norm_weight: the scale less 1 of a layer norm before it (D,).
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
    check_tensors(
        x,
        [
            ("up_weight", up_weight, (2 * inner, D), (x.dtype,)),
            ("down_weight", down_weight, (D, inner), (x.dtype,)),
            ("up_bias", up_bias, (2 * inner,), (x.dtype,)),
            ("down_bias", down_bias, (D,), (x.dtype,)),
            ("norm_weight", norm_weight, (D,), (x.dtype,)),
        ],
    )
    sizes = (("rows", prod(x.shape[:-1])), ("D", D), ("F", inner))
    request = Request(x.device.type, x.dtype, sizes, torch.is_grad_enabled())
    run = choose("gated_feedforward", BACKENDS, request, backend)
    return run(
        x, up_weight, down_weight, up_bias, down_bias,
        norm_weight=norm_weight, eps=eps, residual=residual, activation=activation,
    )  # fmt: skip


def plain(
    x: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 1e-5,
    residual: bool = False,
    activation: str = "gelu",
) -> Tensor:
    """`gated_feedforward` in plain PyTorch, for inputs that it has checked."""
    normed = x if norm_weight is None else layer_norm(x, norm_weight, eps=eps)
    gate, value = F.linear(normed, up_weight, up_bias).chunk(2, dim=-1)
    y = F.linear(ACTIVATIONS[activation](gate) * value, down_weight, down_bias)
    return x + y if residual else y


BACKENDS = (
    Backend("native", native.refuses_layer, native_feedforward.gated_feedforward),
    Backend("torch", never, plain),
)
