"""Ends all processes of a group when one fails: with the same exit code, and one printed message.

Exit code 2 is an error that the user can fix, 1 a failure (a run that diverged, a lost or silent process), 128 + signal
a run that a signal stopped and that is saved. The signal may be sent to torchrun, which forwards SIGTERM and SIGINT, or
to any one process. torchrun itself (measured with 2.13) exits with 1 in all of these cases, after a summary of all exit
codes; it waits 30 seconds for the processes to which it sent a signal, then kills them.

A process that fails writes its exit code into the store, where the others read it. The store is on one host, which may
itself be lost.
"""

import contextlib
import time
from datetime import timedelta

import torch.distributed as dist

POLL = 0.2  # seconds between two reads of the store
LEAVING = 10.0  # seconds that a process waits for the others to leave


class FailedElsewhere(Exception):
    """The group ends, and another process has printed the reason.

    Attributes:
        exit_code: the exit code of that process, and so of this one.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of the group printed the reason")
        self.exit_code = exit_code


class Lost(Exception):
    """The connection to another process broke: the process was killed, or its host is lost."""

    exit_code = 1


class CutShort(Exception):
    """A process was asked to stop during work that is repeated when the run is resumed."""


class Failures:
    """How the processes of a group report a failure to each other.

    Args:
        store: torch's key-value store of the group; None for a single process, which reports nothing.
        rank, size: rank of this process, and number of processes.
        local_rank: rank on this host.
    """

    def __init__(self, store: dist.Store | None, rank: int, size: int, local_rank: int) -> None:
        self.store, self.rank, self.size, self.local_rank = store, rank, size, local_rank

    def elsewhere(self) -> FailedElsewhere | None:
        """The failure that another process has reported, if any."""
        if self.store is None or not self.store.check(["failure"]):
            return None
        return FailedElsewhere(int(self.store.get("failure")))

    def claims_error(self, exit_code: int) -> bool:
        """Whether this process prints the reason why the group ends: the first caller does, and the others read its
        exit code. Without the store (its host may be lost), the first process of every host prints it."""
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
        """The exception to raise for this process's own error: the error, or FailedElsewhere if another process failed
        first."""
        if self.store is None or isinstance(error, FailedElsewhere):
            return error
        exit_code = 130 if isinstance(error, KeyboardInterrupt) else int(getattr(error, "exit_code", 1))
        if self.claims_error(exit_code):
            self.leave(exit_code)
            return error

        with contextlib.suppress(RuntimeError):
            self.store.wait(["failure"], timedelta(seconds=2))
            exit_code = int(self.store.get("failure"))
        self.leave(exit_code)
        return FailedElsewhere(exit_code)

    def leave(self, exit_code: int = 0) -> None:
        """Wait a short time for the others to leave as well.

        torchrun kills all remaining processes when one has failed, and a process that has saved should exit with its
        own code. The first process, which may host the store, leaves last.
        """
        if self.store is None or not (exit_code == 0 or exit_code > 128):
            return
        with contextlib.suppress(RuntimeError):
            self.store.add("left", 1)
            deadline = time.monotonic() + LEAVING
            waits = self.rank == 0 or exit_code != 0
            while waits and self.store.add("left", 0) < self.size and time.monotonic() < deadline:
                time.sleep(POLL)


def broken(error: BaseException) -> bool:
    """Whether an error means that another process cannot be reached any more."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error))
