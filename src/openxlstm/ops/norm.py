"""Layer norm of rows or of each head's part, and RMS norm."""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from openxlstm.ops.check import check_floating, check_tensor, state_dtype
from openxlstm.ops.dispatch import Backend, never, pick
from openxlstm.ops.native import norm as native_norm


def layer_norm(
    x: Tensor, weight: Tensor, num_groups: int = 1, *, eps: float = 1e-5, backend: str | None = None
) -> Tensor:
    """(x - mean) / √(variance + eps) · (1 + weight), in each of `num_groups` equal parts of a row.

    Args:
        x: (…, D).
        weight: the scale less 1 (D,).
        num_groups: 1 for a layer norm, the number of heads for a head norm.
        eps: added to the variance.
        backend: the name of a backend in BACKENDS; None takes the first that can run this.

    Returns:
        y (…, D).

    Raises:
        ValueError: on shapes, dtypes or devices that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("x", x, "…, D")
    D = x.shape[-1]
    check_tensor("weight", weight, (D,), x)
    if num_groups < 1 or D % num_groups:
        raise ValueError(f"num_groups must divide D = {D}, which {num_groups} does not")
    sizes = {"rows": prod(x.shape[:-1]), "D": D, "groups": num_groups}
    return pick("layer_norm", BACKENDS, x, sizes, backend)(x, weight, num_groups, eps=eps)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-6,
    backend: str | None = None,
) -> Tensor:
    """x / √(mean square + eps) · weight + bias (arXiv:1910.07467).

    The mean is taken in float32 or wider, and the result is scaled in the dtype of x.

    Args:
        x: (…, D).
        weight, bias: (D,); a bias of None adds nothing.
        eps: added to the mean square.
        backend: the name of a backend in BACKENDS; None takes the first that can run this.

    Returns:
        y (…, D).

    Raises:
        ValueError: on shapes, dtypes or devices that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("x", x, "…, D")
    D = x.shape[-1]
    check_tensor("weight", weight, (D,), x)
    check_tensor("bias", bias, (D,), x)
    sizes = {"rows": prod(x.shape[:-1]), "D": D}
    return pick("rms_norm", BACKENDS, x, sizes, backend)(x, weight, bias, eps=eps)


def _plain_layer_norm(x: Tensor, weight: Tensor, num_groups: int, *, eps: float) -> Tensor:
    """`layer_norm` in plain PyTorch."""
    if num_groups == 1:
        return F.layer_norm(x, weight.shape, 1 + weight, eps=eps)
    groups = x.unflatten(-1, (num_groups, -1))
    return F.layer_norm(groups, groups.shape[-1:], eps=eps).flatten(-2) * (1 + weight)


def _plain_rms_norm(x: Tensor, weight: Tensor, bias: Tensor | None, *, eps: float) -> Tensor:
    """`rms_norm` in plain PyTorch."""
    wide = x.to(state_dtype(x.dtype))
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return scale(y.to(x.dtype), weight, bias)


def scale(y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y ⊙ weight + bias, or y ⊙ weight without a bias."""
    return y * weight if bias is None else y * weight + bias


BACKENDS = {
    "layer_norm": (
        Backend("native", native_norm.refuses, native_norm.layer_norm),
        Backend("torch", never, _plain_layer_norm),
    ),
    "rms_norm": (
        Backend("native", native_norm.refuses, native_norm.rms_norm),
        Backend("torch", never, _plain_rms_norm),
    ),
}
