"""The gated feed-forwards of both kinds of block, and the residual step around them."""

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from openxlstm import ops
from openxlstm.config import LargeBlockConfig, PaperBlockConfig, StackConfig
from openxlstm.nn.dropout import Dropout
from openxlstm.nn.fusion import are_plain, children_are_plain
from openxlstm.nn.init import small_init_, wang_init_, zero_biases_
from openxlstm.nn.norm import EPS, LayerNorm, RMSNorm


class GatedFeedForward(nn.Module):
    """GeGLU after an sLSTM: down(gelu(gate) ⊙ value) with [gate; value] = up(x)
    (arXiv:2405.04517, figure 10). x (…, D) → y (…, D)."""

    PARTS: ClassVar = {"up_proj": nn.Linear, "down_proj": nn.Linear, "dropout": Dropout}

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        assert isinstance(config.block, PaperBlockConfig)
        D, inner = config.embedding_dim, config.block.slstm_ff_dim(config.embedding_dim)
        self.up_proj = nn.Linear(D, 2 * inner, bias=config.bias)
        self.down_proj = nn.Linear(inner, D, bias=config.bias)
        self.dropout = Dropout(config.dropout, config.dropout_kind)
        small_init_(self.up_proj.weight, D)
        wang_init_(self.down_proj.weight, D, len(config.layers))
        zero_biases_(self.up_proj, self.down_proj)

    def forward(self, x: Tensor) -> Tensor:
        if children_are_plain(self):
            return self.dropout(self.fused(x))
        gate, value = self.up_proj(x).chunk(2, dim=-1)
        return self.dropout(self.down_proj(F.gelu(gate) * value).to(x.dtype))

    def fused(self, x: Tensor, *norm: Tensor | None, **options: Any) -> Tensor:
        """The same in one op, without dropout, after a norm of x with the weight and bias `norm`.
        The options are those of `ops.gated_feedforward`."""
        norm_weight, norm_bias = norm or (None, None)
        up, down = self.up_proj, self.down_proj
        weights = ops.FeedForwardWeights(
            norm=norm_weight, norm_bias=norm_bias, up=up.weight, value=None, down=down.weight,
            up_bias=up.bias, down_bias=down.bias,
        )  # fmt: skip
        return ops.gated_feedforward(x, weights, **options)


class SwiGLU(nn.Module):
    """The feed-forward of a large block: down(SiLU(gate(x)) ⊙ up(x)) (arXiv:2002.05202).

    x (…, D) → y (…, D).
    """

    PARTS: ClassVar = {
        "gate_proj": nn.Linear,
        "up_proj": nn.Linear,
        "down_proj": nn.Linear,
        "dropout": Dropout,
    }

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        assert isinstance(config.block, LargeBlockConfig)
        D, bias = config.embedding_dim, config.bias
        inner = config.block.ff_dim(D)
        self.gate_proj, self.up_proj = (nn.Linear(D, inner, bias=bias) for _ in range(2))
        self.down_proj = nn.Linear(inner, D, bias=bias)
        self.dropout = Dropout(config.dropout, config.dropout_kind)
        small_init_(self.gate_proj.weight, D)
        small_init_(self.up_proj.weight, D)
        wang_init_(self.down_proj.weight, D, len(config.layers))
        zero_biases_(self.gate_proj, self.up_proj, self.down_proj)

    def forward(self, x: Tensor) -> Tensor:
        if children_are_plain(self):
            return self.dropout(self.fused(x))
        h = F.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.dropout(self.down_proj(h).to(x.dtype))

    def fused(self, x: Tensor, *norm: Tensor | None, **options: Any) -> Tensor:
        """Like `GatedFeedForward.fused`."""
        norm_weight, norm_bias = norm or (None, None)
        gate, up, down = self.gate_proj, self.up_proj, self.down_proj
        weights = ops.FeedForwardWeights(
            norm=norm_weight, norm_bias=norm_bias, up=gate.weight, value=up.weight,
            down=down.weight, up_bias=gate.bias, value_bias=up.bias, down_bias=down.bias,
        )  # fmt: skip
        return ops.gated_feedforward(x, weights, activation="silu", **options)


def add_feedforward(x: Tensor, norm: nn.Module, ff: GatedFeedForward | SwiGLU) -> Tensor:
    """x + ff(norm(x)), in one op where both are plain; x (…, D) → y (…, D)."""
    drops = ff.training and ff.dropout.p > 0  # the residual is never dropped
    if are_plain((norm, LayerNorm), (ff, GatedFeedForward)):
        assert isinstance(norm, LayerNorm)
        y = ff.fused(x, norm.weight, None, eps=EPS, residual=not drops)
    elif are_plain((norm, RMSNorm), (ff, SwiGLU)):
        assert isinstance(norm, RMSNorm)
        options = {"norm": "rms", "eps": norm.eps, "residual": not drops}
        y = ff.fused(x, norm.weight, norm.bias, **options)
    else:
        return x + ff(norm(x))
    return x + ff.dropout(y) if drops else y
