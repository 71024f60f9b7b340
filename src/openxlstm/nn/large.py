"""The block of xLSTM-7B: an mLSTM and a feed-forward, each behind a norm of its own
(arXiv:2503.13427, section 3.1 and figure 8).

    u    = rmsnorm(x)
    q, k, v, õ = projections of u           D → QK, QK, V, V
    ĩ, f̃ = softcap(gate weights · u + bias) one number a head and step
    x    = x + out(σ(õ) ⊙ headnorm(mLSTM(q, k, v, ĩ, log σ(f̃))))
    u    = rmsnorm(x)
    x    = x + down(SiLU(gate(u)) ⊙ up(u))  D → F → D

There is no convolution, no skip and no inner width: what costs is dense products.
"""

import torch
from torch import Tensor, nn

from openxlstm import ops
from openxlstm.config import LargeBlockConfig, StackConfig
from openxlstm.nn.dropout import Dropout
from openxlstm.nn.init import mlstm_forget_bias, small_init_, wang_init_, zero_biases_
from openxlstm.nn.norm import LargeHeadNorm, RMSNorm
from openxlstm.ops import soft_cap as soft_cap
from openxlstm.states import LayerState, MLSTMState, SLSTMState


class LargeMLSTMLayer(nn.Module):
    """An mLSTM with NH heads, of keys DQK and values DHV wide; x (B, T, D) → (B, T, D)."""

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
        NH, (DQK, DHV), weight = self.num_heads, self.head_dims, self.gate_weight
        options = {"dtype": ops.state_dtype(weight.dtype), "device": weight.device}
        cell = MLSTMState.empty(batch_size, NH, DQK, DHV, **options)
        return LayerState(None, cell)

    def forward(
        self,
        x: Tensor,
        norm: RMSNorm,
        state: LayerState | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, LayerState]:
        """x + layer(norm(x)), and the state after it."""
        cell_state = None if state is None else state.cell
        assert not isinstance(cell_state, SLSTMState), "the state is an sLSTM's"
        q, k, v, log_i, log_f, o = self.inputs(x, norm)
        h, cell_state = ops.mlstm(
            q, k, v, log_i, log_f, cell_state, reset=reset, eps=self.eps
        )  # (B, NH, T, DHV)
        out, drops = self.out_proj, self.training and self.dropout.p > 0
        weights = ops.LargeOutputWeights(self.norm.weight, self.norm.bias, out.weight, out.bias)
        y = ops.large_output(h, o, weights, None if drops else x, eps=self.norm.eps)
        return x + self.dropout(y) if drops else y, LayerState(None, cell_state)

    def inputs(self, x: Tensor, norm: RMSNorm) -> ops.LargeInputs:
        """What the cell reads, and the output gate, of x (B, T, D) before its norm."""
        q, k, v, o = self.q_proj, self.k_proj, self.v_proj, self.o_proj
        weights = ops.LargeInputWeights(
            norm=norm.weight, norm_bias=norm.bias, q=q.weight, k=k.weight, v=v.weight, o=o.weight,
            gates=self.gate_weight, q_bias=q.bias, k_bias=k.bias, v_bias=v.bias, o_bias=o.bias,
            gate_bias=self.gate_bias,
        )  # fmt: skip
        return ops.large_input(x, weights, eps=norm.eps, gate_soft_cap=self.gate_soft_cap)


class SwiGLU(nn.Module):
    """down(SiLU(gate(x)) ⊙ up(x)) (arXiv:2002.05202); x (…, D) → y (…, D)."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        assert isinstance(config.block, LargeBlockConfig)
        D, bias = config.embedding_dim, config.bias
        inner = config.block.ff_dim(D)
        self.gate_proj, self.up_proj = (nn.Linear(D, inner, bias=bias) for _ in range(2))
        self.down_proj = nn.Linear(inner, D, bias=bias)
        self.dropout = Dropout(config.dropout, config.dropout_kind)
        small_init_(self.gate_proj.weight, D)
        small_init_(self.up_proj.weight, D)
        wang_init_(self.down_proj.weight, D, len(config.layers))
        zero_biases_(self.gate_proj, self.up_proj, self.down_proj)

    def forward(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """x + feed-forward(norm(x))."""
        gate, up, down = self.gate_proj, self.up_proj, self.down_proj
        drops = self.training and self.dropout.p > 0  # what is dropped is not the residual
        weights = ops.FeedForwardWeights(
            norm=norm.weight, norm_bias=norm.bias, up=gate.weight, value=up.weight,
            down=down.weight, up_bias=gate.bias, value_bias=up.bias, down_bias=down.bias,
        )  # fmt: skip
        options = {"eps": norm.eps, "residual": not drops, "activation": "silu"}
        y = ops.gated_feedforward(x, weights, norm="rms", **options)
        return x + self.dropout(y) if drops else y


def rms_norm(config: StackConfig) -> RMSNorm:
    """A norm of the residual stream."""
    assert isinstance(config.block, LargeBlockConfig)
    return RMSNorm(config.embedding_dim, eps=config.block.norm_eps, bias=config.bias)


class LargeBlock(nn.Module):
    """x + mLSTM(norm(x)), and that + feed-forward(norm(that)). x (B, T, D)."""

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
        x, state_after = self.layer(x, self.norm, state, reset)
        return self.ff(x, self.ff_norm), state_after
