"""mLSTM layer: up-projection, convolution, cell, skip and gate, down-projection
(arXiv:2405.04517, figure 11)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openxlstm import ops
from openxlstm.config import StackConfig
from openxlstm.nn.conv import CausalConv1d
from openxlstm.nn.init import small_init_, wang_init_, zero_biases_
from openxlstm.nn.linear import HeadwiseLinear
from openxlstm.nn.norm import HeadNorm
from openxlstm.states import LayerState, MLSTMState, SLSTMState


class MLSTMLayer(nn.Module):
    """x (B, T, D) → y (B, T, D), with inner width E in NH heads of DH = E/NH.

    Query and key read the convolved inner input, the value the raw one. Each head's input and
    forget gate is one number a step, read from query, key and value of all heads.
    """

    def __init__(self, config: StackConfig, block_index: int = 0) -> None:
        super().__init__()
        D, E, NH = config.embedding_dim, config.mlstm_inner_dim, config.num_heads
        self.num_heads, self.head_dim = NH, E // NH
        self.eps = config.mlstm_eps
        self.up_proj = nn.Linear(D, 2 * E, bias=config.bias)
        kernel_size = config.mlstm_conv_kernel_size
        self.conv = CausalConv1d(E, kernel_size) if kernel_size else None
        self.q_proj, self.k_proj, self.v_proj = (
            HeadwiseLinear(E, E // config.mlstm_qkv_block_size, model_dim=D, bias=config.bias)
            for _ in range(3)
        )
        self.gate_weight = nn.Parameter(torch.zeros(2, NH, 3 * E))  # gates in the order i, f
        self.gate_bias = nn.Parameter(
            torch.stack([0.1 * torch.randn(NH), torch.linspace(3.0, 6.0, NH)])
        )
        self.norm = HeadNorm(NH, E // NH)
        self.skip = nn.Parameter(torch.ones(E))
        self.down_proj = nn.Linear(E, D, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        small_init_(self.up_proj.weight, D)
        wang_init_(self.down_proj.weight, D, len(config.layers))
        zero_biases_(self.up_proj, self.down_proj)

    def initial_state(self, batch_size: int) -> LayerState:
        NH, DH = self.num_heads, self.head_dim
        weight = self.gate_weight
        options = {"dtype": ops.state_dtype(weight.dtype), "device": weight.device}
        conv = None if self.conv is None else self.conv.initial_state(batch_size)
        cell = MLSTMState(
            torch.zeros(batch_size, NH, DH, DH, **options),
            torch.zeros(batch_size, NH, DH, **options),
            torch.zeros(batch_size, NH, **options),
        )
        return LayerState(conv, cell)

    def forward(
        self, x: Tensor, state: LayerState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        conv_state, cell_state = (None, None) if state is None else state
        assert not isinstance(cell_state, SLSTMState), "the state is an sLSTM's"
        a, z = self.up_proj(x).chunk(2, dim=-1)  # the cell's branch and the gate's (B, T, E)
        if self.conv is None:
            c = F.silu(a)
        else:
            c, conv_state = self.conv(a, conv_state, reset)
            c = F.silu(c)
        q, k, v = self.q_proj(c), self.k_proj(c), self.v_proj(a)  # (B, T, E)
        log_i, log_f = self._gates(q, k, v)  # (B, NH, T)
        h, cell_state = ops.mlstm(
            self._heads(q), self._heads(k), self._heads(v), log_i, log_f, cell_state,
            reset=reset, eps=self.eps,
        )  # fmt: skip
        h = self.norm(h.transpose(1, 2))  # (B, T, E)
        y = self.down_proj((h + self.skip * c) * F.silu(z))
        return self.dropout(y), LayerState(conv_state, cell_state)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _gates(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """log i = ĩ and log f = log σ(f̃), each (B, NH, T), from [q; k; v] without joining them."""
        w_q, w_k, w_v = self.gate_weight.flatten(0, 1).chunk(3, dim=-1)  # (2·NH, E)
        preact = F.linear(q, w_q, self.gate_bias.flatten()) + F.linear(k, w_k) + F.linear(v, w_v)
        i_preact, f_preact = preact.mT.chunk(2, dim=1)  # each (B, NH, T)
        return i_preact, F.logsigmoid(f_preact)
