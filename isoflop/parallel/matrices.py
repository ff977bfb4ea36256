"""Full matrices for an optimiser that needs them (Muon), if each process holds all of them, or a shard of each.

Both classes implement Matrices of optim/muon.py. The matrices are distributed round-robin: process r is the only one to
work on every N-th of a list, beginning with number r. Nothing is computed twice, and all processes continue with the
same bits.

    ReplicatedMatrices   full in every process (DDP)   work on the own ones ──> all-gather the results
    ShardedMatrices      rows sharded (FSDP2)          rows ──all-to-all──> own full ones ──> work ──all-to-all──> rows
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from isoflop.parallel.mesh import Group

Work = Callable[[Tensor], Tensor]


class ReplicatedMatrices:
    """Every process has all matrices."""

    def __init__(self, group: Group) -> None:
        self.rank, self.size = group.rank, group.size

    def local(self, tensor: Tensor) -> Tensor:
        return tensor

    def work(self, work: Work, parts: Sequence[Tensor], like: Tensor) -> list[Tensor]:
        each = -(-len(parts) // self.size)  # a process with one matrix less works on the last one again
        own = [parts[min(i, len(parts) - 1)] for i in range(self.rank, each * self.size, self.size)]
        done = work(torch.stack(own)).contiguous()
        everyone = [torch.empty_like(done) for _ in range(self.size)]
        dist.all_gather(everyone, done)
        return [everyone[i % self.size][i // self.size] for i in range(len(parts))]


class ShardedMatrices:
    """Every process has some rows (of the first dimension) of each tensor, as FSDP2 shards them: ceil(rows / N) each,
    the last shards shorter or empty. Each replica of the model (HSDP) does the same work."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.group = mesh.get_group()
        self.rank, self.size = mesh.get_local_rank(), mesh.size()

    def local(self, tensor: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def work(self, work: Work, parts: Sequence[Tensor], like: Tensor) -> list[Tensor]:
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
        whole = torch.cat(pieces, dim=1)
        done = work(whole) if mine else whole

        back = torch.cat([p.reshape(-1) for p in done.split(rows, dim=1)]).to(flat.dtype)
        results = self.exchange(back, received, sent).view(len(parts), rows[self.rank], *shape[1:])
        return [results[order.index(i)] for i in range(len(parts))]

    def exchange(self, flat: Tensor, sent: list[int], received: list[int]) -> Tensor:
        arrived = flat.new_empty(sum(received))
        dist.all_to_all_single(arrived, flat, received, sent, group=self.group)
        return arrived
