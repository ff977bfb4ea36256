"""Work on several processes of a few threads each, and what came of it in the order in which it ends."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

from isoflop.errors import UserError

ORPHAN = 2.0  # seconds between a worker's looks at whether the process that started it is still there
TICK = 1.0  # seconds between two calls of `tick`

Work = TypeVar("Work")
Found = TypeVar("Found")


def begin_worker(parent: int, threads: int) -> None:
    """A worker has its own number of threads, is not reached by a Ctrl-C on the terminal, which its parent handles for
    all, and ends when its parent is gone, by kill -9 too."""
    torch.set_num_threads(threads)
    os.setpgid(0, 0)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Workers(Generic[Work, Found]):
    """Performs work, `count` pieces at a time; 0: in this process, one after the other.

    Used as a context: leaving it by an exception ends the workers at once.

    Args:
        perform: does one piece; it and the work are sent to other processes, so it is a function of a module.
        named: a piece of work in words, for messages.
        threads: of each worker.
    """

    def __init__(
        self, perform: Callable[[Work], Found], count: int, named: Callable[[Work], str] = str, threads: int = 1
    ) -> None:
        self.perform, self.count, self.named, self.threads = perform, count, named, threads
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

    def run(
        self,
        works: Iterator[Work],
        done: Callable[[Work, Found], None],
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        """Perform work as long as `works` gives any; each piece is asked for when there is room for it, so that what
        has ended by then may decide whether there is one more.

        Args:
            done: called in this process with a piece and its result, as each ends.
            tick: called in this process about every TICK seconds, and after each piece.

        Raises:
            UserError: if a piece cannot be done, or a worker was ended from outside.
        """
        if self.count == 0:
            for work in works:
                done(work, self.perform(work))
                tick()
            return
        if self.pool is None:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.count, context, begin_worker, (os.getpid(), self.threads))
        running: dict[Future[Found], Work] = {}
        more = True
        while more or running:
            while more and len(running) < self.count:
                wanted = next(works, None)
                more = wanted is not None
                if wanted is not None:
                    running[self.pool.submit(self.perform, wanted)] = wanted
            ended, _ = wait(running, TICK, FIRST_COMPLETED) if running else (set(), None)
            for future in ended:
                work = running.pop(future)
                try:
                    done(work, future.result())
                except BrokenProcessPool:
                    raise UserError(
                        f"a worker was killed while it ran {self.named(work)} (out of memory?); the same command "
                        "resumes, and --workers 1 needs half of the memory"
                    ) from None
            tick()
