"""The memory of training, and of a loaded model, computed without allocating it.

For training, the model is built, and a batch runs forward, with torch's fake tensors, on the code
that this machine's CPU would run: native kernels if they are built, which keep less than plain
torch. The storages that autograd keeps for the backward pass are added up.
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
"""Bytes per number in float32, the dtype of parameters, gradients and moments."""
GB = 1e9


def summarize_unbuilt(config: ModelConfig) -> Summary:
    """`summarize` of a model of any size, without allocating its weights."""
    with without_memory():
        return summarize(LanguageModel(config))


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of one rank in training, in bytes. The total is an estimate: not everything exists at
    the same time, and waste of the allocator and temporary values of the backward pass are missing.
    Two models of 6 and 11 million parameters took 11 and 15% more on a CPU (a slow test of
    `tests/lm/test_memory.py`)."""

    weights: int
    gradients: int
    moments: int
    """AdamW's first and second moments."""
    average: int
    """The moving average of the weights, if it is kept."""
    gathered: int
    """Parameters that FSDP gathers: embedding, norm and head, the largest block, and the gradient
    of the larger of these two units."""
    activations: int
    """Tensors that the backward pass reads, the logits and their gradient."""

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
    """The memory of one of `world_size` ranks, by `ComputeConfig.strategy`.

    DDP has all weights, gradients and moments on every rank; gradients are views of its buckets.
    FSDP2 has a share of each: every block is a unit, and the rest of the model is another one,
    which stays gathered from forward to backward.
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
    """Memory of a model that is loaded for inference, in bytes; `str` describes it."""

    parameters: int
    weights: int
    dtype: torch.dtype
    """Dtype of the weights in memory."""
    is_mapped: bool
    """Whether the weights are mapped from their files, so that the system can evict them."""
    state: int
    """Bytes of one sequence's state."""

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
    """The memory of a model whose weights are stored in the dtypes `stored` and loaded as `dtype`;
    None is the widest of the stored ones."""
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
    """Bytes that a training step keeps from its forward pass for its backward pass.

    With `compute.recompute_blocks` these are the inputs of all blocks, and all tensors of one
    block. In bfloat16 they include autocast's copies of the weights.

    Args:
        batch_size: sequences that a rank computes at once.
        window: tokens per sequence.
    """
    # Storages that autograd keeps, per block; None is the key of those outside of blocks.
    kept: defaultdict[int | None, dict[int, int]] = defaultdict(dict)
    block_index: int | None = None
    alive: list[Tensor] = []  # the key of a freed storage could be used again

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
    """Refuses a training run that cannot fit into memory, before anything is allocated.

    Only the least is required: weights, gradients and moments, without activations.

    Args:
        available: bytes per rank, e.g. `device.memory_bytes()`; None if unknown.
        strategy, world_size, average: as for `training_memory`.

    Raises:
        UserError: if the run cannot fit.
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
