"""The sLSTM block (arXiv:2405.04517, figure 10), and the cell with the projections in front."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.check import (
    check_choice,
    check_floating,
    check_parts,
    check_tensor,
    state_dtype,
)
from openxlstm.ops.conv import causal_conv
from openxlstm.ops.dispatch import Backend, never, pick
from openxlstm.ops.feedforward import gated_feedforward
from openxlstm.ops.native import backend as native
from openxlstm.ops.native import slstm as native_slstm
from openxlstm.ops.native import slstm_block as native_slstm_block
from openxlstm.ops.norm import layer_norm
from openxlstm.ops.slstm import slstm
from openxlstm.ops.weights import FeedForwardWeights, SLSTMBlockWeights, SLSTMLayerWeights
from openxlstm.states import LayerState, MLSTMState, SLSTMState


def slstm_layer(
    convolved: Tensor,
    raw: Tensor,
    weights: SLSTMLayerWeights,
    state: SLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    forget_gate: str = "sigmoid",
    backend: str | None = None,
) -> tuple[Tensor, SLSTMState]:
    """`slstm` of W x + b (arXiv:2405.04517, figure 10).

    x is `convolved` for the input and forget gates, and `raw` for cell input and output gate.

    Args:
        convolved, raw: (B, T, D), D = NH·DH.
        state: the state before x; None is empty.
        reset: (B, T) bool; the state is emptied before a step where it is true.
        forget_gate: "sigmoid" or "exp".
        backend: the name of a backend in BACKENDS; None takes the first that can run this.

    Returns:
        h (B, T, NH, DH) and the state after the last step.

    Raises:
        ValueError: on shapes, dtypes or devices that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("raw", raw, "B, T, D")
    check_floating("weights.input_weight", weights.input_weight, "NH, 4, DH, DH")
    (B, T, D), (NH, _, DH, _) = raw.shape, weights.input_weight.shape
    if D != NH * DH:
        raise ValueError(f"raw must be (B, T, NH·DH) = (B, T, {NH * DH}), not {tuple(raw.shape)}")
    check_choice("forget_gate", forget_gate, "sigmoid", "exp")
    check_tensor("convolved", convolved, (B, T, D), raw)
    matrix = NH, 4, DH, DH
    check_parts(
        "weights", weights, raw, input_weight=matrix, recurrent_weight=matrix, bias=(NH, 4, DH)
    )
    _check_state("state", raw, state, (B, NH, DH))
    check_tensor("reset", reset, (B, T), raw, torch.bool)
    sizes = {"rows": B * T, "NH": NH, "DH": DH}
    run = pick("slstm_layer", BACKENDS, raw, sizes, backend)
    return run(convolved, raw, weights, state, reset=reset, forget_gate=forget_gate)


