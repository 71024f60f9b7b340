"""The gated feed-forward (arXiv:2002.05202), with a norm in front of it."""

from math import prod
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from openxlstm.ops.check import check_choice, check_floating, check_parts
from openxlstm.ops.dispatch import Backend, never, pick
from openxlstm.ops.native import backend as native
from openxlstm.ops.native import feedforward as native_feedforward
from openxlstm.ops.norm import layer_norm, rms_norm
from openxlstm.ops.weights import FeedForwardWeights

ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu}


def gated_feedforward(
    x: Tensor,
    weights: FeedForwardWeights,
    *,
    norm: Literal["layer", "rms"] = "layer",
    eps: float = 1e-5,
    residual: bool = False,
    activation: str = "gelu",
    backend: str | None = None,
) -> Tensor:
    """down(act(gate) ⊙ value), with [gate; value] = up(norm(x)) (arXiv:2002.05202).

    Args:
        x: (…, D).
        norm: the norm in front, if `weights.norm` is given: "layer" or "rms".
        eps: added to the variance, or the mean square, by the norm.
        residual: whether to add x to the result.
        activation: "gelu", the exact one, or "silu".
        backend: the name of a backend in BACKENDS; None takes the first that can run this.

    Returns:
        y (…, D).

    Raises:
        ValueError: on shapes, dtypes or devices that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("x", x, "…, D")
    check_floating("weights.down", weights.down, "D, F")
    D, inner = x.shape[-1], weights.down.shape[1]
    check_choice("activation", activation, *ACTIVATIONS)
    check_choice("norm", norm, "layer", "rms")
    for name in ("value", "norm"):
        if getattr(weights, name) is None and getattr(weights, f"{name}_bias") is not None:
            raise ValueError(f"weights.{name}_bias needs weights.{name}, which was not given")
    rows = 2 * inner if weights.value is None else inner
    check_parts(
        "weights", weights, x,
        norm=(D,), norm_bias=(D,), up=(rows, D), value=(inner, D), down=(D, inner),
        up_bias=(rows,), value_bias=(inner,), down_bias=(D,),
    )  # fmt: skip
    sizes = {"rows": prod(x.shape[:-1]), "D": D, "F": inner}
    run = pick("gated_feedforward", BACKENDS, x, sizes, backend)
    return run(x, weights, norm=norm, eps=eps, residual=residual, activation=activation)


def _plain(
    x: Tensor,
    weights: FeedForwardWeights,
    *,
    norm: str,
    eps: float,
    residual: bool,
    activation: str,
) -> Tensor:
    """`gated_feedforward` in plain PyTorch."""
    normed = x
    if weights.norm is not None and norm == "rms":
        normed = rms_norm(x, weights.norm, weights.norm_bias, eps=eps)
    elif weights.norm is not None:
        normed = layer_norm(x, weights.norm, eps=eps)
        normed = normed if weights.norm_bias is None else normed + weights.norm_bias
    up = F.linear(normed, weights.up, weights.up_bias)
    if weights.value is None:
        gate, value = up.chunk(2, dim=-1)
    else:
        gate, value = up, F.linear(normed, weights.value, weights.value_bias)
    y = F.linear(ACTIVATIONS[activation](gate) * value, weights.down, weights.down_bias)
    return x + y if residual else y


BACKENDS = {
    "gated_feedforward": (
        Backend("native", native.refuses_layer, native_feedforward.gated_feedforward),
        Backend("torch", never, _plain),
    )
}
