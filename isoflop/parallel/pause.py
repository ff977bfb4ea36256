"""Lets all processes stop together in the middle of long work that they share: evaluation, sampling.

A process that stopped alone would leave the others waiting for it. So all call `group.pause()` after each part of the
work. About every second, by the first process's clock, they exchange whether any of them was asked to stop; then all
stop after the same part. A pause without an exchange costs nothing.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

from isoflop.parallel.failures import CutShort
from isoflop.parallel.mesh import Group

EVERY = 1.0  # seconds between two exchanges, unless a part takes longer
MOST = 1000  # parts between two exchanges


class Pauses:
    """`Group.pause` during long work.

    Args:
        stop_requested: returns whether this process was asked to stop.
    """

    def __init__(self, group: Group, stop_requested: Callable[[], bool]) -> None:
        self.group, self.stop_requested = group, stop_requested
        self.parts, self.until = 0, 1  # parts since the last exchange, and at the next
        self.at = time.monotonic()

    def __call__(self) -> None:
        self.parts += 1
        if self.parts == self.until:
            self.exchange(int(EVERY * self.parts / max(1e-9, time.monotonic() - self.at)))

    def exchange(self, parts: int) -> None:
        """Stop if any process was asked to; else the next exchange is after the first process's number of `parts`.

        Raises:
            CutShort: in all processes.
        """
        flags = [int(self.stop_requested()), max(1, min(parts, MOST)) * self.group.first]
        requested, self.until = self.group.all_max(flags)
        if requested:
            raise CutShort
        self.parts, self.at = 0, time.monotonic()


@contextlib.contextmanager
def stoppable(group: Group, stop_requested: Callable[[], bool]) -> Iterator[None]:
    """A context that all processes enter and leave together. Inside it `group.pause()` raises CutShort in all of them
    once any was asked to stop. Only for work that can be abandoned at any pause.

    Raises:
        CutShort: on entering, if a process was asked to stop before.
    """
    pauses, before = Pauses(group, stop_requested), group.pause
    pauses.exchange(1)
    group.pause = pauses
    try:
        yield
    finally:
        group.pause = before