def slstm_block(
    x: Tensor,
    weights: SLSTMBlockWeights,
    state: LayerState | None = None,
    *,
    reset: Tensor | None = None,
    forget_gate: str = "sigmoid",
    eps: float = 1e-5,
    backend: str | None = None,
) -> tuple[Tensor, LayerState]:
    """An sLSTM block with its norms, residual connections and feed-forward
    (arXiv:2405.04517, figure 10).

    x + headnorm(sLSTM(norm(x))), and then the gated feed-forward of its norm added to that. The
    input and forget gates read SiLU(conv(norm(x))), if there is a convolution.

    Args:
        x: (B, T, D), D = NH·DH.
        state: the state before x, of the convolution and of the cell; None is empty.
        reset: (B, T) bool; the state is emptied before a step where it is true.
        forget_gate: "sigmoid" or "exp".
        eps: added to the variance by all norms.
        backend: the name of a backend in BACKENDS; None takes the first that can run this.

    Returns:
        y (B, T, D) and the state after x.

    Raises:
        ValueError: on shapes, dtypes or devices that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("x", x, "B, T, D")
    check_floating("weights.input_weight", weights.input_weight, "NH, 4, DH, DH")
    check_floating("weights.down", weights.down, "D, F")
    conv_state, cell_state = (None, None) if state is None else state
    (B, T, D), (NH, _, DH, _) = x.shape, weights.input_weight.shape
    inner, matrix = weights.down.shape[1], (NH, 4, DH, DH)
    if D != NH * DH:
        raise ValueError(f"x must be (B, T, NH·DH) = (B, T, {NH * DH}), not {tuple(x.shape)}")
    check_choice("forget_gate", forget_gate, "sigmoid", "exp")
    if weights.conv_weight is None and not (weights.conv_bias is None and conv_state is None):
        raise ValueError(
            "weights.conv_bias and state.conv need weights.conv_weight, which was not given"
        )
    if isinstance(cell_state, MLSTMState):
        raise ValueError("state.cell must be an SLSTMState, not MLSTMState")
    K = 0 if weights.conv_weight is None else weights.conv_weight.shape[-1]
    check_parts(
        "weights", weights, x,
        norm=(D,), conv_weight=(D, K), conv_bias=(D,), input_weight=matrix, recurrent_weight=matrix,
        bias=(NH, 4, DH), head_norm=(D,), ff_norm=(D,), up=(2 * inner, D), down=(D, inner),
        up_bias=(2 * inner,), down_bias=(D,),
    )  # fmt: skip
    check_parts("state.conv", conv_state, x, x=(B, K - 1, D))
    _check_state("state.cell", x, cell_state, (B, NH, DH))
    check_tensor("reset", reset, (B, T), x, torch.bool)
    sizes = {"rows": B * T, "B": B, "T": T, "D": D, "DH": DH, "F": inner, "K": K}
    run = pick("slstm_block", BACKENDS, x, sizes, backend)
    return run(x, weights, state, reset=reset, forget_gate=forget_gate, eps=eps)


def _check_state(
    name: str, x: Tensor, state: SLSTMState | None, shape: tuple[int, int, int]
) -> None:
    dtypes = (state_dtype(x.dtype),)
    check_parts(name, state, x, dtypes, h=shape, c=shape, n=shape, m=shape)


def _plain_layer(
    convolved: Tensor,
    raw: Tensor,
    weights: SLSTMLayerWeights,
    state: SLSTMState | None,
    *,
    reset: Tensor | None,
    forget_gate: str,
) -> tuple[Tensor, SLSTMState]:
    """`slstm_layer` in plain PyTorch, and `slstm` with the backend that it chooses."""
    if convolved is raw:
        gates = _project(raw, weights, slice(0, 4))
    else:
        i_and_f = _project(convolved, weights, slice(0, 2))
        z_and_o = _project(raw, weights, slice(2, 4))
        gates = torch.cat([i_and_f, z_and_o], dim=3)  # (B, T, NH, 4, DH)
    R = weights.recurrent_weight
    return slstm(gates, R, state=state, reset=reset, forget_gate=forget_gate)


def _project(x: Tensor, weights: SLSTMLayerWeights, gates: slice) -> Tensor:
    """Pre-activations of some gates (B, T, NH, gates, DH)."""
    B, T, _ = x.shape
    NH, _, DH, _ = weights.input_weight.shape
    weight = weights.input_weight[:, gates].flatten(1, 2)  # (NH, gates·DH, DH)
    bias = weights.bias[:, gates].reshape(NH, 1, -1)
    by_head = x.reshape(B * T, NH, DH).transpose(0, 1)
    preact = torch.baddbmm(bias, by_head, weight.mT)
    return preact.view(NH, B, T, -1, DH).permute(1, 2, 0, 3, 4)


def _unfused_block(
    x: Tensor,
    weights: SLSTMBlockWeights,
    state: LayerState | None,
    *,
    reset: Tensor | None,
    forget_gate: str,
    eps: float,
    backend: str | None = None,
) -> tuple[Tensor, LayerState]:
    """`slstm_block` as its ops, each of which chooses a backend, or takes `backend`."""
    conv_state, cell_state = (None, None) if state is None else state
    assert not isinstance(cell_state, MLSTMState)
    raw = convolved = layer_norm(x, weights.norm, eps=eps, backend=backend)
    if weights.conv_weight is not None:
        conv = weights.conv_weight, weights.conv_bias, conv_state
        convolved, conv_state = causal_conv(
            raw, *conv, reset=reset, activation="silu", backend=backend
        )
    layer = SLSTMLayerWeights(weights.input_weight, weights.recurrent_weight, weights.bias)
    options = {"reset": reset, "forget_gate": forget_gate, "backend": backend}
    h, cell_state = slstm_layer(convolved, raw, layer, cell_state, **options)
    x = x + layer_norm(h.flatten(-2), weights.head_norm, h.shape[2], eps=eps, backend=backend)
    ff = FeedForwardWeights(
        norm=weights.ff_norm, norm_bias=None, up=weights.up, value=None, down=weights.down,
        up_bias=weights.up_bias, down_bias=weights.down_bias,
    )  # fmt: skip
    y = gated_feedforward(x, ff, eps=eps, residual=True, backend=backend)
    return y, LayerState(conv_state, cell_state)


def _plain_block(
    x: Tensor, weights: SLSTMBlockWeights, state: LayerState | None, **options: Any
) -> tuple[Tensor, LayerState]:
    """`slstm_block` in plain PyTorch."""
    return _unfused_block(x, weights, state, **options, backend="torch")


BACKENDS = {
    "slstm_block": (
        Backend("native", native_slstm_block.refuses, native_slstm_block.slstm_block),
        Backend("unfused", never, _unfused_block),
        Backend("torch", never, _plain_block),
    ),
    "slstm_layer": (
        Backend("native", native.refuses_layer, native_slstm.slstm_layer),
        Backend("torch", never, _plain_layer),
    ),
}
