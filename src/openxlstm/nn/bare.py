"""Bare blocks: a cell with its projections only, like a layer of `torch.nn.LSTM`.

No norm, no residual, no convolution, no feed-forward: the equations of arXiv:2405.04517, section
2.2 and 2.3, with the block-diagonal input weights of its figure 10 for the sLSTM.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openxlstm import ops
from openxlstm.config import BareBlockConfig, StackConfig
from openxlstm.nn.dropout import Dropout
from openxlstm.nn.fusion import any_weight
from openxlstm.nn.init import mlstm_forget_bias, small_init_, zero_biases_
from openxlstm.nn.linear import gate_preactivations
from openxlstm.nn.slstm import SLSTMLayer
from openxlstm.states import LayerState, MLSTMState, SLSTMState


class BareMLSTMLayer(nn.Module):
    """h = σ(õ) ⊙ mLSTM(q, k, v, ĩ, log σ(f̃)) (arXiv:2405.04517, eqs. 19-27).

    x (B, T, D) → h (B, T, D), in NH heads of DH = D/NH; query, key, value and output gate are dense
    maps of x; the input and forget gates are one number per head and step.
    """

    PARTS: ClassVar = {"qkvo_proj": nn.Linear}

    def __init__(self, config: StackConfig, block_index: int = 0) -> None:
        super().__init__()
        assert isinstance(config.block, BareBlockConfig)
        D, NH = config.embedding_dim, config.num_heads
        self.num_heads, self.head_dim, self.eps = NH, D // NH, config.block.eps
        self.qkvo_proj = nn.Linear(D, 4 * D, bias=config.bias)  # rows in the order q, k, v, o
        self.gate_weight = nn.Parameter(torch.zeros(2, NH, D))  # gates in the order i, f
        self.gate_bias = nn.Parameter(torch.stack([0.1 * torch.randn(NH), mlstm_forget_bias(NH)]))
        small_init_(self.qkvo_proj.weight, D)
        zero_biases_(self.qkvo_proj)

    def initial_state(self, batch_size: int) -> LayerState:
        NH, DH, weight = self.num_heads, self.head_dim, any_weight(self)
        options = {"dtype": ops.state_dtype(weight.dtype), "device": weight.device}
        cell = MLSTMState.empty(batch_size, NH, DH, DH, **options)
        return LayerState(None, cell)

    def forward(
        self, x: Tensor, state: LayerState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        cell_state = None if state is None else state.cell
        assert not isinstance(cell_state, SLSTMState), "the state is an sLSTM's"
        *qkv, o = self.qkvo_proj(x).to(x.dtype).chunk(4, dim=-1)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in qkv)
        gates = gate_preactivations(x, self.gate_weight, self.gate_bias)
        log_i, f_preact = gates.chunk(2, dim=1)  # each (B, NH, T)
        h, cell_state = ops.mlstm(
            q, k, v, log_i, F.logsigmoid(f_preact), cell_state, reset=reset, eps=self.eps
        )  # (B, NH, T, DH)
        h = torch.sigmoid(o) * h.transpose(1, 2).flatten(-2)
        return h.to(x.dtype), LayerState(None, cell_state)


LAYERS = {"s": SLSTMLayer, "m": BareMLSTMLayer}


class BareBlock(nn.Module):
    """One layer. All but the first have a dropout and a dense projection before it, which mixes the
    heads of the previous layer. x (B, T, D) → h (B, T, D)."""

    PARTS: ClassVar = {
        "dropout": Dropout,
        "proj": nn.Linear,
        "layer": (SLSTMLayer, BareMLSTMLayer),
    }

    def __init__(self, config: StackConfig, block_index: int) -> None:
        super().__init__()
        D, is_first = config.embedding_dim, block_index == 0
        self.dropout = None if is_first else Dropout(config.dropout, config.dropout_kind)
        self.proj = None if is_first else nn.Linear(D, D)
        layer = LAYERS[config.layers[block_index]]
        self.layer = layer(config.replace(dropout=0.0), block_index)

    def initial_state(self, batch_size: int) -> LayerState:
        return self.layer.initial_state(batch_size)

    def forward(
        self, x: Tensor, state: LayerState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        if self.proj is not None and self.dropout is not None:
            x = self.proj(self.dropout(x)).to(x.dtype)  # autocast would change the dtype
        return self.layer(x, state, reset)
