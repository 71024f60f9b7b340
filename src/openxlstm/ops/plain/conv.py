"""Causal depthwise convolution in plain PyTorch, with a hand-written backward.

B batch · T time · D channels · K kernel size

A depthwise kernel of four steps is too little work for a general convolution: on a CPU, K shifted
multiply-adds over the whole sequence took a third of the time of `conv1d`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from openxlstm.ops.dispatch import without_autocast
from openxlstm.states import ConvState


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    state: ConvState | None = None,
    *,
    reset: Tensor | None = None,
    activation: str | None = None,
) -> tuple[Tensor, ConvState]:
    """`openxlstm.ops.causal_conv` for checked inputs."""
    y, state = _convolve(x, weight, bias, state, reset)
    return y if activation is None else F.silu(y), state


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: ConvState | None, reset: Tensor | None
) -> tuple[Tensor, ConvState]:
    if state is None:
        state = ConvState(x.new_zeros(x.shape[0], weight.shape[1] - 1, x.shape[2]))
    if x.shape[1] == 1 and reset is None and not torch.is_grad_enabled():
        inputs = torch.cat([state.x, x], dim=1)  # (B, K, D)
        y = (inputs * weight.T).sum(1, keepdim=True)
        return y if bias is None else y + bias, ConvState(inputs[:, 1:])
    y, last = _CausalConv.apply(x, weight, bias, state.x, reset)  # pyright: ignore
    return y, ConvState(last)


def traceable(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    state: ConvState | None = None,
    *,
    reset: Tensor | None = None,
    activation: str | None = None,
) -> tuple[Tensor, ConvState]:
    """`openxlstm.ops.causal_conv` in operations that every transform and exporter knows."""
    T, K = x.shape[1], weight.shape[1]
    before = x.new_zeros(x.shape[0], K - 1, x.shape[2]) if state is None else state.x
    inputs = torch.cat([before, x], dim=1)  # (B, K-1+T, D)
    taps = [inputs[:, j : j + T] for j in range(K)]
    last = inputs[:, T:].clone()  # a view would keep all of x alive
    if reset is not None:
        taps = [
            torch.where(seen, tap, 0.0) for seen, tap in zip(_seen(reset, K), taps, strict=True)
        ]
        last = torch.where(_unbroken_to_end(reset, K), last, 0.0)
    y = torch.stack([tap * weight[:, j] for j, tap in enumerate(taps)]).sum(0)
    y = y if bias is None else y + bias
    return y if activation is None else F.silu(y), ConvState(last)


def last_inputs(
    x: Tensor, kernel_size: int, before: ConvState | None, reset: Tensor | None
) -> ConvState:
    """The state after x (B, T, D): its last inputs, which later steps of a convolution need."""
    B, T, D = x.shape
    if kernel_size > T + 1:
        start = x.new_zeros(B, kernel_size - 1, D) if before is None else before.x
        x = torch.cat([start, x], dim=1)
    last = x[:, x.shape[1] - (kernel_size - 1) :].clone()  # a view would keep all of x alive
    return ConvState(
        last if reset is None else torch.where(_unbroken_to_end(reset, kernel_size), last, 0.0)
    )


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        before: Tensor,
        reset: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        T, K = x.shape[1], weight.shape[1]
        inputs = torch.cat([before, x], dim=1)  # (B, K-1+T, D)
        seen = None if reset is None else _seen(reset, K).to(x.dtype)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        y.copy_(bias) if bias is not None else y.zero_()
        for j in range(K):
            tap = inputs[:, j : j + T]
            y.addcmul_(tap if seen is None else torch.where(seen[j] > 0, tap, 0.0), weight[:, j])
        last = inputs[:, T:]
        if reset is not None:
            last = torch.where(_unbroken_to_end(reset, K), last, 0.0)
        ctx.save_for_backward(inputs, weight, seen, reset)
        ctx.set_materialize_grads(False)
        return y, last.clone()

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor | None, d_last: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        inputs, weight, seen, reset = ctx.saved_tensors
        K = weight.shape[1]
        T = inputs.shape[1] - K + 1
        d_inputs = torch.zeros_like(inputs)
        d_weight = torch.zeros_like(weight)
        d_bias = None
        if dy is not None:
            dy = dy.contiguous()
            d_bias = dy.sum((0, 1)) if ctx.needs_input_grad[2] else None
            for j in range(K):
                dy_j = dy if seen is None else dy * seen[j]
                d_inputs[:, j : j + T].addcmul_(dy_j, weight[:, j])
                d_weight[:, j] = torch.linalg.vecdot(inputs[:, j : j + T], dy_j, dim=1).sum(0)
        if d_last is not None:
            d_inputs[:, T:] += d_last if reset is None else d_last * _unbroken_to_end(reset, K)
        return d_inputs[:, K - 1 :], d_weight, d_bias, d_inputs[:, : K - 1], None


def _resets_so_far(reset: Tensor, K: int) -> Tensor:
    """Number of resets up to each of the K-1 inputs before the sequence and the T in it."""
    return F.pad(reset.cumsum(1), (K - 1, 0))  # (B, K-1+T)


def _seen(reset: Tensor, K: int) -> Tensor:
    """Whether no reset lies between a step and the input that tap j reads for it (K, B, T, 1)."""
    count, T = _resets_so_far(reset, K), reset.shape[1]
    at_taps = torch.stack([count[:, j : j + T] for j in range(K)])
    return (at_taps == count[:, K - 1 :])[..., None]


def _unbroken_to_end(reset: Tensor, K: int) -> Tensor:
    """Whether no reset lies between each of the last K-1 inputs and the end (B, K-1, 1)."""
    count = _resets_so_far(reset, K)[:, reset.shape[1] :]
    return (count == reset.sum(1)[:, None])[..., None]
