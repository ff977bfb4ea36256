"""Where several processes may stop in the middle of long work that all do alike: measuring, sampling.

One that stopped by itself would leave the others waiting for it. So all call `group.pause()` after each part of the
work, and about every second, by the first one's clock, they exchange whether any of them was asked to stop: then all
stop after the same part. A pause without an exchange costs nothing.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

from isoflop.parallel.failures import CutShort
from isoflop.parallel.mesh import Group

EVERY = 1.0  # seconds between two exchanges, where a part is not longer
MOST = 1000  # parts between two of them


class Pauses:
    """What `Group.pause` is while long work is done.

    Args:
        asked: whether this process was asked to stop.
    """

    def __init__(self, group: Group, asked: Callable[[], bool]) -> None:
        self.group, self.asked = group, asked
        self.parts, self.until = 0, 1  # since the last exchange, and to the next
        self.at = time.monotonic()

    def __call__(self) -> None:
        self.parts += 1
        if self.parts == self.until:
            self.exchange(int(EVERY * self.parts / max(1e-9, time.monotonic() - self.at)))

    def exchange(self, parts: int) -> None:
        """Stop if any was asked to; else the next exchange comes after so many parts, as the first process says.

        Raises:
            CutShort: in all.
        """
        asked, self.until = self.group.all_max([int(self.asked()), max(1, min(parts, MOST)) * self.group.first])
        if asked:
            raise CutShort
        self.parts, self.at = 0, time.monotonic()


@contextlib.contextmanager
def stoppable(group: Group, asked: Callable[[], bool]) -> Iterator[None]:
    """Within this, which all enter and leave together, `group.pause()` raises CutShort in all once any of them was
    asked to stop; entering does, where that was before.

    Raises:
        CutShort: only for work that leaves nothing half done behind.
    """
    pauses, before = Pauses(group, asked), group.pause
    pauses.exchange(1)
    group.pause = pauses
    try:
        yield
    finally:
        group.pause = before
