"""From the residual stream to what an mLSTM cell reads: what goes in, and who computes it."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from openxlstm.ops.check import check_floating, check_tensors
from openxlstm.ops.conv import causal_conv
from openxlstm.ops.dispatch import Backend, Request, choose, never
from openxlstm.ops.native import mlstm_input as native_mlstm_input
from openxlstm.ops.plain.blockwise import blockwise
from openxlstm.states import ConvState


class MLSTMInputs(NamedTuple):
    """What the cell reads, and what is joined with its output afterwards."""

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
    """SiLU of the convolved branch (B, T, E), for the skip."""
    z: Tensor
    """The gate's branch (B, T, E)."""


def mlstm_input(
    x: Tensor,
    up_weight: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    state: ConvState | None = None,
    *,
    reset: Tensor | None = None,
    biases: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    backend: str | None = None,
) -> tuple[MLSTMInputs, ConvState | None]:
    """What an mLSTM block does in front of its cell (arXiv:2405.04517, figure 11).

    [a; z] = up(x); c = SiLU(conv(a)); query and key are block-diagonal maps of c, the value is one
    of a; each head's gates are one number a step, read from query, key and value of all heads.

    Args:
        x: (B, T, D).
        up_weight: (2·E, D).
        q_weight, k_weight, v_weight: (E/S, S, S), S the side of a block, [block, out, in].
        gate_weight: (2, NH, 3·E), gates in the order i, f; columns in the order q, k, v.
        gate_bias: (2, NH).
        conv_weight, conv_bias: (E, K) and (E,), both or neither; without them c is SiLU(a).
        state: the K-1 rows of a before x; None is zeros.
        reset: (B, T) bool; rows before a step where it is true are forgotten there.
        biases: of up (2·E,), q, k and v (E,) each; None for none.
        backend: the name of one of BACKENDS; None takes the first that can run this.

    Returns:
        what the cell reads and what joins its output, and the convolution's state (None without
        one).

    Raises:
        ValueError: on shapes or dtypes that do not fit together.
        BackendError: if the backend asked for cannot run this.
    """
    check_floating("x", x, "B, T, D")
    check_floating("up_weight", up_weight, "2·E, D")
    check_floating("q_weight", q_weight, "E/S, S, S")
    check_floating("gate_weight", gate_weight, "2, NH, 3·E")
    B, T, D = x.shape
    E, NH, side = up_weight.shape[0] // 2, gate_weight.shape[1], q_weight.shape[-1]
    weights = up_weight, q_weight, k_weight, v_weight, gate_weight, gate_bias
    check_weights(x, E, weights, conv_weight, conv_bias, ("state.x", state), reset)
    K = 0 if conv_weight is None else conv_weight.shape[-1]
    dtypes = (x.dtype,)
    if biases is not None:
        check_tensors(
            x,
            [
                (f"biases[{place}]", bias, (size,), dtypes)
                for place, (bias, size) in enumerate(zip(biases, (2 * E, E, E, E), strict=True))
            ],
        )
    sizes = (
        ("rows", B * T), ("D", D), ("E", E), ("NH", NH), ("K", K), ("side", side),
        ("biases", int(biases is not None)),
    )  # fmt: skip
    request = Request(x.device.type, x.dtype, sizes, torch.is_grad_enabled())
    run = choose("mlstm_input", BACKENDS, request, backend)
    inputs, state = run(x, *weights, conv_weight, conv_bias, state, reset=reset, biases=biases)
    return MLSTMInputs(*inputs), state


def check_weights(
    x: Tensor,
    E: int,
    weights: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    before: tuple[str, ConvState | None],
    reset: Tensor | None,
) -> None:
    """Raises a ValueError if what stands between x (B, T, D) and a cell of inner width E does not
    fit: weights of up, q, k, v and gates and the gates' bias, the convolution's, its state before,
    with the name that the caller has for it, and the reset."""
    up_weight, q_weight, k_weight, v_weight, gate_weight, gate_bias = weights
    (B, T, D), (name, state) = x.shape, before
    NH, side = gate_weight.shape[1], q_weight.shape[-1]
    if (conv_weight is None) != (conv_bias is None):
        raise ValueError("conv_weight and conv_bias must be given both or neither")
    if E % side:
        raise ValueError(f"the inner width {E} is not a multiple of the blocks' side {side}")
    if E % NH:
        raise ValueError(f"the inner width {E} is not a multiple of NH = {NH}")
    K = 0 if conv_weight is None else conv_weight.shape[-1]
    dtypes, block = (x.dtype,), (E // side, side, side)
    check_tensors(
        x,
        [
            ("up_weight", up_weight, (2 * E, D), dtypes),
            ("q_weight", q_weight, block, dtypes),
            ("k_weight", k_weight, block, dtypes),
            ("v_weight", v_weight, block, dtypes),
            ("gate_weight", gate_weight, (2, NH, 3 * E), dtypes),
            ("gate_bias", gate_bias, (2, NH), dtypes),
            ("conv_weight", conv_weight, (E, K), dtypes),
            ("conv_bias", conv_bias, (E,), dtypes),
            (name, None if state is None else state.x, (B, K - 1, E), dtypes),
            ("reset", reset, (B, T), (torch.bool,)),
        ],
    )


def plain(
    x: Tensor,
    up_weight: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    state: ConvState | None = None,
    *,
    reset: Tensor | None = None,
    biases: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> tuple[tuple[Tensor, ...], ConvState | None]:
    """`mlstm_input` in plain PyTorch, for inputs that it has checked."""
    up_bias = None if biases is None else biases[0]
    a, z = F.linear(x, up_weight, up_bias).chunk(2, dim=-1)
    if conv_weight is None:
        c, state_after = F.silu(a), None
    else:
        c, state_after = causal_conv(
            a, conv_weight, conv_bias, state, reset=reset, activation="silu"
        )
    branches = ((c, q_weight), (c, k_weight), (a, v_weight))
    q, k, v = (blockwise(branch, weight) for branch, weight in branches)  # (B, T, E)
    if biases is not None:
        q, k, v = (y + bias for y, bias in zip((q, k, v), biases[1:], strict=True))

    # From [q; k; v], without joining them.
    w_q, w_k, w_v = gate_weight.flatten(0, 1).chunk(3, dim=-1)  # (2·NH, E)
    preact = F.linear(q, w_q, gate_bias.flatten()) + F.linear(k, w_k) + F.linear(v, w_v)
    i_preact, f_preact = preact.mT.chunk(2, dim=1)  # each (B, NH, T)
    NH = gate_weight.shape[1]
    q, k, v = (y.unflatten(-1, (NH, -1)).transpose(1, 2) for y in (q, k, v))
    return (q, k, v, i_preact, F.logsigmoid(f_preact), c, z), state_after


BACKENDS = (
    Backend("native", native_mlstm_input.refuses, native_mlstm_input.mlstm_input),
    Backend("torch", never, plain),
)
