"""sLSTM layer: convolution, gates, cell, head norm (arXiv:2405.04517, figure 10)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from openxlstm import ops
from openxlstm.config import BareBlockConfig, PaperBlockConfig, StackConfig
from openxlstm.nn.conv import CausalConv1d
from openxlstm.nn.dropout import Dropout
from openxlstm.nn.fusion import any_weight
from openxlstm.nn.init import powerlaw_forget_bias, small_init_, uniform_init_
from openxlstm.nn.norm import HeadNorm
from openxlstm.states import LayerState, MLSTMState, SLSTMState


class SLSTMLayer(nn.Module):
    """x (B, T, D) → y (B, T, D), in NH heads of DH = D/NH.

    The input and forget gates read the convolved input, cell input and output gate the raw one.
    There is no output projection: the following feed-forward mixes the heads. A bare block has no
    convolution and no norm.
    """

    PARTS: ClassVar = {"conv": CausalConv1d, "norm": HeadNorm, "dropout": Dropout}

    def __init__(self, config: StackConfig, block_index: int = 0) -> None:
        super().__init__()
        D, NH = config.embedding_dim, config.num_heads
        DH = D // NH
        self.num_heads, self.head_dim = NH, DH
        block = config.block
        is_bare = isinstance(block, BareBlockConfig)
        if is_bare:
            kernel_size, recurrent_init = 0, block.recurrent_init
            self.forget_gate = block.forget_gate
        else:
            assert isinstance(block, PaperBlockConfig)
            kernel_size, recurrent_init = block.slstm_conv_kernel_size, block.slstm_recurrent_init
            self.forget_gate = block.slstm_forget_gate
        self.conv = CausalConv1d(D, kernel_size) if kernel_size else None
        # Both [head, gate, out, in], gates in the order i, f, z, o.
        self.input_weight = nn.Parameter(small_init_(torch.empty(NH, 4, DH, DH), D))
        self.recurrent_weight = nn.Parameter(torch.zeros(NH, 4, DH, DH))
        if recurrent_init == "uniform":
            uniform_init_(self.recurrent_weight.data, D)
        self.bias = nn.Parameter(torch.zeros(NH, 4, DH))
        self.bias.data[:, 1] = powerlaw_forget_bias(DH, block_index, len(config.layers))
        self.norm = None if is_bare else HeadNorm(NH, DH)
        self.dropout = Dropout(config.dropout, config.dropout_kind)

    def initial_state(self, batch_size: int) -> LayerState:
        weight = any_weight(self)
        sizes = batch_size, self.num_heads, self.head_dim
        options = {"dtype": ops.state_dtype(weight.dtype), "device": weight.device}
        conv = None if self.conv is None else self.conv.initial_state(batch_size)
        # Separate tensors, like those after a step, so that a compiled step accepts both.
        cell = SLSTMState(*(torch.zeros(sizes, **options) for _ in range(4)))
        return LayerState(conv, cell)

    def forward(
        self, x: Tensor, state: LayerState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        conv_state, cell_state = (None, None) if state is None else state
        assert not isinstance(cell_state, MLSTMState), "the state is an mLSTM's"
        convolved = x
        if self.conv is not None:
            convolved, conv_state = self.conv(x, conv_state, reset)
        h, cell_state = ops.slstm_layer(
            convolved,
            x,
            ops.SLSTMLayerWeights(self.input_weight, self.recurrent_weight, self.bias),
            cell_state,
            reset=reset,
            forget_gate=self.forget_gate,
        )  # (B, T, NH, DH)
        h = self.dropout(h)
        y = h.flatten(-2) if self.norm is None else self.norm(h)
        return y, LayerState(conv_state, cell_state)
