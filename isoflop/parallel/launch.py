"""Builds the process group from torchrun's environment variables.

Every process runs the same program, and `joined` makes them a group. If torchrun gives each process its own session, a
Ctrl-C reaches them only through torchrun, else from the terminal as well: hence `echo` in trainer/signals.py.

With `--max-restarts` torchrun restarts all processes when one has died. The first one then finds its own launch
(TORCHELASTIC_RUN_ID) in the run folder's history and resumes from the last checkpoint. torchrun cannot tell an exit
after a signal from a failure: send the signal to torchrun, or it restarts the run.
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

JOINING = timedelta(minutes=10)  # limit of the wait for the other processes to start
NEVER = timedelta(days=7)  # collectives have no time limit: watch.py decides which process is silent
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RESTART_COUNT")

_times_joined = itertools.count()  # a process may join, leave and join again with the same store


def is_main(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the first or only one, which prints; usable before the group exists."""
    return environment.get("RANK", "0") == "0"


def read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of Group from torchrun's variables; empty without torchrun.

    Raises:
        UserError: if a variable is not a number, or RANK is not below WORLD_SIZE.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return {}

    values: dict[str, int] = {}
    for name in NAMES:
        text = environment.get(name, {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}.get(name, "0"))
        if not text.isdigit():
            raise UserError(f"the environment has {name} = {text!r}, which is not a number; start with torchrun")
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
    """The group of this process, until the context ends; ALONE without torchrun.

    An error of any process ends the group: the first to fail raises its error, the others raise FailedElsewhere.
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

    # Reference cycles of a finished run keep communicators alive, and gloo's threads must not outlive the interpreter
    # ("terminate called without an active exception", about once per hundred groups of four).
    gc.collect()
    dist.destroy_process_group()


def join(place: dict[str, Any]) -> Group:
    """Rendezvous with the other processes.

    Raises:
        UserError: if they cannot be reached.
    """
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=JOINING)))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"process {place['rank']} cannot reach the others at {where} ({reason})") from None

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
