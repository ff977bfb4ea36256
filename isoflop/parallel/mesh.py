"""The processes that train one model: who they are (torchrun says it in the environment) and how they agree.

Every process runs the same program. `joined` makes them a group; a `Group` is what one of them sees of it. Numbers and
small JSON values go through gloo, gradients on a GPU through NCCL. Waits that may be long (the first process prepares
the data) go through the store instead, which has no time limit.

    torchrun ── environment ──> joined() ──> Group ──> shard.py (who holds what) · reduce.py (sums) · watch.py (silence)

When one process ends with an error, all do, with the same exit code, and one of them says why: 2 what the user can
mend, 1 what failed (a run that diverged, a lost or silent process), 128 + signal where a signal stopped the run and it
is saved. A signal may go to torchrun, which passes SIGTERM and SIGINT on, or to any one process. torchrun itself (2.13,
tried) gives 1 in every one of these cases, after its own account of them, in which each process's code stands; it
waits 30 seconds for the processes that it told to stop, then kills them. A Ctrl-C reaches the processes from torchrun
alone where it gives each a session of its own, and else from the terminal too: hence `echo` in trainer/signals.py.

With `--max-restarts` torchrun starts all processes again when one has died. The first one then finds its own launch
(TORCHELASTIC_RUN_ID) in the run folder's history and goes on from the last checkpoint. It cannot tell a signal's exit
from a failure either: stop a run by a signal to torchrun, or it is brought back.
"""

import contextlib
import gc
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from isoflop.errors import UserError

JOINING = timedelta(minutes=10)  # how long a process waits for the others to start
NEVER = timedelta(days=7)  # collectives have no limit of their own: watch.py is the judge of who is silent
POLL = 0.2  # seconds between two looks at the store
LEAVING = 10.0  # seconds that a process waits for the others to leave with it
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RESTART_COUNT")

_times_joined = itertools.count()  # a process may join, leave and join again; the store outlives that


class Told(Exception):
    """The group ends, and another process has said why.

    Attributes:
        exit_code: what this process exits with: the same as that one.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of the group said what is wrong")
        self.exit_code = exit_code


class Lost(Exception):
    """The connection to another process broke: it was killed, or its host is gone."""

    exit_code = 1


class CutShort(Exception):
    """A process was asked to stop, in the middle of what can be done again after the run is resumed."""


class Group:
    """The processes that train one model, seen from one of them. Alone, nothing is sent and every value is one's own.

    Attributes:
        rank, size: which of how many.
        local_rank, local_size: the same among those of this host.
        node: the number of this host.
        launch: torchrun's name of this launch; "" without one. It is kept when torchrun starts the processes again.
        restarts: how often it has.
        store: where all can leave words; None alone.
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
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size
        self.node, self.launch, self.restarts, self.store = node, launch, restarts, store
        self.pause: Callable[[], None] = lambda: None
        self._orders = itertools.count()

    @property
    def first(self) -> bool:
        """Whether this is the process that talks and writes."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

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

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if not self.alone:
            dist.all_reduce(tensor)
        return tensor

    def first_ones(self, tensor: Tensor) -> Tensor:
        """The first process's tensor, in place."""
        if not self.alone:
            dist.broadcast(tensor, 0)
        return tensor

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """The largest that any process has of each number: how a flag that one raised is seen by all."""
        if self.alone:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def barrier(self) -> None:
        """Wait until all are here."""
        self.largest([0])

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
        [longest] = self.largest([len(text)])
        mine = torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8)  # JSON does not mind blanks
        all_of_them = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(all_of_them, mine)
        return [json.loads(bytes(one.tolist())) for one in all_of_them]

    def order(self, value: Any = None) -> Any:
        """The first process's value, plain JSON, in all, however long the others have to wait for it.

        Raises:
            Told: if another process failed in the meantime.
        """
        if self.store is None:
            return value
        key = f"order/{next(self._orders)}"
        if self.first:
            self.store.set(key, json.dumps(value))
            return value
        while not self.store.check([key]):
            if self.store.check(["failure"]):
                raise Told(int(self.store.get("failure")))
            time.sleep(POLL)
        return json.loads(self.store.get(key))

    def speaks(self, exit_code: int) -> bool:
        """Whether this process is the one that says why the group ends: the first to come. The others learn the exit
        code. Without the store (its host may be what failed), the first of every host speaks."""
        if self.store is None:
            return True
        try:
            if self.store.add("failures", 1) > 1:
                return False
            self.store.set("failure", str(exit_code))
        except RuntimeError:
            return self.local_rank == 0
        return True

    def failing(self, error: BaseException) -> BaseException:
        """What this process raises for an error of its own: the error, or Told where another process was first."""
        if self.store is None or isinstance(error, Told):
            return error
        exit_code = 130 if isinstance(error, KeyboardInterrupt) else int(getattr(error, "exit_code", 1))
        if self.speaks(exit_code):
            self.part(exit_code)
            return error
        with contextlib.suppress(RuntimeError):
            self.store.wait(["failure"], timedelta(seconds=2))
            exit_code = int(self.store.get("failure"))
        self.part(exit_code)
        return Told(exit_code)

    def part(self, exit_code: int = 0) -> None:
        """Wait, but not for long, until the others are about to leave as well. torchrun ends all that are still there
        when one has failed, and a process that saved and is through shall leave with its own exit code; and the first
        one, which may host the store, leaves last."""
        if self.store is None or not (exit_code == 0 or exit_code > 128):
            return
        with contextlib.suppress(RuntimeError):
            self.store.add("left", 1)
            deadline = time.monotonic() + LEAVING
            while (self.first or exit_code) and self.store.add("left", 0) < self.size and time.monotonic() < deadline:
                time.sleep(POLL)


