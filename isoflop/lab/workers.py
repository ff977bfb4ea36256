"""Jobs on several processes of one thread each, and what came of them in the order in which they end."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Self

import torch

from isoflop.errors import UserError
from isoflop.lab.procedures.job import Job, Measured
from isoflop.lab.procedures.table import PROCEDURES
from isoflop.model.registry import trust_code

Done = Callable[[Job, Measured, float], None]
ORPHAN = 2.0  # seconds between a worker's looks at whether the process that started it is still there


def perform(job: Job, trusted: tuple[str, ...] = ()) -> tuple[Measured, float]:
    """Do one job. Returns what was measured, and the seconds that it took."""
    started = time.perf_counter()
    with trust_code(*trusted):
        measured = PROCEDURES[job.procedure].run(job)
    return measured, time.perf_counter() - started


def begin_worker(parent: int) -> None:
    """A worker has one thread, is not reached by a Ctrl-C on the terminal, which its parent handles for all, and ends
    when its parent is gone, by kill -9 too."""
    torch.set_num_threads(1)
    os.setpgid(0, 0)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Workers:
    """Runs jobs, `count` at a time; 0: in this process, one after the other.

    Used as a context: leaving it by an exception ends the workers at once.
    """

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
        """Do jobs as long as `jobs` gives any; each is asked for when there is room for it, so that what has ended by
        then may decide whether there is one more.

        Raises:
            UserError: if a job cannot be done, or a worker was ended from outside.
        """
        if self.count == 0:
            for job in jobs:
                done(job, *perform(job, self.trusted))
            return
        if self.pool is None:
            self.pool = ProcessPoolExecutor(
                self.count, multiprocessing.get_context("spawn"), begin_worker, (os.getpid(),)
            )
        running: dict[Future[tuple[Measured, float]], Job] = {}
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
                    done(job, *future.result())
                except BrokenProcessPool:
                    raise UserError(
                        f"a worker was ended from outside while it ran arm {job.arm} (was there too little memory?); "
                        "the same command goes on from here, --workers 1 needs half of it"
                    ) from None
