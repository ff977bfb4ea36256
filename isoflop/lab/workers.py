"""Runs jobs on several processes of one thread each, and reports each as it ends."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from isoflop.errors import UserError
from isoflop.lab.procedures.job import Job, Measured
from isoflop.lab.procedures.table import PROCEDURES
from isoflop.model.registry import trust_code

ORPHAN = 2.0  # seconds between a worker's checks that the process that started it is still alive


@dataclass(frozen=True)
class Performed:
    """A finished job.

    Attributes:
        seconds: that it took, on the clock of the wall.
        machine: of the worker, if it was another one than this.
    """

    measured: Measured
    seconds: float
    machine: dict[str, Any] | None = None


Done = Callable[[Job, Performed], None]


class Pool(Protocol):
    """Whoever runs jobs: the processes of this machine (Workers), or a cluster (cluster.py).

    Used as a context: leaving it by an exception ends what is running.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def at_once(self) -> int:
        """Jobs that run at the same time, one at least."""

    def run(self, jobs: Iterator[Job], done: Done) -> None:
        """Run jobs as long as `jobs` gives any; each is asked for when there is room for it, so that what has ended by
        then may decide whether there is one more. `done` gets each as it ends.

        Raises:
            UserError: if a job cannot be run, or its worker was lost.
        """


def perform(job: Job, trusted: tuple[str, ...] = ()) -> Performed:
    """Run one job here.

    Raises:
        UserError: if it cannot be run.
    """
    started = time.perf_counter()
    with trust_code(*trusted):
        measured = PROCEDURES[job.procedure].run(job)
    return Performed(measured, time.perf_counter() - started)


def begin_worker(parent: int) -> None:
    """Give a worker one thread. It does not receive a Ctrl-C on the terminal (its parent handles it for all), and exits
    when its parent has exited, even by kill -9."""
    torch.set_num_threads(1)
    os.setpgid(0, 0)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Workers:
    """A Pool of processes on this machine, `count` of them; 0: this process runs one job after the other."""

    def __init__(self, count: int, trusted: tuple[str, ...] = ()) -> None:
        self.count, self.trusted = count, trusted
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pool is None:
            return
        if kind is not None:
            for process in multiprocessing.active_children():
                process.terminate()
        self.pool.shutdown(wait=kind is None, cancel_futures=True)

    @property
    def at_once(self) -> int:
        return max(1, self.count)

    def run(self, jobs: Iterator[Job], done: Done) -> None:
        """See Pool."""
        if self.count == 0:
            for job in jobs:
                done(job, perform(job, self.trusted))
            return

        if self.pool is None:
            self.pool = ProcessPoolExecutor(
                self.count, multiprocessing.get_context("spawn"), begin_worker, (os.getpid(),)
            )

        running: dict[Future[Performed], Job] = {}
        more = True
        while more or running:
            while more and len(running) < self.count:
                wanted = next(jobs, None)
                more = wanted is not None
                if wanted is not None:
                    running[self.pool.submit(perform, wanted, self.trusted)] = wanted
            ended, _ = wait(running, return_when=FIRST_COMPLETED) if running else (set(), None)
            for future in ended:
                job = running.pop(future)
                try:
                    done(job, future.result())
                except BrokenProcessPool:
                    raise UserError(
                        f"a worker was killed while it ran arm {job.arm} (out of memory?); the same command resumes, "
                        "and --workers 1 needs half of the memory"
                    ) from None
