"""The memory of a recurrent model as plain values: named tuples of tensors, batch first.

State goes into a call as an argument and comes out as a return value; nothing keeps it on a module.
`None` in place of a state means empty. Every tensor has the batch as its first dimension, so that
picking samples from a state, or joining the states of several requests, never asks what is inside.

B batch · NH heads · DQK, DHV key and value width of a head · DH width of an sLSTM head · D channels
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

S = TypeVar("S")


def map_state(function: Callable[..., Tensor], state: S, *others: S) -> S:
    """Applies `function` to each tensor of `state` (and of `others`, in step); None stays None."""
    if state is None:
        return state
    if isinstance(state, Tensor):
        return function(state, *others)
    assert isinstance(state, tuple)
    parts: Any = [map_state(function, *parts) for parts in zip(state, *others, strict=True)]  # pyright: ignore[reportArgumentType]
    return state._make(parts) if hasattr(state, "_make") else type(state)(parts)  # pyright: ignore


def detach(state: S) -> S:
    """The same state, cut from the autograd graph: where truncated backpropagation stops."""
    return map_state(Tensor.detach, state)


def to(state: S, *args: Any, **kwargs: Any) -> S:
    """The same state on another device or in another dtype; the arguments are `Tensor.to`'s.

    A dtype reaches floating-point parts only."""

    def move(part: Tensor) -> Tensor:
        moved = part.to(*args, **kwargs)
        return moved if part.is_floating_point() else moved.to(part.dtype)

    return map_state(move, state)


def select(state: S, samples: Tensor | Sequence[int]) -> S:
    """The state of some samples, by index, in the order given; an index may repeat."""

    def pick(part: Tensor) -> Tensor:
        index = torch.as_tensor(samples, dtype=torch.long, device=part.device)
        return part.index_select(0, index)

    return map_state(pick, state)


def stack(states: Sequence[S]) -> S:
    """One state of a batch made of the states of smaller batches, in order."""
    return map_state(lambda *parts: torch.cat(parts), *states)


def tensors(state: Any) -> list[Tensor]:
    """All tensors of a state, in a fixed order."""
    if isinstance(state, Tensor):
        return [state]
    return [] if state is None else [tensor for part in state for tensor in tensors(part)]


def names(state: Any, name: str = "") -> list[str]:
    """A name for each of `tensors(state)`: the way to it, as in `blocks.0.cell.h`."""
    if isinstance(state, Tensor):
        return [name]
    if state is None:
        return []
    keys = getattr(state, "_fields", range(len(state)))
    ways = [names(part, f"{name}.{key}".strip(".")) for key, part in zip(keys, state, strict=True)]
    return [way for part in ways for way in part]


def state_bytes(state: Any) -> int:
    """Bytes of memory that a state's tensors take."""
    return sum(part.numel() * part.element_size() for part in tensors(state))


class MLSTMState(NamedTuple):
    """State of an mLSTM cell. `m` is a gauge: the memory's content is C·exp(m) and n·exp(m)."""

    C: Tensor
    """Matrix memory, key by value (B, NH, DQK, DHV)."""
    n: Tensor
    """Normalizer state (B, NH, DQK)."""
    m: Tensor
    """Stabilizer state (B, NH), the logarithm of the scale of C and n."""

    @classmethod
    def empty(cls, B: int, NH: int, DQK: int, DHV: int, **options: Any) -> "MLSTMState":
        """Of a memory that holds nothing; the options are those of `torch.zeros`."""
        sizes = (B, NH, DQK, DHV), (B, NH, DQK), (B, NH)
        return cls(*(torch.zeros(size, **options) for size in sizes))

    detach = detach
    to = to
    select = select


class SLSTMState(NamedTuple):
    """State of an sLSTM cell, each (B, NH, DH). Where n is 0 the memory is empty."""

    h: Tensor
    """Hidden state, which the recurrent weights read."""
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
    """The inputs that a causal convolution still needs."""

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
    """State of a stack: one LayerState a block, from the input up."""

    blocks: tuple[LayerState, ...]

    detach = detach
    to = to
    select = select


class XLSTMState(NamedTuple):
    """State of `openxlstm.XLSTM`."""

    forward: StackState
    """Of the stack that reads from the first step on."""
    reverse: StackState | None
    """Of the one that reads from the last step back, None where there is none."""

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
"""Every kind of state: what a file may hold, ours or torch's."""

for _kind in KINDS:  # by these names `torch.export.save` writes them
    _register_namedtuple(_kind, serialized_type_name=f"openxlstm.states.{_kind.__name__}")
torch.serialization.add_safe_globals(list(KINDS))  # `torch.load` makes them: they run no code