ALONE = Group()


def present() -> Group:
    """The group as torch knows it, for those that none is handed to; ALONE if this process is in none."""
    return Group(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE


def talks(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process may print, before there is a group: it is the first one, or the only one."""
    return environment.get("RANK", "0") == "0"


def read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """What torchrun says: the arguments of Group.

    Raises:
        UserError: if only a part of it is there, or no number.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return {}
    said: dict[str, int] = {}
    for name in NAMES:
        text = environment.get(name, {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}.get(name, "0"))
        if not text.isdigit():
            raise UserError(f"the environment has {name} = {text!r}, which is no number; start with torchrun")
        said[name] = int(text)
    if said["RANK"] >= said["WORLD_SIZE"]:
        raise UserError(
            f"the environment has RANK = {said['RANK']} of WORLD_SIZE = {said['WORLD_SIZE']}; start with torchrun"
        )
    rank, size, local_rank, local_size, node, restarts = (said[name] for name in NAMES)
    return {
        "rank": rank,
        "size": size,
        "local_rank": local_rank,
        "local_size": max(1, local_size),
        "node": node,
        "launch": environment.get("TORCHELASTIC_RUN_ID", ""),
        "restarts": restarts,
    }


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """The group that this process was started in, until the context ends; ALONE without torchrun.

    An error of any process ends the group: the first to fail raises what it has, the others Told.
    """
    place = read_environment(os.environ)
    if place.get("size", 1) == 1:
        yield Group(**place)
        return
    group = join(place)
    try:
        yield group
    except BaseException as error:
        told = group.failing(error)
        if told is error:
            raise
        raise told from error
    group.part()
    # What a run leaves in reference cycles holds on to communicators, and gloo's threads must not outlive the
    # interpreter ("terminate called without an active exception", seen once in some hundred groups of four).
    gc.collect()
    dist.destroy_process_group()


def join(place: dict[str, Any]) -> Group:
    """Meet the other processes.

    Raises:
        UserError: if they do not come.
    """
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=JOINING)))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"process {place['rank']} does not reach the others at {where} ({reason})") from None
    store = dist.PrefixStore(f"isoflop/{next(_times_joined)}/{place['restarts']}", store)
    backend = "gloo"
    if place["local_rank"] < torch.cuda.device_count():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(place["local_rank"])
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("collectives", store),
        rank=place["rank"],
        world_size=place["size"],
        timeout=NEVER,
    )
    return Group(**place, store=store)


def broken(error: BaseException) -> bool:
    """Whether an error says that another process cannot be reached any more."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error))
