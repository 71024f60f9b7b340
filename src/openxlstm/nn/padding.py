"""Sequences of different lengths in one padded batch, so that padding changes nothing.

B batch · T steps of the longest · D features; lengths (B,) int64, from 1 to T each
"""

from collections.abc import Callable

import torch
from torch import Tensor

from openxlstm.states import S, map_state, select, stack

Run = Callable[[Tensor, S | None, Tensor | None], tuple[Tensor, S]]
"""From x (B, T, D), a state and a reset (B, T) to y (B, T, D) and the state after the last step."""


def is_real(lengths: Tensor, T: int) -> Tensor:
    """Which steps are no padding (B, T)."""
    return torch.arange(T, device=lengths.device) < lengths[:, None]


def take(x: Tensor, steps: Tensor) -> Tensor:
    """Steps (B, S) of x (B, T, …), by index, of each sample its own."""
    index = steps.view(*steps.shape, *(1,) * (x.dim() - 2)).expand(*steps.shape, *x.shape[2:])
    return x.gather(1, index)


def reverse(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x (B, T, …) from its last step to the first; padding stays at the end, where it repeats."""
    if lengths is None:
        return x.flip(1)
    steps = lengths[:, None] - 1 - torch.arange(x.shape[1], device=x.device)
    return take(x, steps.clamp(min=0))


def reverse_reset(reset: Tensor, lengths: Tensor | None) -> Tensor:
    """Where the state is emptied if one reads from the end: before the last step of each part that
    `reset` (B, T) begins."""
    last = reset.shape[1] - 1
    steps = torch.arange(last + 1, device=reset.device)
    ends = reset[:, (steps + 1).clamp(max=last)] & (steps < last)
    return reverse(ends, lengths)


def run_padded(
    run: Run[S], x: Tensor, state: S | None, reset: Tensor | None, lengths: Tensor
) -> tuple[Tensor, S]:
    """y (B, T, D), 0 at padding, and the state of each sample after its own last step."""
    if state is None:
        return _run_right_aligned(run, x, reset, lengths)
    if torch.compiler.is_compiling():
        torch._dynamo.graph_break(
            "openxlstm reads samples that have lengths and a state in pieces, as many as there are "
            "lengths: in one graph give lengths without a state, or a state without lengths"
        )
    return _run_by_length(run, x, state, reset, lengths)


def _run_right_aligned(
    run: Run[S], x: Tensor, reset: Tensor | None, lengths: Tensor
) -> tuple[Tensor, S]:
    """In one go: samples are moved to the right, so that all of them end with step T, and the state
    that the padding before them left is emptied where they begin."""
    T = x.shape[1]
    steps, padding = torch.arange(T, device=x.device), T - lengths[:, None]
    from_left = (steps - padding).clamp(min=0)
    moved = take(x, from_left).masked_fill(~(steps >= padding)[..., None], 0.0)
    begins = steps == padding
    if reset is not None:
        begins = begins | (take(reset, from_left) & (steps >= padding))
    y, after = run(moved, None, begins)
    y = take(y, (steps + padding).clamp(max=T - 1))
    return y.masked_fill(~is_real(lengths, T)[..., None], 0.0), after


def _run_by_length(
    run: Run[S], x: Tensor, state: S, reset: Tensor | None, lengths: Tensor
) -> tuple[Tensor, S]:
    """With a state to start from, which padding before a sample would lose: the longest samples are
    read as far as the shortest of all goes, then without that one, and so on."""
    order = lengths.argsort(descending=True, stable=True)
    sizes = lengths[order]
    rows, state = order, select(state, order)
    pieces, finished, start = [], [], 0
    for end in sorted(set(sizes.tolist())):
        there = int((sizes >= end).sum())
        rows, state = rows[:there], _samples(state, 0, there)
        piece = x[rows, start:end]
        y, state = run(piece, state, None if reset is None else reset[rows, start:end])
        pieces.append(torch.cat([y, y.new_zeros(len(x) - there, *y.shape[1:])]))
        going_on = int((sizes > end).sum())
        finished.insert(0, _samples(state, going_on, there))
        start = end
    y = torch.cat(pieces, dim=1)
    y = torch.cat([y, y.new_zeros(len(x), x.shape[1] - start, y.shape[2])], dim=1)
    back = order.argsort()
    return y[back], select(stack(finished), back)


def _samples(state: S, start: int, end: int) -> S:
    """The state of neighbouring samples; a loop over them, as `select` has, can't be compiled."""
    return map_state(lambda part: part[start:end], state)
