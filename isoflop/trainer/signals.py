"""Signals stop a run between two steps, with everything saved."""

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
        signum: the signal. A shell reads exit code 128 + signum as "ended by this signal": preempted, not failed.
        step: the step from which the run resumes.
        folder: the run folder.
    """

    def __init__(self, signum: int, step: int, folder: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}")
        self.signum = signum
        self.exit_code = 128 + signum
        self.step = step
        self.folder = folder


RESTART = 1 << 10  # not the number of a signal: a hook asks the run to end here and start again


class Restarting(Exception):
    """The run ended between two steps, in all its processes, to start again with another plan (job/attempts.py).

    Attributes:
        step: optimiser steps done; seconds: of training.
    """

    def __init__(self, step: int, seconds: float) -> None:
        super().__init__(f"restarts with another plan after step {step}")
        self.step, self.seconds = step, seconds


class Signals:
    """A context in which SIGINT, SIGTERM and SIGHUP (a closed terminal) are stored in `received`; a second one ends the
    process at once. An ignored signal, as SIGHUP under nohup, stays ignored.

    The run checks `received` between steps, so the save has to wait for at most the current step, a checkpoint that is
    being written, and its own. Longer work, evaluation and sampling, is cut short.

    Args:
        echo: seconds in which another signal counts as the same one. A Ctrl-C reaches torchrun and, if the processes
            belong to the terminal's group, these as well; torchrun then forwards its own.
    """

    CAUGHT = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __init__(self, echo: float = 0.0) -> None:
        self.received: int | None = None
        self._echo, self._received_at = echo, 0.0
        self._cutting = False
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            caught = [number for number in self.CAUGHT if signal.getsignal(number) != signal.SIG_IGN]
            self._previous_handlers = {number: signal.signal(number, self._note) for number in caught}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and self.received != RESTART:
            if time.monotonic() - self._received_at >= self._echo:
                os._exit(128 + signum)
            return
        self.received, self._received_at = signum, time.monotonic()
        if self._cutting:
            raise CutShort

    @contextlib.contextmanager
    def cut_short(self) -> Iterator[None]:
        """A context in which a signal raises CutShort at once; only for work that can be abandoned at any point.

        Raises:
            CutShort: when a signal arrives, or on entering if one arrived before.
        """
        self._cutting = True
        try:
            if self.received is not None:
                raise CutShort
            yield
        finally:
            self._cutting = False
