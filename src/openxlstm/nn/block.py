"""Blocks: a layer with its norm and residual, and what follows it."""

from torch import Tensor, nn

from openxlstm import ops
from openxlstm.config import PaperBlockConfig, StackConfig
from openxlstm.nn.conv import weights_of
from openxlstm.nn.feedforward import GatedFeedForward
from openxlstm.nn.mlstm import MLSTMLayer
from openxlstm.nn.norm import EPS, LayerNorm
from openxlstm.nn.slstm import SLSTMLayer
from openxlstm.states import LayerState

LAYERS = {"s": SLSTMLayer, "m": MLSTMLayer}


class Block(nn.Module):
    """x + layer(norm(x)); after an sLSTM, that + feed-forward(norm(that)). x (B, T, D)."""

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
        layer, ff, ff_norm = self.layer, self.ff, self.ff_norm
        if ff is None or ff_norm is None:
            y, state_after = layer(self.norm(x), state, reset)
            return x + y, state_after
        drops = self.training and (layer.dropout.p > 0 or ff.dropout.p > 0)
        in_parts = drops or any(map(is_watched, (self.norm, layer, ff)))
        if in_parts or not isinstance(layer, SLSTMLayer) or layer.norm is None:
            y, state_after = layer(self.norm(x), state, reset)
            return ff(x + y, ff_norm.weight), state_after
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


def is_watched(module: nn.Module) -> bool:
    """Whether somebody waits for a module's own call, which an operation of the whole block would
    leave out."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
