"""Signals: how they stop a run, between two steps and with everything saved."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

from isoflop.parallel.failures import CutShort


class Interrupted(Exception):
    """A signal asked the run to stop; everything is saved.

    Attributes:
        signum: the signal. A shell reads 128 + signum as "ended by this signal": preempted, not failed.
        step: the step that the run goes on from.
        folder: the run folder.
    """

    def __init__(self, signum: int, step: int, folder: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}")
        self.signum = signum
        self.exit_code = 128 + signum
        self.step = step
        self.folder = folder


RESTART = 1 << 10  # a number that no signal has: a hook asks the run to end here and begin anew


class Restarting(Exception):
    """The run ended between two steps, in all its processes, to begin anew with another plan (job/attempts.py).

    Attributes:
        step, seconds: that were taken, of training.
    """

    def __init__(self, step: int, seconds: float) -> None:
        super().__init__(f"begins anew after step {step}")
        self.step, self.seconds = step, seconds


class Signals:
    """Within this context SIGINT, SIGTERM and SIGHUP (a closed terminal) are noted in `received`; a second one ends the
    process at once. One that is ignored, as SIGHUP is under nohup, stays so.

    The run looks at `received` between steps, so that it is saved within a step, a checkpoint that is being written and
    its own. What could take longer, measuring and sampling, is cut short.

    Args:
        echo: seconds in which a further one is the first once more. A Ctrl-C reaches torchrun and, where the processes
            are of the terminal's group too, these; torchrun then passes its own on.
    """

    CAUGHT = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __init__(self, echo: float = 0.0) -> None:
        self.received: int | None = None
        self._echo, self._at = echo, 0.0
        self._cuts = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            heard = [number for number in self.CAUGHT if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and self.received != RESTART:
            if time.monotonic() - self._at >= self._echo:
                os._exit(128 + signum)
            return
        self.received, self._at = signum, time.monotonic()
        if self._cuts:
            raise CutShort

    @contextlib.contextmanager
    def cut_short(self) -> Iterator[None]:
        """Within this, a signal raises CutShort at once, also one that came before: only for work that leaves nothing
        half done behind.

        Raises:
            CutShort: when a signal comes.
        """
        self._cuts = True
        try:
            if self.received is not None:
                raise CutShort
            yield
        finally:
            self._cuts = False
