"""Processes for tests that start many: forked from one that has already loaded torch, which takes seconds.

The server of Python's own "forkserver" does nothing but load and fork: it never computes, so that no thread of torch is
there to be lost in a fork.
"""

import importlib
import multiprocessing
import os
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

LOADED = [
    "pytest",
    "isoflop.cli",
    "isoflop.job",
    "isoflop.report.page",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
]
CONTEXT = multiprocessing.get_context("forkserver")


def start(target: str, *arguments: str, out: Path, errors: Path | None = None, **environment: str) -> BaseProcess:
    """Have a new process call `module.function` with these arguments.

    Args:
        out: the file that its standard output goes to; and its errors, if no other is named.
        environment: beside this process's own.
    """
    CONTEXT.set_forkserver_preload(LOADED)
    asked = (target, arguments, {**os.environ, "OMP_NUM_THREADS": "1", **environment}, out, errors)
    process = CONTEXT.Process(target=begin, args=asked)
    process.start()
    return process


def begin(target: str, arguments: tuple[str, ...], environment: dict[str, str], out: Path, errors: Path | None) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with out.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if errors is not None:
        with errors.open("wb") as file:
            os.dup2(file.fileno(), 2)
    # what was inherited may be buffered, and writes to where the server's own output goes
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    module, _, name = target.rpartition(".")
    getattr(importlib.import_module(module), name)(*arguments)


def command(*arguments: str) -> None:
    """What `isoflop` is on the command line."""
    sys.argv = ["isoflop", *arguments]
    importlib.import_module("isoflop.__main__").main()


def start_group(target: str, *arguments: str, size: int, folder: Path, **environment: str) -> list[BaseProcess]:
    """A group of processes, as torchrun would start them. Their output is in `folder`, as rank-N.out and rank-N.err."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(size):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        where = {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
        out, errors = (folder / f"rank-{rank}.{what}" for what in ("out", "err"))
        processes.append(
            start(target, *arguments, out=out, errors=errors, **(where if size > 1 else {}), **environment)
        )
    return processes
