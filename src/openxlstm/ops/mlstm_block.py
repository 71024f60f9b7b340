"""The mLSTM block (arXiv:2405.04517, figure 11), and its two halves around the cell."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from openxlstm.ops.check import check_floating, check_parts, check_tensor, state_dtype
from openxlstm.ops.conv import causal_conv
from openxlstm.ops.dispatch import Backend, never, pick
from openxlstm.ops.mlstm import mlstm
from openxlstm.ops.native import mlstm_block as native
from openxlstm.ops.norm import layer_norm
from openxlstm.ops.plain.blockwise import blockwise
from openxlstm.ops.weights import MLSTMBlockWeights, MLSTMInputWeights, MLSTMOutputWeights
from openxlstm.states import ConvState, LayerState, MLSTMState, SLSTMState


class MLSTMInputs(NamedTuple):
    """Inputs of an mLSTM cell, and the two branches that join its output."""

    q: Tensor
    """Queries (B, NH, T, DH)."""
    k: Tensor
    """Keys (B, NH, T, DH)."""
    v: Tensor
    """Values (B, NH, T, DH)."""
    log_i: Tensor
    """Logarithm of the input gate (B, NH, T): ĩ."""
    log_f: Tensor
    """Logarithm of the forget gate (B, NH, T): log σ(f̃)."""
    c: Tensor
    """SiLU of the convolved branch (B, T, E), for the skip connection."""
    z: Tensor
    """The gate's branch (B, T, E)."""


def mlstm_input(
    x: Tensor,
    weights: MLSTMInputWeights,
    state: ConvState | None = None,
    *,
    reset: Tensor | None = None,
    backend: str | None = None,
) -> tuple[MLSTMInputs, ConvState | None]:
    """The half of an mLSTM block in front of its cell (arXiv:2405.04517, figure 11).

    [a; z] = up(x); c = SiLU(conv(a)), without a convolution SiLU(a). Query and key are
    block-diagonal maps of c, the value is one of a. The gates are one number per head and step,
    computed from query, key and value of all heads.

    Args:
        x: (B, T, D).
        state: the K-1 rows of a before x; None is zeros.
        reset: (B, T) bool; the convolution forgets all rows before a step where it is true.
        backend: the name of a backend in BACKENDS; None takes the first that can run this.

    Returns:
        the inputs of the cell and the branches that join its output, and the convolution's state
        after x (None without a convolution).

    Raises:
        ValueError: on shapes, dtypes or devices that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    sizes = _check_input(x, "weights", weights, "state", state, reset)
    run = pick("mlstm_input", BACKENDS, x, sizes, backend)
    inputs, after = run(x, weights, state, reset=reset)
    return MLSTMInputs(*inputs), after


def mlstm_output(
    h: Tensor,
    c: Tensor,
    z: Tensor,
    weights: MLSTMOutputWeights,
    *,
    eps: float = 1e-5,
    backend: str | None = None,
) -> Tensor:
    """The half of an mLSTM block behind its cell (arXiv:2405.04517, figure 11).

    down((norm(h) + skip ⊙ c) ⊙ SiLU(z)); the norm is a layer norm per head.

    Args:
        h: output of the cell (B, NH, T, DH).
        c, z: the branches that `mlstm_input` returns (B, T, E), E = NH·DH.
        eps: added to the variance by the norm.
        backend: the name of a backend in BACKENDS; None takes the first that can run this.

    Returns:
        y (B, T, D).

    Raises:
        ValueError: on shapes, dtypes or devices that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("h", h, "B, NH, T, DH")
    B, NH, T, DH = h.shape
    E = NH * DH
    check_tensor("c", c, (B, T, E), h)
    check_tensor("z", z, (B, T, E), h)
    D = _check_output("weights", h, E, weights)
    sizes = {"rows": B * T, "D": D, "E": E, "NH": NH}
    return pick("mlstm_output", BACKENDS, h, sizes, backend)(h, c, z, weights, eps=eps)


