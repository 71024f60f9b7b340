"""Distributed training in the processes that torchrun starts: process groups, DDP and FSDP2.

Everything that depends on the number of processes is here and in processes.py.
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
"""Size of DDP's gradient buckets, the first included, which torch would limit to 1 MB. A small
model's gradients fit into one bucket."""


@contextlib.contextmanager
def processes(device: str | None = None) -> Iterator[Processes]:
    """The processes that torchrun started, or a single one; for a `with` block.

    They communicate by gloo on CPUs, and by NCCL between GPUs, with one GPU per process.

    Args:
        device: name of the device; "cuda" is the GPU with this process's local rank.

    Raises:
        UserError: if there is no such device, or another process cannot be reached.
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
        # torchrun's store outlives its workers. Restarted workers must not read the addresses of
        # those before them.
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
                f"process {rank} of {world_size} lost another process of its job, which has ended "
                "or cannot be reached: see above for why. Checkpoints are intact; resume with "
                "--resume, with any number of processes"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def _stay_on_own_cores(local_rank: int, local_size: int) -> None:
    """Assigns this process its share of the machine's cores, if the system can: threads that move
    between cores lose their caches each time that they wait."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // local_size
    if share:
        os.sched_setaffinity(0, cores[local_rank * share : (local_rank + 1) * share])


def _is_lost(error: RuntimeError) -> bool:
    """Whether an error means that the connection to another process failed."""
    words = str(error).lower()
    signs = ("connection closed", "connection reset", "broken pipe", "timed out", "nccl")
    return isinstance(error, dist.DistError) or any(sign in words for sign in signs)


def spread(
    model: LanguageModel, strategy: str, processes: Processes, *also: LanguageModel
) -> nn.Module:
    """Wraps `model` for training on several processes, which average their gradients.

    Args:
        model: the whole model, the same in every process. With "fsdp", it and the models in `also`
            (a moving average) are sharded in place.
        strategy: "ddp" or "fsdp".
        processes: the processes of the job.

    Returns:
        the module to call in training.
    """
    if processes.mesh is None:
        return model
    if strategy == "ddp":
        ids = None if processes.device.type == "cpu" else [processes.device]
        return DistributedDataParallel(
            model, device_ids=ids, gradient_as_bucket_view=True, bucket_cap_mb=BUCKET_MB
        )
    # A block returns views (the convolution's last inputs), which are never written to.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for whole in (model, *also):
        for block in whole.stack.blocks:
            fully_shard(block, mesh=processes.mesh)
        # Parameters outside of blocks stay gathered between forward and backward. The average has
        # no backward pass, so it would stay gathered after an evaluation: it is resharded.
        fully_shard(
            whole, mesh=processes.mesh, reshard_after_forward=None if whole is model else True
        )
    return model


def sharing(module: nn.Module, *, now: bool) -> AbstractContextManager[None]:
    """A context for the forward and backward pass of a part of a batch. Gradients accumulate over
    the parts, and are averaged over the processes with the last one, where `now` is true."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(now)
    elif isinstance(module, DistributedDataParallel) and not now:
        return cast("AbstractContextManager[None]", module.no_sync())
    return contextlib.nullcontext()


def clip_gradient(parameters: Sequence[Tensor], largest: float) -> float:
    """Scales the gradient down to a norm of at most `largest`, and returns its norm before that."""
    norm = nn.utils.clip_grad_norm_(parameters, largest)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
