"""Block-diagonal linear maps in plain PyTorch."""

import torch
from torch import Tensor

from openxlstm.ops.dispatch import is_exported

TILE = 64
"""Width up to which small diagonal blocks are merged: one matmul that includes the zeros between
them is faster than many tiny matmuls."""

FEW = 4
"""Most rows, as in a step of generation, for which merging blocks costs more time than it saves."""


def blockwise(x: Tensor, weight: Tensor) -> Tensor:
    """Multiplies x (…, H·in) by the diagonal blocks of weight (H, out, in) → (…, H·out)."""
    H, _, dim_in = weight.shape
    grouped = x.reshape(-1, H, dim_in)  # (N, H, in)
    if not is_exported() and len(grouped) <= FEW:
        return (weight * grouped[:, :, None, :]).sum(-1).view(*x.shape[:-1], -1)
    weight = tiles(weight)
    grouped = x.reshape(-1, len(weight), weight.shape[2]).transpose(0, 1)  # (H/t, N, t·in)
    y = torch.bmm(grouped, weight.mT)  # (H/t, N, t·out)
    return y.transpose(0, 1).reshape(*x.shape[:-1], -1)


def tiles(weight: Tensor) -> Tensor:
    """Merges t neighbouring diagonal blocks into one: (H, out, in) → (H/t, t·out, t·in)."""
    H, dim_out, dim_in = weight.shape
    t = max(t for t in range(1, H + 1) if H % t == 0 and (t == 1 or t * dim_in <= TILE))
    if t == 1:
        return weight
    blocks = weight.view(H // t, t, dim_out, dim_in).permute(0, 2, 3, 1)  # (H/t, out, in, t)
    return blocks.diag_embed().permute(0, 3, 1, 4, 2).reshape(H // t, t * dim_out, t * dim_in)
