"""Statistics of the gates of a layer, for watching a run.

Fused operations do not return their gates. This module recomputes them from the layer's input in
plain PyTorch, step by step where a step depends on the one before.

B batch · T time · NH heads · U gated memories per head: DH in an sLSTM, 1 in an mLSTM

Step s has the weight exp(log_D[t, s]) in the memory after step t: its input gate times the forget
gates since then. The sum of the weights, N_t = f_t N_{t-1} + i_t, is the sLSTM's normalizer
n_t·exp(m_t). In an mLSTM, n_t·exp(m_t) is N_t times the mean key.
"""

import math
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openxlstm import ops
from openxlstm.nn.large_block import LargeMLSTMLayer
from openxlstm.nn.mlstm import MLSTMLayer
from openxlstm.nn.slstm import SLSTMLayer


@dataclass(frozen=True, kw_only=True)
class GateStatistics:
    """The gates of one layer over a batch; means are over all samples, steps, heads and units."""

    forget: float
    """Mean forget gate f = exp(log_f): 1 keeps everything, 0 nothing. Only an exponential gate can
    be above 1."""
    half_life: float
    """Median half-life of the memories in tokens, ln 2 / -(mean log_f); inf if nothing fades. A
    memory below 1 is dead: it holds little more than the last token."""
    longest_half_life: float
    """The longest half-life of all memories, in tokens."""
    log_input: float
    """Mean ĩ, the logarithm of the input gate i = exp(ĩ)."""
    input: float
    """Mean i_t / N_t, the share of the memory that the current step wrote. It does not depend on
    the stabilizer. 1 overwrites everything, 0 writes nothing."""
    output: float
    """Mean output gate: σ(õ) of an sLSTM or a large block, the σ(z) in the SiLU(z) that gates the
    paper's mLSTM."""
    log_normalizer: float
    """Mean logarithm of the denominator of h, in the gauge m = 0: N_t in an sLSTM,
    max(|n_tᵀ q_t|·exp(m_t), 1) in an mLSTM."""
    floor: float | None = None
    """Share of an mLSTM's steps where this 1 is the larger, so that h is not normalized. None for
    an sLSTM, which has no floor."""

    def to_dict(self) -> dict[str, float | None]:
        """The figures as JSON-ready values; None for numbers that are not finite."""
        return {
            name: value if value is not None and math.isfinite(value) else None
            for name, value in asdict(self).items()
        }


class Gates(NamedTuple):
    """The gates of a layer at every step."""

    log_i: Tensor
    """ĩ (B, T, NH, U)."""
    log_f: Tensor
    """Logarithm of the forget gate (B, T, NH, U)."""
    output: Tensor
    """Output gate in [0, 1] (B, T, …)."""
    log_weight: Tensor
    """log N_t (B, T, NH, U)."""
    log_normalizer: Tensor
    """Logarithm of n_t (sLSTM) or |n_tᵀ q_t| (mLSTM), in the gauge m = 0 (B, T, NH, U)."""
    has_floor: bool
    """Whether a normalizer below 1 counts as 1."""


def gates_of(layer: nn.Module, x: Tensor, reset: Tensor | None = None) -> Gates | None:
    """The gates of `layer` while it reads x (B, T, D) from the empty state, reset before the steps
    where `reset` (B, T) is true; None for an unknown kind of layer."""
    match layer:
        case SLSTMLayer():
            return _slstm(layer, x, reset)
        case MLSTMLayer():
            return _mlstm(layer, x, reset)
        case LargeMLSTMLayer():
            return _large(layer, x, reset)
        case _:
            return None


def statistics(gates: Gates) -> GateStatistics:
    """Summarizes the gates of a layer."""
    log_i, log_f, output, log_weight, log_normalizer, has_floor = gates
    fading = log_f.double().mean((0, 1)).clamp_max(0).abs().flatten()  # (NH·U,)
    half_lives = math.log(2) / fading  # inf at 0
    floor = (log_normalizer < 0).double().mean().item() if has_floor else None
    if has_floor:
        log_normalizer = log_normalizer.clamp_min(0)
    return GateStatistics(
        forget=_mean(log_f.exp()),
        half_life=half_lives.median().item(),
        longest_half_life=half_lives.max().item(),
        log_input=_mean(log_i),
        input=_mean((log_i - log_weight).exp()),
        output=_mean(output),
        log_normalizer=_mean(log_normalizer),
        floor=floor,
    )


