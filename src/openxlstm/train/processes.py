"""The processes of a distributed job: rank, size, and collective operations on plain values.

Cheap to import: torch's device meshes and shards, which take half a second, are in distributed.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process within its job; by default the only one."""

    rank: int = 0
    """Index of this process, from 0."""
    world_size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Index of this process on its machine, from 0."""
    local_size: int = 1
    """Number of processes on this machine."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Device of this process."""
    mesh: "DeviceMesh | None" = None
    """One-dimensional mesh of all processes; None for a single process."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def totals(self, *values: float) -> list[float]:
        """The sum of each value over all processes."""
        return self.sum_up(*values)()

    def sum_up(self, *values: float) -> Callable[[], list[float]]:
        """Starts the sum of each value over all processes; the returned function waits for it."""
        if self.mesh is None:
            return lambda: list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        work = dist.all_reduce(sums, async_op=True)

        def wait() -> list[float]:
            if work is not None:
                work.wait()
            return sums.tolist()

        return wait

    def any(self, said: bool) -> bool:
        """Whether `said` is true in any process."""
        return self.totals(float(said))[0] > 0

    def wait(self) -> None:
        """Barrier: returns when every process has called it."""
        if self.mesh is not None:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, in the first process; an empty list in others."""
        if self.mesh is None:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.is_first else None
        dist.gather_object(value, values)
        return values or []

    def tell(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.mesh is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]


ALONE = Processes()
