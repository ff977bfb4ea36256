"""What the processes of a group exchange: tensors, numbers and small JSON values.

Numbers and JSON go through gloo, tensors on a GPU through NCCL. Waits that may be long (the first process prepares the
data) go through the store instead, which has no time limit.
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
    """Each of these is called by all processes, in the same order. Alone, nothing is sent and every value is one's own.

    Attributes:
        rank, size: which process of how many.
        store: where all can leave words; None alone.
        failures: what they tell each other when one of them fails.
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
        """The largest that any process has of each number: how a flag that one raised is seen by all."""
        if self.alone:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def barrier(self) -> None:
        """Wait until all are here."""
        self.all_max([0])

    def broadcast(self, value: Any = None) -> Any:
        """The first process's value, plain JSON, in all."""
        if self.alone:
            return value
        text = json.dumps(value).encode() if self.first else b""
        length = torch.tensor([len(text)], dtype=torch.int64)
        dist.broadcast(length, 0)
        content = torch.frombuffer(bytearray(text or bytes(int(length))), dtype=torch.uint8)
        dist.broadcast(content, 0)
        return json.loads(bytes(content.tolist()))

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, plain JSON, in order of rank, in all."""
        if self.alone:
            return [value]
        text = json.dumps(value).encode()
        [longest] = self.all_max([len(text)])
        mine = torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8)  # JSON does not mind blanks
        of_all = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(of_all, mine)
        return [json.loads(bytes(one.tolist())) for one in of_all]

    def order(self, value: Any = None) -> Any:
        """The first process's value, plain JSON, in all, however long the others have to wait for it.

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
