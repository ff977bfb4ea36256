"""Full matrices for an optimiser that needs them (Muon), if each process holds all of them, or a shard of each.

Both classes implement Matrices of optim/muon.py. The matrices are distributed round-robin: process r computes every
N-th of a list, beginning with number r. Nothing is computed twice, and all processes continue with the same bits.

    ReplicatedMatrices   full in every process (DDP)   compute the own matrices ──> all-gather the results
    ShardedMatrices      rows sharded (FSDP2)          rows ──all-to-all──> own matrices ──compute──all-to-all──> rows
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from isoflop.parallel.mesh import Group

Function = Callable[[Tensor], Tensor]


class ReplicatedMatrices:
    """Every process has all matrices."""

    def __init__(self, group: Group) -> None:
        self.rank, self.size = group.rank, group.size

    def local(self, tensor: Tensor) -> Tensor:
        return tensor

    def apply(self, function: Function, parts: Sequence[Tensor], like: Tensor) -> list[Tensor]:
        count = -(-len(parts) // self.size)  # per process; one with a matrix less computes the last one again
        own = [parts[min(i, len(parts) - 1)] for i in range(self.rank, count * self.size, self.size)]
        results = function(torch.stack(own)).contiguous()
        gathered = [torch.empty_like(results) for _ in range(self.size)]
        dist.all_gather(gathered, results)
        return [gathered[i % self.size][i // self.size] for i in range(len(parts))]

    def total(self, sums: Tensor, like: Tensor) -> Tensor:
        return sums


class ShardedMatrices:
    """Every process has some rows (of the first dimension) of each tensor, as FSDP2 shards them: ceil(rows / N) per
    process, the last shards shorter or empty. All replicas of the model (HSDP) compute the same."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.group = mesh.get_group()
        self.rank, self.size = mesh.get_local_rank(), mesh.size()

    def local(self, tensor: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def apply(self, function: Function, parts: Sequence[Tensor], like: Tensor) -> list[Tensor]:
        shape = like.shape
        most = -(-shape[0] // self.size)
        rows = [max(0, min(most, shape[0] - rank * most)) for rank in range(self.size)]
        row = shape[1:].numel()

        owned = [len(range(rank, len(parts), self.size)) for rank in range(self.size)]
        mine = owned[self.rank]
        order = [i for rank in range(self.size) for i in range(rank, len(parts), self.size)]  # by owner
        sent = [count * rows[self.rank] * row for count in owned]
        received = [mine * count * row for count in rows]

        flat = torch.cat([parts[i].reshape(-1) for i in order])
        arrived = self.exchange(flat, sent, received)
        pieces = [p.view(mine, count, *shape[1:]) for p, count in zip(arrived.split(received), rows, strict=True)]
        full = torch.cat(pieces, dim=1)
        results = function(full) if mine else full

        back = torch.cat([p.reshape(-1) for p in results.split(rows, dim=1)]).to(flat.dtype)
        local = self.exchange(back, received, sent).view(len(parts), rows[self.rank], *shape[1:])
        return [local[order.index(i)] for i in range(len(parts))]

    def total(self, sums: Tensor, like: Tensor) -> Tensor:
        if like.ndim > 2:
            return sums  # a stack is divided between its matrices
        summed = sums.clone()
        dist.all_reduce(summed, group=self.group)
        return summed

    def exchange(self, flat: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """All-to-all: `sent` elements of `flat` to each process, `received` from each."""
        arrived = flat.new_empty(sum(received))
        dist.all_to_all_single(arrived, flat, received, sent, group=self.group)
        return arrived
