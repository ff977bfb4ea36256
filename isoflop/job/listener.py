"""Who is told what while a job works, and what each of its phases took."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from isoflop.data.prepare import Progress
from isoflop.plan.advice import Advice
from isoflop.records import DataAccount
from isoflop.trainer.hooks import Hook

PILOTS = "pilots"  # the phase in which they are made


def nothing(*_: Any) -> None:
    """A listener that does not listen."""


@dataclass
class Listener:
    """Who is told what while a job works.

    Attributes:
        say: gets one line of text at a time.
        progress: told how far the preparation of the data is.
        prepared: gets the account of the data when they are prepared.
        planned: gets the plan before it is carried out.
        hooks: told of every step.
        peak: told the machine's measured FLOP/s before training.
    """

    say: Callable[[str], None] = nothing
    progress: Progress | None = None
    prepared: Callable[[DataAccount], None] = nothing
    planned: Callable[[Advice], None] = nothing
    hooks: Sequence[Hook] = ()
    peak: Callable[[float], None] = nothing


@dataclass
class Phases:
    """Seconds by phase; preparation, calibration, the final measurement and the report are outside the budget, pilots
    and training inside."""

    seconds: dict[str, float] = field(default_factory=dict)

    def time(self, name: str) -> "Stopwatch":
        return Stopwatch(self, name)


@dataclass
class Stopwatch:
    phases: Phases
    name: str

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        spent = time.monotonic() - self.started
        self.phases.seconds[self.name] = round(self.phases.seconds.get(self.name, 0.0) + spent, 2)


def seconds_line(phases: Phases) -> str:
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases.seconds.items() if name != PILOTS)
    inside = f"; inside it: {PILOTS} {phases.seconds[PILOTS]:.1f} s" if PILOTS in phases.seconds else ""
    return f"outside the budget: {spent}{inside}"
