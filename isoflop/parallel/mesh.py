"""The process group that trains one model: ranks, hosts and devices.

torchrun ── environment ──> launch.py ──> Group ──> shard.py (sharding) · watch.py (silent processes)
                                            └─ collectives.py (communication) · failures.py (joint exit)
"""

from collections.abc import Callable

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from isoflop.parallel.collectives import Collectives


class Group(Collectives):
    """The process group that trains one model, as seen by one of its processes.

    Attributes:
        local_rank, local_size: rank on this host, and number of processes on this host.
        node: the rank of this host.
        launch: torchrun's id of this launch, the same after restarts; "" without torchrun.
        restarts: the number of restarts by torchrun.
        pause: called by all processes between two parts of long work; see pause.py.
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
        """The number of hosts; all have the same number of processes."""
        return max(1, self.size // self.local_size)

    def threads(self, of_host: int) -> int:
        """This process's share of a host's threads."""
        return max(1, of_host // self.local_size)

    def device(self, name: str) -> str:
        """This process's own device of a kind: "cuda" -> "cuda:3"."""
        return f"cuda:{self.local_rank}" if name == "cuda" and not self.alone else name

    def machines(self, device: str) -> int:
        """The group's compute in units of one process with all threads of its host, or with its GPU."""
        return self.size if device.startswith("cuda") else self.hosts

    def mesh(self, device: str, replicas: int = 1) -> DeviceMesh:
        """The mesh of all processes: 1-D, or (replicas, shards)."""
        kind = device.partition(":")[0]
        if replicas == 1:
            return init_device_mesh(kind, (self.size,), mesh_dim_names=("piece",))
        return init_device_mesh(kind, (replicas, self.size // replicas), mesh_dim_names=("replica", "piece"))


ALONE = Group()


def present() -> Group:
    """The current group according to torch, for callers that have no Group; ALONE if there is none."""
    return Group(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE
