"""Communication in a process group: tensors, numbers and small JSON values.

Numbers and JSON use gloo, tensors on a GPU use NCCL. Waits that may be long (the first process prepares the data) use
the store instead, which has no time limit.
"""

import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from isoflop.parallel.failures import POLL, Failures


class Collectives:
    """The collectives of a group. All processes call each of them, in the same order. A single process gets its own
    value, without communication.

    Attributes:
        rank, size: rank of this process, and number of processes.
        store: torch's key-value store of the group; None for a single process.
        failures: how the processes report a failure to each other.
    """

    def __init__(self, rank: int, size: int, local_rank: int, store: dist.Store | None) -> None:
        self.rank, self.size, self.store = rank, size, store
        self.failures = Failures(store, rank, size, local_rank)
        self._orders = itertools.count()

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if not self.alone:
            dist.all_reduce(tensor)
        return tensor

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """The first process's tensor, in place."""
        if not self.alone:
            dist.broadcast(tensor, 0)
        return tensor

    def all_max(self, numbers: Sequence[int]) -> list[int]:
        """The elementwise maximum over all processes, so that a flag set by one process reaches all."""
        if self.alone:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def barrier(self) -> None:
        """Wait until all processes call this."""
        self.all_max([0])

    def broadcast(self, value: Any = None) -> Any:
        """The first process's value, plain JSON, in all processes."""
        if self.alone:
            return value

        text = json.dumps(value).encode() if self.first else b""
        length = torch.tensor([len(text)], dtype=torch.int64)
        dist.broadcast(length, 0)
        content = torch.frombuffer(bytearray(text or bytes(int(length))), dtype=torch.uint8)
        dist.broadcast(content, 0)
        return json.loads(bytes(content.tolist()))

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, plain JSON, in order of rank, in all processes."""
        if self.alone:
            return [value]

        text = json.dumps(value).encode()
        [longest] = self.all_max([len(text)])
        mine = torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8)  # JSON ignores trailing spaces
        of_all = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(of_all, mine)
        return [json.loads(bytes(content.tolist())) for content in of_all]

    def order(self, value: Any = None) -> Any:
        """`broadcast` without a time limit, for values that the first process takes long to compute.

        Raises:
            FailedElsewhere: if another process failed in the meantime.
        """
        if self.store is None:
            return value
        key = f"order/{next(self._orders)}"
        if self.first:
            self.store.set(key, json.dumps(value))
            return value
        while not self.store.check([key]):
            if failed := self.failures.elsewhere():
                raise failed
            time.sleep(POLL)
        return json.loads(self.store.get(key))
