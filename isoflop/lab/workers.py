"""Runs jobs on several processes of one thread each, and reports each as it ends."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

from isoflop.job import workers
from isoflop.lab.procedures.job import Job, Measured
from isoflop.lab.procedures.table import PROCEDURES
from isoflop.model.registry import trust_code


@dataclass(frozen=True)
class Performed:
    """A finished job.

    Attributes:
        seconds: wall-clock time.
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
        """Run jobs as long as `jobs` gives any. A job is drawn when a worker is free, so that `jobs` may stop early in
        view of those that are finished. `done` gets each as it ends.

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


def arm_of(job: Job) -> str:
    return f"arm {job.arm}"


class Workers(workers.Workers[Job, Performed]):
    """A Pool of processes on this machine, `count` of them; 0: this process runs one job after the other."""

    def __init__(self, count: int, trusted: tuple[str, ...] = ()) -> None:
        super().__init__(partial(perform, trusted=trusted), count, arm_of)
