"""States of recurrent models as plain values: named tuples of tensors, batch first.

A state is an argument and a return value of a call; no module keeps one. `None` in place of a state
means empty. The first dimension of every tensor is the batch, so that samples of any state can be
selected, and states joined, without knowing their contents.

B batch · NH heads · DQK, DHV key and value width of a head · DH width of an sLSTM head · D channels
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

S = TypeVar("S")


def map_state(function: Callable[..., Tensor], state: S, *others: S) -> S:
    """Applies `function` to each tensor of `state`, with those of `others`; None stays None."""
    if state is None:
        return state
    if isinstance(state, Tensor):
        return function(state, *others)
    assert isinstance(state, tuple)
    parts: Any = [map_state(function, *parts) for parts in zip(state, *others, strict=True)]  # pyright: ignore[reportArgumentType]
    return state._make(parts) if hasattr(state, "_make") else type(state)(parts)  # pyright: ignore


def detach(state: S) -> S:
    """The same state, detached from the autograd graph, for truncated backpropagation."""
    return map_state(Tensor.detach, state)


def to(state: S, *args: Any, **kwargs: Any) -> S:
    """The same state on another device or in another dtype; takes the arguments of `Tensor.to`.

    A dtype changes floating-point tensors only."""

    def move(part: Tensor) -> Tensor:
        moved = part.to(*args, **kwargs)
        return moved if part.is_floating_point() else moved.to(part.dtype)

    return map_state(move, state)


def select(state: S, samples: Tensor | Sequence[int]) -> S:
    """The states of some samples, by index, in the given order; an index may repeat."""

    def pick(part: Tensor) -> Tensor:
        index = torch.as_tensor(samples, dtype=torch.long, device=part.device)
        return part.index_select(0, index)

    return map_state(pick, state)


def stack(states: Sequence[S]) -> S:
    """Joins the states of several batches into the state of one batch, in order."""
    return map_state(lambda *parts: torch.cat(parts), *states)


def tensors(state: Any) -> list[Tensor]:
    """All tensors of a state, in a fixed order."""
    if isinstance(state, Tensor):
        return [state]
    return [] if state is None else [tensor for part in state for tensor in tensors(part)]


def names(state: Any, name: str = "") -> list[str]:
    """The names of `tensors(state)`, by their path: `blocks.0.cell.h`."""
    if isinstance(state, Tensor):
        return [name]
    if state is None:
        return []
    keys = getattr(state, "_fields", range(len(state)))
    ways = [names(part, f"{name}.{key}".strip(".")) for key, part in zip(keys, state, strict=True)]
    return [way for part in ways for way in part]


def state_bytes(state: Any) -> int:
    """Size of the tensors of a state, in bytes."""
    return sum(part.numel() * part.element_size() for part in tensors(state))


class MLSTMState(NamedTuple):
    """State of an mLSTM cell. `m` is a gauge: the true memory is C·exp(m) and n·exp(m)."""

    C: Tensor
    """Matrix memory, key by value (B, NH, DQK, DHV)."""
    n: Tensor
    """Normalizer state (B, NH, DQK)."""
    m: Tensor
    """Stabilizer state (B, NH), the logarithm of the scale of C and n."""

    @classmethod
    def empty(cls, B: int, NH: int, DQK: int, DHV: int, **options: Any) -> "MLSTMState":
        """The empty state; the options are those of `torch.zeros`."""
        sizes = (B, NH, DQK, DHV), (B, NH, DQK), (B, NH)
        return cls(*(torch.zeros(size, **options) for size in sizes))

    detach = detach
    to = to
    select = select


class SLSTMState(NamedTuple):
    """State of an sLSTM cell, each part (B, NH, DH). Elements with n = 0 are empty."""

    h: Tensor
    """Hidden state, the input of the recurrent weights."""
    c: Tensor
    """Cell state."""
    n: Tensor
    """Normalizer state."""
    m: Tensor
    """Stabilizer state, the logarithm of the scale of c and n."""

    detach = detach
    to = to
    select = select


class ConvState(NamedTuple):
    """State of a causal convolution."""

    x: Tensor
    """The last K-1 inputs, oldest first (B, K-1, D)."""

    detach = detach
    to = to
    select = select


class LayerState(NamedTuple):
    """State of one block: its convolution (None where it has none) and its cell."""

    conv: ConvState | None
    cell: MLSTMState | SLSTMState

    detach = detach
    to = to
    select = select


class StackState(NamedTuple):
    """State of a stack: one LayerState per block, from the input up."""

    blocks: tuple[LayerState, ...]

    detach = detach
    to = to
    select = select


class XLSTMState(NamedTuple):
    """State of `openxlstm.XLSTM`."""

    forward: StackState
    """State of the stack that reads from the first step to the last."""
    reverse: StackState | None
    """State of the stack that reads from the last step to the first; None if unidirectional."""

    detach = detach
    to = to
    select = select


class ModelState(NamedTuple):
    """State of a language model."""

    stack: StackState
    position: Tensor
    """Tokens read since the state was empty (B,), int64."""

    detach = detach
    to = to
    select = select


KINDS = (ConvState, LayerState, MLSTMState, ModelState, SLSTMState, StackState, XLSTMState)
"""Every type of state. `load_state` and `torch.load` accept these."""

for _kind in KINDS:  # the names that `torch.export.save` writes
    _register_namedtuple(_kind, serialized_type_name=f"openxlstm.states.{_kind.__name__}")
torch.serialization.add_safe_globals(list(KINDS))  # for `torch.load(weights_only=True)`
