"""Progress reports of a job, and the duration of its phases."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from isoflop.data.prepare import Progress
from isoflop.plan.advice import Advice
from isoflop.records import DataAccount
from isoflop.trainer.hooks import Hook

PILOTS = "pilots"  # the phase in which pilots are made


def ignore(*_: Any) -> None:
    """Does nothing."""


@dataclass
class Listener:
    """Receives the progress reports of a job.

    Attributes:
        say: called with one line of text at a time.
        progress: called with the progress of data preparation.
        prepared: called with the account of the data once they are prepared.
        planned: called with the plan before it is trained.
        hooks: hooks of the training loop.
        peak: called with the machine's peak FLOP/s before training.
    """

    say: Callable[[str], None] = ignore
    progress: Progress | None = None
    prepared: Callable[[DataAccount], None] = ignore
    planned: Callable[[Advice], None] = ignore
    hooks: Sequence[Hook] = ()
    peak: Callable[[float], None] = ignore


@dataclass
class Phases:
    """Seconds per phase. Pilots and training count towards the budget; preparation, calibration, the final evaluation
    and the report do not."""

    seconds: dict[str, float] = field(default_factory=dict)

    def time(self, name: str) -> "Stopwatch":
        return Stopwatch(self, name)


@dataclass
class Stopwatch:
    """A context that adds its duration to a phase."""

    phases: Phases
    name: str

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        spent = time.monotonic() - self.started
        self.phases.seconds[self.name] = round(self.phases.seconds.get(self.name, 0.0) + spent, 2)


def phases_line(phases: Phases) -> str:
    """The durations of the phases before training, in words."""
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases.seconds.items() if name != PILOTS)
    inside = f"; inside it: {PILOTS} {phases.seconds[PILOTS]:.1f} s" if PILOTS in phases.seconds else ""
    return f"outside the budget: {spent}{inside}"
