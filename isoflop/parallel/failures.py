"""How a group of processes ends when one of them fails: all end, with the same exit code, and one of them says why.

2 is what the user can mend, 1 what failed (a run that diverged, a lost or silent process), 128 + signal where a signal
stopped the run and it is saved. A signal may go to torchrun, which passes SIGTERM and SIGINT on, or to any one process.
torchrun itself (2.13, tried) gives 1 in every one of these cases, after its own account of them, in which each
process's code stands; it waits 30 seconds for the processes that it told to stop, then kills them.

Who fails writes its exit code into the store, where the others find it. The store lies on one host, which may be what
failed.
"""

import contextlib
import time
from datetime import timedelta

import torch.distributed as dist

POLL = 0.2  # seconds between two looks at the store
LEAVING = 10.0  # seconds that a process waits for the others to leave with it


class FailedElsewhere(Exception):
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


class Failures:
    """What the processes of a group tell each other when one of them fails.

    Args:
        store: where all can leave words; None: there is one process alone, and nobody is told.
        rank, size: which process of how many.
        local_rank: which one of this host.
    """

    def __init__(self, store: dist.Store | None, rank: int, size: int, local_rank: int) -> None:
        self.store, self.rank, self.size, self.local_rank = store, rank, size, local_rank

    def elsewhere(self) -> FailedElsewhere | None:
        """What another process has said, if any has."""
        if self.store is None or not self.store.check(["failure"]):
            return None
        return FailedElsewhere(int(self.store.get("failure")))

    def claims_error(self, exit_code: int) -> bool:
        """Whether this process is the one that says why the group ends: the first to come. The others learn the exit
        code. Without the store (its host may be what failed), the first process of every host does."""
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
        """What this process raises for an error of its own: the error, or FailedElsewhere where another was first."""
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
        """Wait, but not for long, until the others are about to leave as well. torchrun ends all that are still there
        when one has failed, and a process that has saved and is finished shall leave with its own exit code; and the
        first one, which may host the store, leaves last."""
        if self.store is None or not (exit_code == 0 or exit_code > 128):
            return
        with contextlib.suppress(RuntimeError):
            self.store.add("left", 1)
            deadline = time.monotonic() + LEAVING
            waits = self.rank == 0 or exit_code != 0
            while waits and self.store.add("left", 0) < self.size and time.monotonic() < deadline:
                time.sleep(POLL)


def broken(error: BaseException) -> bool:
    """Whether an error says that another process cannot be reached any more."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error))
