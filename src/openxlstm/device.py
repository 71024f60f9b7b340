"""Device, memory, threads and seeds of a run."""

import os
import random
from pathlib import Path

import numpy as np
import torch

from openxlstm.errors import UserError


def get_device(name: str | None = None) -> torch.device:
    """The device with this name; None means the CPU.

    Raises:
        UserError: if this machine has no such device.
    """
    try:
        device = torch.device(name or "cpu")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the device {name!r} cannot be used here: {reason}") from None
    return device


def memory_bytes() -> int | None:
    """Memory available to a process in bytes: the machine's, or the limit of a container (cgroup
    2). None if the system does not say."""
    limits = []
    if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(os.sysconf_names):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (words := limit.read_text().strip()).isdecimal():
        limits.append(int(words))
    return min(limits, default=None)


def free_memory_bytes() -> int | None:
    """Memory that a process can still allocate without swapping, in bytes, the file cache included;
    None if the system does not say."""
    limits = []
    known, words = Path("/proc/meminfo"), {}
    if known.is_file():
        words = dict(line.split(":", 1) for line in known.read_text().splitlines())
    if "MemAvailable" in words:
        limits.append(int(words["MemAvailable"].split()[0]) * 1024)
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdecimal():
        limits.append(max(int(most) - int(used.read_text()), 0))
    return min(limits, default=None)


def set_threads(count: int | None) -> None:
    """Limits the threads of an operation; None leaves torch's choice.

    Raises:
        UserError: if count is not positive.
    """
    if count is not None:
        if count < 1:
            raise UserError(f"threads must be at least 1, not {count}")
        torch.set_num_threads(count)


def seed_everything(seed: int) -> None:
    """Seeds torch, numpy and random.

    Raises:
        UserError: if seed is negative or over 2**32 - 1.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be between 0 and 2**32 - 1, not {seed}")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - other libraries draw from it
    torch.manual_seed(seed)
