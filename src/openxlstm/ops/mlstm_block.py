"""The mLSTM block from the residual stream and back: what goes in, and who computes it."""

from typing import Any

import torch
from torch import Tensor

from openxlstm.ops.check import check_floating, check_tensors, state_dtype
from openxlstm.ops.dispatch import Backend, Request, choose, never
from openxlstm.ops.mlstm import mlstm
from openxlstm.ops.mlstm_input import check_weights, mlstm_input
from openxlstm.ops.mlstm_output import mlstm_output
from openxlstm.ops.native import mlstm_block as native_mlstm_block
from openxlstm.states import ConvState, MLSTMState


def mlstm_block(
    x: Tensor,
    up_weight: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    norm_weight: Tensor,
    skip: Tensor,
    down_weight: Tensor,
    down_bias: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    before: ConvState | None = None,
    state: MLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    biases: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    eps: float = 0.0,
    norm_eps: float = 1e-5,
    backend: str | None = None,
) -> tuple[Tensor, ConvState | None, MLSTMState]:
    """`mlstm_input`, `mlstm` and `mlstm_output` one after the other, where the arguments are
    described; the first and the last look at theirs once more.

    Args:
        before, state: where to start, of the convolution and of the cell; None is empty.
        eps, norm_eps: of the cell's denominator, and of the norm.
        backend: the name of one of BACKENDS; None takes the first that can run this.

    Returns:
        y (B, T, D), and both states after the last step.

    Raises:
        ValueError: on shapes or dtypes that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("x", x, "B, T, D")
    check_floating("q_weight", q_weight, "E/S, S, S")
    check_floating("gate_weight", gate_weight, "2, NH, 3·E")
    B, T, D = x.shape
    NH, E, side = gate_weight.shape[1], gate_weight.shape[2] // 3, q_weight.shape[-1]
    weights = up_weight, q_weight, k_weight, v_weight, gate_weight, gate_bias
    check_weights(x, E, weights, conv_weight, conv_bias, ("before.x", before), reset)
    K, DH = 0 if conv_weight is None else conv_weight.shape[-1], E // NH
    dtypes, states = (x.dtype,), (state_dtype(x.dtype),)
    C, n, m = (None, None, None) if state is None else state
    check_tensors(
        x,
        [
            ("norm_weight", norm_weight, (E,), dtypes),
            ("skip", skip, (E,), dtypes),
            ("down_weight", down_weight, (D, E), dtypes),
            ("down_bias", down_bias, (D,), dtypes),
            ("state.C", C, (B, NH, DH, DH), states),
            ("state.n", n, (B, NH, DH), states),
            ("state.m", m, (B, NH), states),
        ],
    )
    sizes = (
        ("rows", B * T), ("B", B), ("T", T), ("D", D), ("E", E), ("NH", NH), ("K", K),
        ("side", side), ("biases", int(biases is not None)), ("eps", int(eps != 0.0)),
    )  # fmt: skip
    request = Request(x.device.type, x.dtype, sizes, torch.is_grad_enabled())
    run = choose("mlstm_block", BACKENDS, request, backend)
    conv = conv_weight, conv_bias, before
    y, after, final = run(
        x, *weights, norm_weight, skip, down_weight, *conv, state,
        reset=reset, biases=biases, eps=eps, norm_eps=norm_eps,
    )  # fmt: skip
    return y if down_bias is None else y + down_bias, after, final


def apart(
    x: Tensor,
    up_weight: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    norm_weight: Tensor,
    skip: Tensor,
    down_weight: Tensor,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    before: ConvState | None = None,
    state: MLSTMState | None = None,
    *,
    reset: Tensor | None = None,
    biases: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    eps: float = 0.0,
    norm_eps: float = 1e-5,
    backend: str | None = None,
) -> tuple[Tensor, ConvState | None, MLSTMState]:
    """`mlstm_block` as the three ops that it consists of, each with a backend of its own."""
    weights = up_weight, q_weight, k_weight, v_weight, gate_weight, gate_bias
    conv = conv_weight, conv_bias, before
    inputs, after = mlstm_input(x, *weights, *conv, reset=reset, biases=biases, backend=backend)
    q, k, v, log_i, log_f, c, z = inputs
    h, final = mlstm(q, k, v, log_i, log_f, state, reset=reset, eps=eps, backend=backend)
    output = norm_weight, skip, down_weight
    return mlstm_output(h, c, z, *output, eps=norm_eps, backend=backend), after, final


def plain(*arguments: Any, **options: Any) -> tuple[Tensor, ConvState | None, MLSTMState]:
    """`mlstm_block` in plain PyTorch, for inputs that it has checked."""
    return apart(*arguments, **options, backend="torch")


BACKENDS = (
    Backend("native", native_mlstm_block.refuses, native_mlstm_block.mlstm_block),
    Backend("apart", never, apart),
    Backend("torch", never, plain),
)
