"""The blocks of the paper: a layer with norm and residual, and the feed-forward after an sLSTM."""

from typing import ClassVar

from torch import Tensor, nn

from openxlstm import ops
from openxlstm.config import PaperBlockConfig, StackConfig
from openxlstm.nn.conv import weights_of
from openxlstm.nn.feedforward import GatedFeedForward, add_feedforward
from openxlstm.nn.fusion import are_plain
from openxlstm.nn.mlstm import MLSTMLayer
from openxlstm.nn.norm import EPS, LayerNorm
from openxlstm.nn.slstm import SLSTMLayer
from openxlstm.states import LayerState

LAYERS = {"s": SLSTMLayer, "m": MLSTMLayer}


class Block(nn.Module):
    """y = x + layer(norm(x)); after an sLSTM, y + feed-forward(norm(y)). x, y (B, T, D).

    arXiv:2405.04517, figures 10 (sLSTM) and 11 (mLSTM).
    """

    PARTS: ClassVar = {
        "norm": LayerNorm,
        "layer": (SLSTMLayer, MLSTMLayer),
        "ff_norm": LayerNorm,
        "ff": GatedFeedForward,
    }

    def __init__(self, config: StackConfig, block_index: int) -> None:
        super().__init__()
        assert isinstance(config.block, PaperBlockConfig)
        kind = config.layers[block_index]
        self.norm = LayerNorm(config.embedding_dim)
        self.layer = LAYERS[kind](config, block_index)
        has_feedforward = kind == "s" and config.block.slstm_ff_factor > 0
        self.ff_norm = LayerNorm(config.embedding_dim) if has_feedforward else None
        self.ff = GatedFeedForward(config) if has_feedforward else None

    def initial_state(self, batch_size: int) -> LayerState:
        return self.layer.initial_state(batch_size)

    def forward(
        self, x: Tensor, state: LayerState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        if self._can_fuse():
            return self._fused(x, state, reset)
        y, state_after = self.layer(self.norm(x), state, reset)
        x = x + y
        if self.ff is not None and self.ff_norm is not None:
            x = add_feedforward(x, self.ff_norm, self.ff)
        return x, state_after

    def _can_fuse(self) -> bool:
        """Whether one op can compute the whole block: an sLSTM's, all parts plain, no dropout."""
        layer, ff = self.layer, self.ff
        if type(layer) is not SLSTMLayer or layer.norm is None or ff is None:
            return False
        parts = (self.norm, LayerNorm), (layer, SLSTMLayer), (self.ff_norm, LayerNorm)
        if not are_plain(*parts, (ff, GatedFeedForward)):
            return False
        return not (self.training and (layer.dropout.p > 0 or ff.dropout.p > 0))

    def _fused(
        self, x: Tensor, state: LayerState | None, reset: Tensor | None
    ) -> tuple[Tensor, LayerState]:
        layer, ff, ff_norm = self.layer, self.ff, self.ff_norm
        assert isinstance(layer, SLSTMLayer)
        assert layer.norm is not None
        assert ff is not None
        assert ff_norm is not None
        conv_weight, conv_bias = weights_of(layer.conv)
        weights = ops.SLSTMBlockWeights(
            norm=self.norm.weight,
            conv_weight=conv_weight,
            conv_bias=conv_bias,
            input_weight=layer.input_weight,
            recurrent_weight=layer.recurrent_weight,
            bias=layer.bias,
            head_norm=layer.norm.weight,
            ff_norm=ff_norm.weight,
            up=ff.up_proj.weight,
            down=ff.down_proj.weight,
            up_bias=ff.up_proj.bias,
            down_bias=ff.down_proj.bias,
        )
        return ops.slstm_block(
            x, weights, state, reset=reset, forget_gate=layer.forget_gate, eps=EPS
        )
