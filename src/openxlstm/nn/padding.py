"""Padded batches of sequences with different lengths, in which the padding has no effect.

B batch · T steps of the longest · D features; lengths (B,) int64, from 1 to T each
"""

from collections.abc import Callable

import torch
from torch import Tensor

from openxlstm.states import S, map_state, select, stack

Run = Callable[[Tensor, S | None, Tensor | None], tuple[Tensor, S]]
"""x (B, T, D), a state and a reset (B, T) → y (B, T, D) and the state after the last step."""


def is_real(lengths: Tensor, T: int) -> Tensor:
    """True for steps that are not padding (B, T)."""
    return torch.arange(T, device=lengths.device) < lengths[:, None]


def take(x: Tensor, steps: Tensor) -> Tensor:
    """Gathers steps of x (B, T, …) by index (B, S), separately for each sample."""
    index = steps.view(*steps.shape, *(1,) * (x.dim() - 2)).expand(*steps.shape, *x.shape[2:])
    return x.gather(1, index)


def reverse(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverses x (B, T, …) in time; padding stays at the end, where it repeats the first step."""
    if lengths is None:
        return x.flip(1)
    steps = lengths[:, None] - 1 - torch.arange(x.shape[1], device=x.device)
    return take(x, steps.clamp(min=0))


def reverse_reset(reset: Tensor, lengths: Tensor | None) -> Tensor:
    """The resets for reading from the end: at the last step of each part that `reset` (B, T)
    separates."""
    last = reset.shape[1] - 1
    steps = torch.arange(last + 1, device=reset.device)
    ends = reset[:, (steps + 1).clamp(max=last)] & (steps < last)
    return reverse(ends, lengths)


def run_padded(
    run: Run[S], x: Tensor, state: S | None, reset: Tensor | None, lengths: Tensor
) -> tuple[Tensor, S]:
    """Calls `run` on a padded batch: y (B, T, D), 0 in the padding, and the state of each sample
    after its own last step."""
    if state is None:
        return _run_right_aligned(run, x, reset, lengths)
    if torch.compiler.is_compiling():
        torch._dynamo.graph_break(
            "with lengths and a state, openxlstm reads one piece per different length: "
            "in one graph give lengths without a state, or a state without lengths"
        )
    return _run_by_length(run, x, state, reset, lengths)


def _run_right_aligned(
    run: Run[S], x: Tensor, reset: Tensor | None, lengths: Tensor
) -> tuple[Tensor, S]:
    """Runs once: samples are right-aligned, so that all end at step T, and the state is reset where
    they begin, after the padding."""
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
    """Runs once per different length, for samples with an initial state, which padding before them
    would change: all samples up to the shortest length, then the longer ones, and so on."""
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
    """The state of a range of samples, by slices, which can be compiled."""
    return map_state(lambda part: part[start:end], state)
