"""mLSTM layer: up-projection, convolution, cell, skip and gate, down-projection
(arXiv:2405.04517, figure 11)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openxlstm import ops
from openxlstm.config import PaperBlockConfig, StackConfig
from openxlstm.nn.conv import CausalConv1d, weights_of
from openxlstm.nn.dropout import Dropout
from openxlstm.nn.fusion import any_weight, children_are_plain
from openxlstm.nn.init import mlstm_forget_bias, small_init_, wang_init_, zero_biases_
from openxlstm.nn.linear import HeadwiseLinear, gate_preactivations
from openxlstm.nn.norm import EPS, HeadNorm
from openxlstm.states import ConvState, LayerState, MLSTMState, SLSTMState


class MLSTMLayer(nn.Module):
    """x (B, T, D) → y (B, T, D), with inner width E in NH heads of DH = E/NH.

    Query and key read the convolved inner input, the value the raw one. The input and forget gates
    are one number per head and step, computed from query, key and value of all heads.
    """

    PARTS: ClassVar = {
        "up_proj": nn.Linear,
        "conv": CausalConv1d,
        "q_proj": HeadwiseLinear,
        "k_proj": HeadwiseLinear,
        "v_proj": HeadwiseLinear,
        "norm": HeadNorm,
        "down_proj": nn.Linear,
        "dropout": Dropout,
    }

    def __init__(self, config: StackConfig, block_index: int = 0) -> None:
        super().__init__()
        block, D, NH = config.block, config.embedding_dim, config.num_heads
        assert isinstance(block, PaperBlockConfig)
        E = block.mlstm_inner_dim(D)
        self.num_heads, self.head_dim = NH, E // NH
        self.eps = block.mlstm_eps
        self.up_proj = nn.Linear(D, 2 * E, bias=config.bias)
        kernel_size = block.mlstm_conv_kernel_size
        self.conv = CausalConv1d(E, kernel_size) if kernel_size else None
        self.q_proj, self.k_proj, self.v_proj = (
            HeadwiseLinear(E, E // block.mlstm_qkv_block_size, model_dim=D, bias=config.bias)
            for _ in range(3)
        )
        self.gate_weight = nn.Parameter(torch.zeros(2, NH, 3 * E))  # gates in the order i, f
        self.gate_bias = nn.Parameter(torch.stack([0.1 * torch.randn(NH), mlstm_forget_bias(NH)]))
        self.norm = HeadNorm(NH, E // NH)
        self.skip = nn.Parameter(torch.ones(E))
        self.down_proj = nn.Linear(E, D, bias=config.bias)
        self.dropout = Dropout(config.dropout, config.dropout_kind)
        small_init_(self.up_proj.weight, D)
        wang_init_(self.down_proj.weight, D, len(config.layers))
        zero_biases_(self.up_proj, self.down_proj)

    def initial_state(self, batch_size: int) -> LayerState:
        NH, DH = self.num_heads, self.head_dim
        weight = any_weight(self)
        options = {"dtype": ops.state_dtype(weight.dtype), "device": weight.device}
        conv = None if self.conv is None else self.conv.initial_state(batch_size)
        cell = MLSTMState.empty(batch_size, NH, DH, DH, **options)
        return LayerState(conv, cell)

    def forward(
        self, x: Tensor, state: LayerState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        if children_are_plain(self):
            y, state = self._fused(x, state, reset)
            return self.dropout(y), state
        conv_state, cell_state = (None, None) if state is None else state
        assert not isinstance(cell_state, SLSTMState), "the state is an sLSTM's"
        (q, k, v, log_i, log_f, c, z), conv_state = self.inputs(x, conv_state, reset)
        h, cell_state = ops.mlstm(
            q, k, v, log_i, log_f, cell_state, reset=reset, eps=self.eps
        )  # (B, NH, T, DH)
        h = self.norm(h.transpose(1, 2))  # (B, T, E)
        y = self.down_proj((h + self.skip * c) * F.silu(z)).to(x.dtype)
        return self.dropout(y), LayerState(conv_state, cell_state)

    def inputs(
        self, x: Tensor, conv_state: ConvState | None, reset: Tensor | None
    ) -> tuple[ops.MLSTMInputs, ConvState | None]:
        """Computes the inputs of the cell from x (B, T, D), and the two branches beside it."""
        a, z = self.up_proj(x).to(x.dtype).chunk(2, dim=-1)
        if self.conv is None:
            c, conv_state = F.silu(a), None
        else:
            c, conv_state = self.conv(a, conv_state, reset)
        q, k, v = self.q_proj(c), self.k_proj(c), self.v_proj(a)  # (B, T, E)
        gates = gate_preactivations(
            torch.cat([q, k, v], dim=-1).to(x.dtype), self.gate_weight, self.gate_bias
        )
        log_i, f_preact = gates.chunk(2, dim=1)  # each (B, NH, T)
        q, k, v = (
            y.to(x.dtype).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in (q, k, v)
        )
        return ops.MLSTMInputs(q, k, v, log_i, F.logsigmoid(f_preact), c, z), conv_state

    def _fused(
        self, x: Tensor, state: LayerState | None, reset: Tensor | None
    ) -> tuple[Tensor, LayerState]:
        """The layer in one op, without dropout."""
        up, q, k, v = self.up_proj, self.q_proj, self.k_proj, self.v_proj
        conv_weight, conv_bias = weights_of(self.conv)
        input_weights = ops.MLSTMInputWeights(
            up=up.weight, q=q.weight, k=k.weight, v=v.weight, gate=self.gate_weight,
            gate_bias=self.gate_bias, conv_weight=conv_weight, conv_bias=conv_bias,
            up_bias=up.bias, q_bias=q.bias, k_bias=k.bias, v_bias=v.bias,
        )  # fmt: skip
        down = self.down_proj
        output_weights = ops.MLSTMOutputWeights(self.norm.weight, self.skip, down.weight, down.bias)
        weights = ops.MLSTMBlockWeights(input_weights, output_weights)
        return ops.mlstm_block(x, weights, state, reset=reset, eps=self.eps, norm_eps=EPS)
