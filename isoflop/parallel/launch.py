"""From the environment that torchrun gives a process to the group that it belongs to.

Every process runs the same program, and `joined` makes them a group. A Ctrl-C reaches the processes from torchrun alone
where it gives each a session of its own, and else from the terminal too: hence `echo` in trainer/signals.py.

With `--max-restarts` torchrun starts all processes again when one has died. The first one then finds its own launch
(TORCHELASTIC_RUN_ID) in the run folder's history and resumes from the last checkpoint. It cannot tell a signal's exit
from a failure either: stop a run by a signal to torchrun, or it is brought back.
"""

import contextlib
import gc
import itertools
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from isoflop.errors import UserError
from isoflop.parallel.mesh import Group

JOINING = timedelta(minutes=10)  # how long a process waits for the others to start
NEVER = timedelta(days=7)  # collectives have no limit of their own: watch.py is the judge of who is silent
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RESTART_COUNT")

_times_joined = itertools.count()  # a process may join, leave and join again; the store outlives that


def is_main(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process may print, before there is a group: it is the first one, or the only one."""
    return environment.get("RANK", "0") == "0"


def read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """What torchrun says: the arguments of Group.

    Raises:
        UserError: if only a part of it is there, or no number.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return {}

    values: dict[str, int] = {}
    for name in NAMES:
        text = environment.get(name, {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}.get(name, "0"))
        if not text.isdigit():
            raise UserError(f"the environment has {name} = {text!r}, which is no number; start with torchrun")
        values[name] = int(text)
    if values["RANK"] >= values["WORLD_SIZE"]:
        raise UserError(
            f"the environment has RANK = {values['RANK']} of WORLD_SIZE = {values['WORLD_SIZE']}; start with torchrun"
        )

    rank, size, local_rank, local_size, node, restarts = (values[name] for name in NAMES)
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

    An error of any process ends the group: the first to fail raises what it has, the others raise
    FailedElsewhere.
    """
    place = read_environment(os.environ)
    if place.get("size", 1) == 1:
        yield Group(**place)
        return
    group = join(place)
    try:
        yield group
    except BaseException as error:
        raised = group.failures.failing(error)
        if raised is error:
            raise
        raise raised from error
    group.failures.leave()

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
