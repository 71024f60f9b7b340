"""The processes that train one model together, as torchrun starts them.

All that differs between one process and many is here and in processes.py: how they meet, and how a
model is spread.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from openxlstm.device import get_device
from openxlstm.errors import UserError
from openxlstm.lm.model import LanguageModel
from openxlstm.train.processes import Processes

BUCKET_MB = 25
"""Megabytes of gradients that DDP shares at once, while the backward goes on: torch's default, but
for the first of them, which torch keeps at 1. All of a small model's gradients then go at once."""


@contextlib.contextmanager
def processes(device: str | None = None) -> Iterator[Processes]:
    """The processes that torchrun started, or one alone where it did not; for a `with` block.

    They talk by gloo on CPUs, and by NCCL between GPUs, each of which serves one process.

    Args:
        device: name of the device; "cuda" is the GPU of this process's own number.

    Raises:
        UserError: if there is no such device, or the others cannot be reached.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes(device=get_device(device))
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        device = f"cuda:{local_rank}"
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    here = get_device(device)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    else:
        _stay_on_own_cores(local_rank, local_size)
    try:
        store, rank, world_size = next(rendezvous("env://"))
        # torchrun's store outlives its workers. Those that it starts again would find the addresses
        # of the dead in it.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo",
            store=dist.PrefixStore(f"attempt {attempt}", store),  # pyright: ignore[reportPrivateImportUsage]
            rank=rank,
            world_size=world_size,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the {world_size} processes of this job cannot reach each other ({error!s:.200}): "
            "start them with torchrun"
        ) from None
    try:
        yield Processes(
            rank=rank,
            world_size=world_size,
            device=here,
            mesh=init_device_mesh(here.type, (world_size,)),
        )
    except RuntimeError as error:
        if _is_lost(error):
            raise UserError(
                f"process {rank} of {world_size} lost another one of its job, which has "
                "ended or cannot be reached: see above for why. Checkpoints are whole; go on with "
                "--resume, with any number of processes"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def _stay_on_own_cores(local_rank: int, local_size: int) -> None:
    """Deals out the machine's cores to its processes, where the system can: a process whose threads
    wander loses its caches each time that it has waited for the others."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // local_size
    if share:
        os.sched_setaffinity(0, cores[local_rank * share : (local_rank + 1) * share])


def _is_lost(error: RuntimeError) -> bool:
    """Whether the connection to another process failed."""
    words = str(error).lower()
    signs = ("connection closed", "connection reset", "broken pipe", "timed out", "nccl")
    return isinstance(error, dist.DistError) or any(sign in words for sign in signs)


def spread(
    model: LanguageModel, strategy: str, processes: Processes, *also: LanguageModel
) -> nn.Module:
    """What to call in training in place of `model`: the gradients come out as their mean.

    Args:
        model: the whole model, the same in every process. With "fsdp", it and those `also` given
            (an average) are turned, in place, into shards.
        strategy: "ddp" or "fsdp".
        processes: those that share the work.
    """
    if processes.mesh is None:
        return model
    if strategy == "ddp":
        ids = None if processes.device.type == "cpu" else [processes.device]
        return DistributedDataParallel(
            model, device_ids=ids, gradient_as_bucket_view=True, bucket_cap_mb=BUCKET_MB
        )
    # A block's results hold views (the convolution's last inputs), which nobody writes to.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for whole in (model, *also):
        for block in whole.stack.blocks:
            fully_shard(block, mesh=processes.mesh)
        # What is outside of blocks stays put together between forward and backward. An average has
        # no backward, and would be met in pieces and whole parameters after an evaluation.
        fully_shard(
            whole, mesh=processes.mesh, reshard_after_forward=None if whole is model else True
        )
    return model


def sharing(module: nn.Module, *, now: bool) -> AbstractContextManager[None]:
    """For the forward and backward of a part of a batch. Gradients add up over the parts, and are
    shared among the processes `now`, which is with the last part."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(now)
    elif isinstance(module, DistributedDataParallel) and not now:
        return cast("AbstractContextManager[None]", module.no_sync())
    return contextlib.nullcontext()


def clip_gradient(parameters: Sequence[Tensor], largest: float) -> float:
    """Scales the whole gradient down to a norm, and returns the norm that it had."""
    norm = nn.utils.clip_grad_norm_(parameters, largest)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
