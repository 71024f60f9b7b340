"""mLSTM layer: up-projection, convolution, cell, skip and gate, down-projection
(arXiv:2405.04517, figure 11)."""

import torch
from torch import Tensor, nn

from openxlstm import ops
from openxlstm.config import PaperBlockConfig, StackConfig
from openxlstm.nn.conv import CausalConv1d, weights_of
from openxlstm.nn.dropout import Dropout
from openxlstm.nn.init import mlstm_forget_bias, small_init_, wang_init_, zero_biases_
from openxlstm.nn.linear import HeadwiseLinear
from openxlstm.nn.norm import EPS, HeadNorm
from openxlstm.states import ConvState, LayerState, MLSTMState


class MLSTMLayer(nn.Module):
    """x (B, T, D) → y (B, T, D), with inner width E in NH heads of DH = E/NH.

    Query and key read the convolved inner input, the value the raw one. Each head's input and
    forget gate is one number a step, read from query, key and value of all heads.
    """

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
        weight = self.gate_weight
        options = {"dtype": ops.state_dtype(weight.dtype), "device": weight.device}
        conv = None if self.conv is None else self.conv.initial_state(batch_size)
        cell = MLSTMState.empty(batch_size, NH, DH, DH, **options)
        return LayerState(conv, cell)

    def forward(
        self, x: Tensor, state: LayerState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        weights = ops.MLSTMBlockWeights(self._input_weights(), self._output_weights())
        y, state = ops.mlstm_block(x, weights, state, reset=reset, eps=self.eps, norm_eps=EPS)
        return self.dropout(y), state

    def inputs(
        self, x: Tensor, conv_state: ConvState | None, reset: Tensor | None
    ) -> tuple[ops.MLSTMInputs, ConvState | None]:
        """What the cell reads of x (B, T, D), and what joins its output."""
        return ops.mlstm_input(x, self._input_weights(), conv_state, reset=reset)

    def _input_weights(self) -> ops.MLSTMInputWeights:
        conv_weight, conv_bias = weights_of(self.conv)
        return ops.MLSTMInputWeights(
            up=self.up_proj.weight,
            q=self.q_proj.weight,
            k=self.k_proj.weight,
            v=self.v_proj.weight,
            gate=self.gate_weight,
            gate_bias=self.gate_bias,
            conv_weight=conv_weight,
            conv_bias=conv_bias,
            up_bias=self.up_proj.bias,
            q_bias=self.q_proj.bias,
            k_bias=self.k_proj.bias,
            v_bias=self.v_proj.bias,
        )

    def _output_weights(self) -> ops.MLSTMOutputWeights:
        down = self.down_proj
        return ops.MLSTMOutputWeights(
            norm=self.norm.weight, skip=self.skip, down=down.weight, down_bias=down.bias
        )
