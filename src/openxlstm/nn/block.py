"""Blocks: a layer with its norm and residual, and what follows it."""

from torch import Tensor, nn

from openxlstm.config import StackConfig
from openxlstm.nn.feedforward import GatedFeedForward
from openxlstm.nn.mlstm import MLSTMLayer
from openxlstm.nn.norm import LayerNorm
from openxlstm.nn.slstm import SLSTMLayer
from openxlstm.states import LayerState

LAYERS = {"s": SLSTMLayer, "m": MLSTMLayer}


class Block(nn.Module):
    """x + layer(norm(x)); after an sLSTM, that + feed-forward(norm(that)). x (B, T, D)."""

    def __init__(self, config: StackConfig, block_index: int) -> None:
        super().__init__()
        kind = config.layers[block_index]
        self.norm = LayerNorm(config.embedding_dim)
        self.layer = LAYERS[kind](config, block_index)
        has_feedforward = kind == "s" and config.slstm_ff_factor > 0
        self.ff_norm = LayerNorm(config.embedding_dim) if has_feedforward else None
        self.ff = GatedFeedForward(config) if has_feedforward else None

    def initial_state(self, batch_size: int) -> LayerState:
        return self.layer.initial_state(batch_size)

    def forward(
        self, x: Tensor, state: LayerState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        y, state_after = self.layer(self.norm(x), state, reset)
        x = x + y
        if self.ff is not None and self.ff_norm is not None:
            x = self.ff(x, self.ff_norm.weight)
        return x, state_after
