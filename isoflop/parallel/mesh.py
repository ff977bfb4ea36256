"""The processes that train one model, as one of them sees them: how many, on which hosts and devices.

torchrun ── environment ──> launch.py ──> Group ──> shard.py (who holds what) · watch.py (who is silent)
                                            └─ collectives.py (what they exchange) · failures.py (how they end)
"""

from collections.abc import Callable

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from isoflop.parallel.collectives import Collectives


class Group(Collectives):
    """The processes that train one model, seen from one of them.

    Attributes:
        local_rank, local_size: which process of how many on this host.
        node: the number of this host.
        launch: torchrun's name of this launch; "" without one. It is kept when torchrun starts the processes again.
        restarts: how often it has.
        pause: called by all between two parts of long work; see pause.py.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        local_rank: int = 0,
        local_size: int = 1,
        node: int = 0,
        launch: str = "",
        restarts: int = 0,
        store: dist.Store | None = None,
    ) -> None:
        super().__init__(rank, size, local_rank, store)
        self.local_rank, self.local_size = local_rank, local_size
        self.node, self.launch, self.restarts = node, launch, restarts
        self.pause: Callable[[], None] = lambda: None

    @property
    def hosts(self) -> int:
        """How many hosts there are, each with as many processes."""
        return max(1, self.size // self.local_size)

    def threads(self, of_host: int) -> int:
        """This process's part of a host's threads."""
        return max(1, of_host // self.local_size)

    def device(self, name: str) -> str:
        """This process's own device of a kind: "cuda" -> "cuda:3"."""
        return f"cuda:{self.local_rank}" if name == "cuda" and not self.alone else name

    def machines(self, device: str) -> int:
        """How many times what one process reaches with all of a host's threads, or with its GPU, all have together."""
        return self.size if device.startswith("cuda") else self.hosts

    def mesh(self, device: str, replicas: int = 1) -> DeviceMesh:
        """All processes in a row, or as (replicas, pieces)."""
        kind = device.partition(":")[0]
        if replicas == 1:
            return init_device_mesh(kind, (self.size,), mesh_dim_names=("piece",))
        return init_device_mesh(kind, (replicas, self.size // replicas), mesh_dim_names=("replica", "piece"))


ALONE = Group()


def present() -> Group:
    """The group as torch knows it, for those that none is handed to; ALONE if this process is in none."""
    return Group(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE
