"""From an mLSTM cell's output back to the residual stream: what goes in, and who computes it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from openxlstm.ops.check import check_floating, check_tensors
from openxlstm.ops.dispatch import Backend, Request, choose, never
from openxlstm.ops.native import mlstm_output as native_mlstm_output
from openxlstm.ops.norm import layer_norm


def mlstm_output(
    h: Tensor,
    c: Tensor,
    z: Tensor,
    norm_weight: Tensor,
    skip: Tensor,
    down_weight: Tensor,
    down_bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    backend: str | None = None,
) -> Tensor:
    """What an mLSTM block does behind its cell (arXiv:2405.04517, figure 11).

    down((norm(h) + skip ⊙ c) ⊙ SiLU(z)), the norm in each head for itself.

    Args:
        h: (B, NH, T, DH).
        c, z: (B, T, E), E = NH·DH.
        norm_weight: the norm's scale less 1 (E,).
        skip: (E,).
        down_weight, down_bias: (D, E) and (D,).
        eps: of the norm.
        backend: the name of one of BACKENDS; None takes the first that can run this.

    Returns:
        y (B, T, D).

    Raises:
        ValueError: on shapes or dtypes that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("h", h, "B, NH, T, DH")
    check_floating("down_weight", down_weight, "D, E")
    B, NH, T, DH = h.shape
    D, E = down_weight.shape[0], NH * DH
    dtypes = (h.dtype,)
    check_tensors(
        h,
        [
            ("c", c, (B, T, E), dtypes),
            ("z", z, (B, T, E), dtypes),
            ("norm_weight", norm_weight, (E,), dtypes),
            ("skip", skip, (E,), dtypes),
            ("down_weight", down_weight, (D, E), dtypes),
            ("down_bias", down_bias, (D,), dtypes),
        ],
    )
    sizes = (("rows", B * T), ("D", D), ("E", E), ("NH", NH))
    request = Request(h.device.type, h.dtype, sizes, torch.is_grad_enabled())
    run = choose("mlstm_output", BACKENDS, request, backend)
    y = run(h, c, z, norm_weight, skip, down_weight, eps=eps)
    return y if down_bias is None else y + down_bias


def plain(
    h: Tensor,
    c: Tensor,
    z: Tensor,
    norm_weight: Tensor,
    skip: Tensor,
    down_weight: Tensor,
    *,
    eps: float = 1e-5,
) -> Tensor:
    """`mlstm_output` in plain PyTorch, for inputs that it has checked."""
    h = layer_norm(h.transpose(1, 2).flatten(2), norm_weight, h.shape[1], eps=eps)  # (B, T, E)
    return F.linear((h + skip * c) * F.silu(z), down_weight)


BACKENDS = (
    Backend("native", native_mlstm_output.refuses, native_mlstm_output.mlstm_output),
    Backend("torch", never, plain),
)