def _mean(x: Tensor) -> float:
    return x.double().mean().item()


def _slstm(layer: SLSTMLayer, x: Tensor, reset: Tensor | None) -> Gates:
    convolved = x if layer.conv is None else layer.conv(x, None, reset)[0]
    W, R, bias = layer.input_weight, layer.recurrent_weight, layer.bias
    weights = ops.SLSTMLayerWeights(W, R, bias)
    h, _ = ops.slstm_layer(
        convolved, x, weights, reset=reset, forget_gate=layer.forget_gate
    )  # (B, T, NH, DH)
    h_before = F.pad(h[:, :-1], (0, 0, 0, 0, 1, 0))
    if reset is not None:
        h_before = h_before.masked_fill(reset[..., None, None], 0.0)

    def gate(index: int, source: Tensor) -> Tensor:
        """Pre-activation of one gate, in the order i, f, z, o (B, T, NH, DH)."""
        source = source.unflatten(-1, (layer.num_heads, layer.head_dim))
        from_x = torch.einsum("hoi,bthi->btho", W[:, index], source)
        return from_x + torch.einsum("hoi,bthi->btho", R[:, index], h_before) + bias[:, index]

    log_i, log_f, output = gate(0, convolved), gate(1, convolved), gate(3, x).sigmoid()
    if layer.forget_gate == "sigmoid":
        log_f = F.logsigmoid(log_f)
    log_weight = _log_weight(log_i, log_f, reset)
    return Gates(log_i, log_f, output, log_weight, log_weight, has_floor=False)


def _mlstm(layer: MLSTMLayer, x: Tensor, reset: Tensor | None) -> Gates:
    (q, k, _, log_i, log_f, _, z), _ = layer.inputs(x, None, reset)
    return _of_matrix_memory(q, k, log_i, log_f, z.sigmoid(), reset)


def _large(layer: LargeMLSTMLayer, x: Tensor, reset: Tensor | None) -> Gates:
    q, k, _, log_i, log_f, o = layer.inputs(x)
    return _of_matrix_memory(q, k, log_i, log_f, o.sigmoid(), reset)


def _of_matrix_memory(
    q: Tensor, k: Tensor, log_i: Tensor, log_f: Tensor, output: Tensor, reset: Tensor | None
) -> Gates:
    """Gates of an mLSTM with queries and keys (B, NH, T, DQK), and log gates (B, NH, T)."""
    q, k = q.transpose(1, 2), k.transpose(1, 2)  # (B, T, NH, DQK)
    log_i, log_f = log_i.transpose(1, 2)[..., None], log_f.transpose(1, 2)[..., None]
    log_weight = _log_weight(log_i, log_f, reset)
    share = (log_i - log_weight).exp()
    mean_key, mean_keys = torch.zeros_like(k[:, 0]), []
    for t in range(k.shape[1]):  # after a reset the share is 1, which drops everything before
        mean_key = mean_key + share[:, t] * (k[:, t] - mean_key)
        mean_keys.append(mean_key)
    key_by_query = (torch.stack(mean_keys, 1) * q).sum(-1, keepdim=True) * q.shape[-1] ** -0.5
    log_normalizer = log_weight + key_by_query.abs().log()
    return Gates(log_i, log_f, output, log_weight, log_normalizer, has_floor=True)


def _log_weight(log_i: Tensor, log_f: Tensor, reset: Tensor | None) -> Tensor:
    """log N_t (B, T, NH, U), starting from the empty memory."""
    log_N, sums = torch.full_like(log_i[:, 0], -torch.inf), []
    for t in range(log_i.shape[1]):
        if reset is not None:
            log_N = log_N.masked_fill(reset[:, t, None, None], -torch.inf)
        log_N = torch.logaddexp(log_f[:, t] + log_N, log_i[:, t])
        sums.append(log_N)
    return torch.stack(sums, 1)
