"""The gated feed-forward after an sLSTM (arXiv:2405.04517, figure 10)."""

from torch import Tensor, nn

from openxlstm import ops
from openxlstm.config import PaperBlockConfig, StackConfig
from openxlstm.nn.dropout import Dropout
from openxlstm.nn.init import small_init_, wang_init_, zero_biases_
from openxlstm.nn.norm import EPS


class GatedFeedForward(nn.Module):
    """GeGLU: down(gelu(gate) ⊙ value) with [gate; value] = up(x). x (…, D) → y (…, D)."""

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

    def forward(self, x: Tensor, norm_weight: Tensor) -> Tensor:
        """x + feed-forward(norm(x)), norm_weight (D,) the norm's scale less 1."""
        up, down = self.up_proj, self.down_proj
        weights = ops.FeedForwardWeights(
            norm=norm_weight, norm_bias=None, up=up.weight, value=None, down=down.weight,
            up_bias=up.bias, down_bias=down.bias,
        )  # fmt: skip
        drops = self.training and self.dropout.p > 0  # what is dropped is not the residual
        y = ops.gated_feedforward(x, weights, eps=EPS, residual=not drops)
        return x + self.dropout(y) if drops else y
