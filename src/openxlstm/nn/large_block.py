"""The block of xLSTM-7B: an mLSTM and a feed-forward, each after a norm
(arXiv:2503.13427, section 3.1 and figure 8).

    u    = rmsnorm(x)
    q, k, v, õ = projections of u           D → QK, QK, V, V
    ĩ, f̃ = softcap(gate weights · u + bias) one number per head and step
    x    = x + out(σ(õ) ⊙ headnorm(mLSTM(q, k, v, ĩ, log σ(f̃))))
    u    = rmsnorm(x)
    x    = x + down(SiLU(gate(u)) ⊙ up(u))  D → F → D

There is no convolution, no skip and no inner width: nearly all of the cost is dense products.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openxlstm import ops
from openxlstm.config import LargeBlockConfig, StackConfig
from openxlstm.nn.dropout import Dropout
from openxlstm.nn.feedforward import SwiGLU, add_feedforward
from openxlstm.nn.fusion import any_weight, are_plain
from openxlstm.nn.init import mlstm_forget_bias, small_init_, wang_init_, zero_biases_
from openxlstm.nn.linear import gate_preactivations
from openxlstm.nn.norm import LargeHeadNorm, RMSNorm
from openxlstm.ops import soft_cap as soft_cap
from openxlstm.states import LayerState, MLSTMState, SLSTMState


class LargeMLSTMLayer(nn.Module):
    """mLSTM with keys of width DQK, values of width DHV and an output gate; x, y (B, T, D)."""

    PARTS: ClassVar = {
        "q_proj": nn.Linear,
        "k_proj": nn.Linear,
        "v_proj": nn.Linear,
        "o_proj": nn.Linear,
        "norm": LargeHeadNorm,
        "out_proj": nn.Linear,
        "dropout": Dropout,
    }

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        block, D = config.block, config.embedding_dim
        assert isinstance(block, LargeBlockConfig)
        QK, V = block.mlstm_dims(D)
        NH, bias = config.num_heads, config.bias
        self.num_heads, self.head_dims = NH, config.mlstm_head_dims
        self.eps, self.gate_soft_cap = block.eps, block.gate_soft_cap
        self.q_proj, self.k_proj = (nn.Linear(D, QK, bias=bias) for _ in range(2))
        self.v_proj, self.o_proj = (nn.Linear(D, V, bias=bias) for _ in range(2))
        self.gate_weight = nn.Parameter(torch.zeros(2, NH, D))  # gates in the order i, f
        self.gate_bias = nn.Parameter(
            torch.stack([torch.full((NH,), -10.0), mlstm_forget_bias(NH)])
        )
        self.norm = LargeHeadNorm(V, eps=block.norm_eps, bias=bias)
        self.out_proj = nn.Linear(V, D, bias=bias)
        self.dropout = Dropout(config.dropout, config.dropout_kind)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            small_init_(projection.weight, D)
        nn.init.zeros_(self.o_proj.weight)
        wang_init_(self.out_proj.weight, D, len(config.layers))
        zero_biases_(self.q_proj, self.k_proj, self.v_proj, self.o_proj, self.out_proj)

    def initial_state(self, batch_size: int) -> LayerState:
        NH, (DQK, DHV), weight = self.num_heads, self.head_dims, any_weight(self)
        options = {"dtype": ops.state_dtype(weight.dtype), "device": weight.device}
        cell = MLSTMState.empty(batch_size, NH, DQK, DHV, **options)
        return LayerState(None, cell)

    def forward(
        self, x: Tensor, state: LayerState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        q, k, v, log_i, log_f, o = self.inputs(x)
        h, state = self._cell(q, k, v, log_i, log_f, state, reset)  # (B, NH, T, DHV)
        y = self.out_proj(torch.sigmoid(o) * self.norm(h.transpose(1, 2))).to(x.dtype)
        return self.dropout(y), state

    def inputs(self, x: Tensor) -> ops.LargeInputs:
        """Computes the inputs of the cell, and the output gate, from x (B, T, D)."""
        q, k, v, o = (
            projection(x).to(x.dtype)
            for projection in (self.q_proj, self.k_proj, self.v_proj, self.o_proj)
        )
        gates = gate_preactivations(x, self.gate_weight, self.gate_bias)
        gates = ops.soft_cap(gates.to(ops.state_dtype(x.dtype)), self.gate_soft_cap)
        log_i, f_preact = gates.chunk(2, dim=1)  # each (B, NH, T)
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in (q, k, v))
        return ops.LargeInputs(q, k, v, log_i, F.logsigmoid(f_preact), o)

    def fused_residual(
        self, x: Tensor, norm: RMSNorm, state: LayerState | None, reset: Tensor | None
    ) -> tuple[Tensor, LayerState]:
        """x + layer(norm(x)) and the state after it, in fused ops, for plain parts."""
        q, k, v, o = self.q_proj, self.k_proj, self.v_proj, self.o_proj
        weights = ops.LargeInputWeights(
            norm=norm.weight, norm_bias=norm.bias, q=q.weight, k=k.weight, v=v.weight, o=o.weight,
            gates=self.gate_weight, q_bias=q.bias, k_bias=k.bias, v_bias=v.bias, o_bias=o.bias,
            gate_bias=self.gate_bias,
        )  # fmt: skip
        q, k, v, log_i, log_f, o = ops.large_input(
            x, weights, eps=norm.eps, gate_soft_cap=self.gate_soft_cap
        )
        h, state = self._cell(q, k, v, log_i, log_f, state, reset)
        out, drops = self.out_proj, self.training and self.dropout.p > 0
        weights = ops.LargeOutputWeights(self.norm.weight, self.norm.bias, out.weight, out.bias)
        y = ops.large_output(h, o, weights, None if drops else x, eps=self.norm.eps)
        return x + self.dropout(y) if drops else y, state

    def _cell(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_i: Tensor,
        log_f: Tensor,
        state: LayerState | None,
        reset: Tensor | None,
    ) -> tuple[Tensor, LayerState]:
        cell_state = None if state is None else state.cell
        assert not isinstance(cell_state, SLSTMState), "the state is an sLSTM's"
        h, cell_state = ops.mlstm(q, k, v, log_i, log_f, cell_state, reset=reset, eps=self.eps)
        return h, LayerState(None, cell_state)


class LargeBlock(nn.Module):
    """y = x + layer(norm(x)), then y + feed-forward(norm(y)); x, y (B, T, D)."""

    PARTS: ClassVar = {
        "norm": RMSNorm, "layer": LargeMLSTMLayer, "ff_norm": RMSNorm, "ff": SwiGLU
    }  # fmt: skip

    def __init__(self, config: StackConfig, block_index: int = 0) -> None:
        super().__init__()
        self.norm = rms_norm(config)
        self.layer = LargeMLSTMLayer(config)
        self.ff_norm = rms_norm(config)
        self.ff = SwiGLU(config)

    def initial_state(self, batch_size: int) -> LayerState:
        return self.layer.initial_state(batch_size)

    def forward(
        self, x: Tensor, state: LayerState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        if are_plain((self.norm, RMSNorm), (self.layer, LargeMLSTMLayer)):
            x, state_after = self.layer.fused_residual(x, self.norm, state, reset)
        else:
            y, state_after = self.layer(self.norm(x), state, reset)
            x = x + y
        return add_feedforward(x, self.ff_norm, self.ff), state_after


def rms_norm(config: StackConfig) -> RMSNorm:
    """A norm of the residual stream."""
    assert isinstance(config.block, LargeBlockConfig)
    return RMSNorm(config.embedding_dim, eps=config.block.norm_eps, bias=config.bias)
