"""Who this process is among those that train one model together, and what all of them agree on.

Light enough for commands that never train: torch's device meshes and shards, which take half a
second to import, are in distributed.py.
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
    """This process among those of its job; by default the only one."""

    rank: int = 0
    """Number of this process, from 0."""
    world_size: int = 1
    """How many there are."""
    local_rank: int = 0
    """Number of this process among those on this machine."""
    local_size: int = 1
    """How many there are on this machine."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this one computes."""
    mesh: "DeviceMesh | None" = None
    """All of them in a row; None for one alone."""

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def totals(self, *values: float) -> list[float]:
        """The sum of each value over all processes."""
        return self.sum_up(*values)()

    def sum_up(self, *values: float) -> Callable[[], list[float]]:
        """Starts to sum up each value over all processes; calling what it returns waits for it."""
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
        """Whether any process says so."""
        return self.totals(float(said))[0] > 0

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.mesh is not None:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order, on the first one; an empty list on the others."""
        if self.mesh is None:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.is_first else None
        dist.gather_object(value, values)
        return values or []

    def tell(self, value: Any) -> Any:
        """The value that the first process has."""
        if self.mesh is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]


ALONE = Processes()
