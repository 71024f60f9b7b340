"""How much memory training takes, counted on tensors that have shapes and no memory.

The model is built, and a training batch runs forward, with torch's fake tensors, on the code that
runs on this machine's CPU: native kernels where they are built, which keep less than plain torch.
What autograd keeps for the backward pass is then not estimated but added up, storage by storage.
"""

import os
from collections import defaultdict
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from openxlstm.config import ComputeConfig, ModelConfig
from openxlstm.errors import UserError
from openxlstm.lm.model import LanguageModel
from openxlstm.lm.summary import Summary, summarize
from openxlstm.nn.init import without_memory

FLOAT = 4
"""Bytes of a number in float32, in which parameters, gradients and moments are kept."""
GB = 1e9


def summarize_unbuilt(config: ModelConfig) -> Summary:
    """`summarize` of a model of any size, exactly and at once: no weight is allocated."""
    with without_memory():
        return summarize(LanguageModel(config))


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank in training. The sum is an estimate: not all is there at once, and what an
    allocator wastes and a backward pass needs for a moment is not counted. Two models of 6 and 11
    million parameters took 11 and 15% more on a CPU (a slow test of `tests/lm/test_memory.py`)."""

    weights: int
    gradients: int
    moments: int
    """AdamW's means of gradients and of their squares."""
    average: int
    """The moving average of the weights, if there is one."""
    gathered: int
    """What FSDP makes whole for a while: the embedding, norm and head, the largest block, and the
    gradient of the larger of the two."""
    activations: int
    """What the backward pass reads, the logits and their gradient."""

    @property
    def total(self) -> int:
        return (
            self.weights
            + self.gradients
            + self.moments
            + self.average
            + self.gathered
            + self.activations
        )


def training_memory(
    summary: Summary, activations: int, *, strategy: str, world_size: int, average: bool
) -> Memory:
    """The memory of one rank of `world_size`, by `ComputeConfig.strategy`.

    DDP has all of weights, gradients and moments on every rank, its gradients being views of the
    buckets it sends. FSDP2 has a share of each, with every block as a unit, and the rest of the
    model as another that stays whole from forward to backward.
    """
    weights = FLOAT * summary.num_parameters
    gathered = 0
    if strategy == "fsdp":
        block = FLOAT * max(n for name, n in summary.parts.items() if name.startswith("block "))
        rest = FLOAT * sum(n for name, n in summary.parts.items() if not name.startswith("block "))
        weights, gathered = -(-weights // world_size), rest + block + max(rest, block)
    return Memory(
        weights=weights,
        gradients=weights,
        moments=2 * weights,
        average=weights if average else 0,
        gathered=gathered,
        activations=activations,
    )


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Bytes of a model that is loaded to run; `str` says it in words."""

    parameters: int
    weights: int
    dtype: torch.dtype
    """Of the weights in memory."""
    is_mapped: bool
    """Whether the weights' memory is the system's copy of their files, which it may let go of."""
    state: int
    """Of one sequence."""

    @property
    def total(self) -> int:
        return self.weights + self.state

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        how = ", mapped from its files" if self.is_mapped else ""
        return (
            f"{self.weights / GB:.2f} GB for {self.parameters:,} weights in {kind}{how}, and "
            f"{self.state / 1e6:.1f} MB for the state of a sequence"
        )


def loaded_memory(
    config: ModelConfig, stored: set[torch.dtype], dtype: torch.dtype | None
) -> Loaded:
    """What a model takes whose weights are stored in some dtypes and loaded in one of them or in
    another; None is the widest that is stored."""
    kind = dtype or reduce(torch.promote_types, stored)
    summary = summarize_unbuilt(config)
    return Loaded(
        parameters=summary.num_parameters,
        weights=summary.num_parameters * kind.itemsize,
        dtype=kind,
        is_mapped=stored == {kind} and os.name != "nt",
        state=summary.state_bytes,
    )


def activation_bytes(
    config: ModelConfig, batch_size: int, window: int, compute: ComputeConfig
) -> int:
    """Bytes that a training step keeps from its forward for its backward pass.

    With `compute.recompute_blocks` that is the input of each block, and all of the one block whose
    turn it is. In bfloat16 it includes the copies that autocast makes of the weights.

    Args:
        batch_size: sequences that a rank computes at once.
        window: tokens of a sequence.
    """
    # Storages that autograd keeps: of each block, and of what is around them.
    kept: defaultdict[int | None, dict[int, int]] = defaultdict(dict)
    block_index: int | None = None
    alive: list[Tensor] = []  # a storage that was freed would lend its key to another

    def key(x: Tensor) -> int:
        return x.untyped_storage()._cdata

    def keep(x: Tensor) -> Tensor:
        if key(x) not in own:
            kept[block_index][key(x)] = x.untyped_storage().nbytes()
            alive.append(x)
        return x

    def enter(index: int | None) -> Any:
        def hook(*_: Any) -> None:
            nonlocal block_index
            block_index = index

        return hook

    with FakeTensorMode():
        model = LanguageModel(config)
        own = {key(parameter) for parameter in model.parameters()}
        for index, block in enumerate(model.stack.blocks):
            block.register_forward_pre_hook(enter(index))
            block.register_forward_hook(enter(None))
        ids = torch.zeros(batch_size, window, dtype=torch.long)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=compute.precision == "bfloat16")
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            with autocast:
                logits, _ = model(ids)
            F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten())
        outside = kept.pop(None, {})
        if compute.recompute_blocks:
            inputs = len(config.layers) * batch_size * window * config.embedding_dim * FLOAT
            blocks = inputs + max(sum(storages.values()) for storages in kept.values())
        else:
            inside: dict[int, int] = {}
            for storages in kept.values():
                inside |= storages
            blocks = sum(bytes for key, bytes in inside.items() if key not in outside)
        of_logits = 0 if key(logits) in outside else logits.untyped_storage().nbytes()
        return sum(outside.values()) + blocks + of_logits + FLOAT * logits.numel()


def check_memory(
    config: ModelConfig,
    available: int | None,
    *,
    strategy: str = "ddp",
    world_size: int = 1,
    average: bool = False,
) -> None:
    """Says no to a training run that cannot fit, before anything is allocated.

    What is asked for is the least: weights, gradients and moments, without activations.

    Args:
        available: bytes that a rank may take, e.g. `device.memory_bytes()`; None where nobody
            knows.
        strategy, world_size, average: as for `training_memory`.

    Raises:
        UserError: if it cannot fit.
    """
    summary = summarize_unbuilt(config)
    memory = training_memory(summary, 0, strategy=strategy, world_size=world_size, average=average)
    needed = memory.total - memory.gathered
    if available is not None and needed > available:
        raise UserError(
            f"training a model of {summary.num_parameters:,} parameters needs at least "
            f"{needed / GB:.1f} GB for weights, gradients and moments, and there are "
            f"{available / GB:.1f} GB here: choose a smaller model, or ask `openxlstm plan` what "
            "more machines would take"
        )