def mlstm_block(
    x: Tensor,
    weights: MLSTMBlockWeights,
    state: LayerState | None = None,
    *,
    reset: Tensor | None = None,
    eps: float = 0.0,
    norm_eps: float = 1e-5,
    backend: str | None = None,
) -> tuple[Tensor, LayerState]:
    """An mLSTM layer: `mlstm_input`, `mlstm` and `mlstm_output` one after the other.

    Args:
        x: (B, T, D).
        state: the state before x, of the convolution and of the cell; None is empty.
        reset: (B, T) bool; the state is emptied before a step where it is true.
        eps: added to the denominator of the cell; 0 is exact.
        norm_eps: added to the variance by the norm.
        backend: the name of a backend in BACKENDS; None takes the first that can run this.

    Returns:
        y (B, T, D) and the state after x.

    Raises:
        ValueError: on shapes, dtypes or devices that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    conv_state, cell_state = (None, None) if state is None else state
    sizes = _check_input(x, "weights.input", weights.input, "state.conv", conv_state, reset)
    B, E, NH = sizes["B"], sizes["E"], sizes["NH"]
    _check_output("weights.output", x, E, weights.output)
    if weights.output.down.shape[0] != sizes["D"]:
        raise ValueError(f"weights.output.down must have D = {sizes['D']} rows, as x has columns")
    DH, states = E // NH, (state_dtype(x.dtype),)
    if cell_state is not None and not isinstance(cell_state, MLSTMState):
        raise ValueError(f"state.cell must be an MLSTMState, not {type(cell_state).__name__}")
    check_parts(
        "state.cell", cell_state, x, states, C=(B, NH, DH, DH), n=(B, NH, DH), m=(B, NH)
    )  # fmt: skip
    sizes["has_eps"] = int(eps != 0.0)
    run = pick("mlstm_block", BACKENDS, x, sizes, backend)
    return run(x, weights, state, reset=reset, eps=eps, norm_eps=norm_eps)


def _check_input(
    x: Tensor,
    name: str,
    weights: MLSTMInputWeights,
    state_name: str,
    state: ConvState | None,
    reset: Tensor | None,
) -> dict[str, int]:
    """Checks what `mlstm_input` is given, and returns the sizes."""
    check_floating("x", x, "B, T, D")
    check_floating(f"{name}.up", weights.up, "2·E, D")
    check_floating(f"{name}.q", weights.q, "E/S, S, S")
    check_floating(f"{name}.gate", weights.gate, "2, NH, 3·E")
    B, T, D = x.shape
    E, NH, side = weights.up.shape[0] // 2, weights.gate.shape[1], weights.q.shape[-1]
    if (weights.conv_weight is None) != (weights.conv_bias is None):
        raise ValueError(f"{name}.conv_weight and {name}.conv_bias must be given both or neither")
    if weights.conv_weight is None and state is not None:
        raise ValueError(f"{state_name} needs {name}.conv_weight, which was not given")
    if E % side:
        raise ValueError(f"the inner width {E} is not a multiple of the blocks' side {side}")
    if E % NH:
        raise ValueError(f"the inner width {E} is not a multiple of NH = {NH}")
    K = 0 if weights.conv_weight is None else weights.conv_weight.shape[-1]
    block = E // side, side, side
    check_parts(
        name, weights, x,
        up=(2 * E, D), q=block, k=block, v=block, gate=(2, NH, 3 * E), gate_bias=(2, NH),
        conv_weight=(E, K), conv_bias=(E,), up_bias=(2 * E,), q_bias=(E,), k_bias=(E,), v_bias=(E,),
    )  # fmt: skip
    check_parts(state_name, state, x, x=(B, K - 1, E))
    check_tensor("reset", reset, (B, T), x, torch.bool)
    biases = weights.up_bias, weights.q_bias, weights.k_bias, weights.v_bias
    has_biases = int(any(bias is not None for bias in biases))
    return {
        "rows": B * T, "B": B, "T": T, "D": D, "E": E, "NH": NH, "K": K, "side": side,
        "has_biases": has_biases,
    }  # fmt: skip


def _check_output(name: str, like: Tensor, E: int, weights: MLSTMOutputWeights) -> int:
    """Checks the weights behind a cell of inner width E, and returns D."""
    check_floating(f"{name}.down", weights.down, "D, E")
    D = weights.down.shape[0]
    check_parts(name, weights, like, norm=(E,), skip=(E,), down=(D, E), down_bias=(D,))
    return D


def _plain_input(
    x: Tensor, weights: MLSTMInputWeights, state: ConvState | None, *, reset: Tensor | None
) -> tuple[tuple[Tensor, ...], ConvState | None]:
    """`mlstm_input` in plain PyTorch."""
    a, z = F.linear(x, weights.up, weights.up_bias).chunk(2, dim=-1)
    c, after = F.silu(a), None
    if weights.conv_weight is not None:
        conv = weights.conv_weight, weights.conv_bias, state
        c, after = causal_conv(a, *conv, reset=reset, activation="silu")
    maps = (
        (c, weights.q, weights.q_bias),
        (c, weights.k, weights.k_bias),
        (a, weights.v, weights.v_bias),
    )
    q, k, v = (add(blockwise(branch, weight), bias) for branch, weight, bias in maps)  # (B, T, E)

    # The gates of [q; k; v], without concatenating them.
    w_q, w_k, w_v = weights.gate.flatten(0, 1).chunk(3, dim=-1)  # (2·NH, E)
    preact = F.linear(q, w_q, weights.gate_bias.flatten()) + F.linear(k, w_k) + F.linear(v, w_v)
    i_preact, f_preact = preact.mT.chunk(2, dim=1)  # each (B, NH, T)
    NH = weights.gate.shape[1]
    q, k, v = (y.unflatten(-1, (NH, -1)).transpose(1, 2) for y in (q, k, v))
    return (q, k, v, i_preact, F.logsigmoid(f_preact), c, z), after


def _plain_output(
    h: Tensor, c: Tensor, z: Tensor, weights: MLSTMOutputWeights, *, eps: float
) -> Tensor:
    """`mlstm_output` in plain PyTorch."""
    h = layer_norm(h.transpose(1, 2).flatten(2), weights.norm, h.shape[1], eps=eps)  # (B, T, E)
    return add(F.linear((h + weights.skip * c) * F.silu(z), weights.down), weights.down_bias)


def add(y: Tensor, bias: Tensor | None) -> Tensor:
    """y + bias, y itself without one."""
    return y if bias is None else y + bias


def _unfused_block(
    x: Tensor,
    weights: MLSTMBlockWeights,
    state: LayerState | None,
    *,
    reset: Tensor | None,
    eps: float,
    norm_eps: float,
    backend: str | None = None,
) -> tuple[Tensor, LayerState]:
    """`mlstm_block` as its three ops, each of which chooses a backend, or takes `backend`."""
    conv_state, cell_state = (None, None) if state is None else state
    inputs, conv_state = mlstm_input(x, weights.input, conv_state, reset=reset, backend=backend)
    q, k, v, log_i, log_f, c, z = inputs
    assert not isinstance(cell_state, SLSTMState)
    h, cell_state = mlstm(q, k, v, log_i, log_f, cell_state, reset=reset, eps=eps, backend=backend)
    y = mlstm_output(h, c, z, weights.output, eps=norm_eps, backend=backend)
    return y, LayerState(conv_state, cell_state)


def _plain_block(
    x: Tensor, weights: MLSTMBlockWeights, state: LayerState | None, **options: Any
) -> tuple[Tensor, LayerState]:
    """`mlstm_block` in plain PyTorch."""
    return _unfused_block(x, weights, state, **options, backend="torch")


BACKENDS = {
    "mlstm_block": (
        Backend("native", native.refuses_block, native.mlstm_block),
        Backend("unfused", never, _unfused_block),
        Backend("torch", never, _plain_block),
    ),
    "mlstm_input": (
        Backend("native", native.refuses_input, native.mlstm_input),
        Backend("torch", never, _plain_input),
    ),
    "mlstm_output": (
        Backend("native", native.refuses_output, native.mlstm_output),
        Backend("torch", never, _plain_output),
    ),
}
