"""The progress of each step through the schedule; shapes of schedules are in table.py.

The learning rate is a pure function of the run's progress u, from 0 to 1: the share of the planned tokens that were
read, u = step / steps if all steps read the same number. A decision, made when the clock drifts or the budget grows,
changes the map from steps to u from one step on and nothing before it; the final decay moves with it. The plan and
the list of decisions determine every step's rate, so `--resume` replays the file of decisions and needs no other
state.
"""

import bisect
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from isoflop.config import from_dict, to_dict
from isoflop.errors import UserError
from isoflop.optim.config import ScheduleConfig
from isoflop.records import DecisionLine

MOST_STEPS = 10**15


@dataclass(frozen=True)
class Decision:
    """From `at_step` on, progress grows linearly to 1 at `steps`.

    Attributes:
        at_step: the first step (0-based) to which it applies.
        steps: the run's new length in steps.
        progress: u at `at_step`; None keeps the run's u. An extension sets it, to return to before the decay.
        reason: one line for the report.

    Raises:
        UserError: if the end is not after `at_step`, or `progress` is outside [0, 1).
    """

    at_step: int
    steps: int
    progress: float | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.at_step < 0:
            raise UserError(f"decision.at_step = {self.at_step} is negative")
        if self.steps > MOST_STEPS:
            raise UserError(f"decision.steps = {self.steps} is larger than {MOST_STEPS}")
        if self.steps <= self.at_step:
            raise UserError(f"decision.steps = {self.steps} is not after the step it is taken at, {self.at_step}")
        if self.progress is not None and not 0.0 <= self.progress < 1.0:
            raise UserError(f"decision.progress = {self.progress} is not in [0, 1)")

    def line(self, time: float, seconds: float | None = None) -> DecisionLine:
        """The line of decisions.jsonl, written at `time` (Unix seconds); `seconds`: see DecisionLine."""
        return DecisionLine(
            at_step=self.at_step,
            steps=self.steps,
            progress=self.progress,
            reason=self.reason,
            seconds=seconds,
            time=time,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values, to be sent to other processes."""
        plain: dict[str, Any] = to_dict(self)
        return plain

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Decision":
        """Read a line of decisions.jsonl. Its other fields, such as the time, are ignored.

        Raises:
            UserError: for a missing field or a wrong type.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        return from_dict(cls, {name: data[name] for name in names if name in data}, "decision")


@dataclass(frozen=True)
class Segment:
    """u grows from `u` at step `start` to 1 at step `end`, linearly in the tokens read."""

    start: int
    u: float
    end: int

    def progress(self, step: int, read: Callable[[int], int]) -> float:
        if step >= self.end:
            return 1.0
        start = read(self.start)
        return min(1.0, self.u + (1.0 - self.u) * ((read(step) - start) / (read(self.end) - start)))


def same_each(step: int) -> int:
    """Tokens read before a step, in units of a step's tokens, if all steps read the same number."""
    return step


def equal_rates(step: int) -> float:
    """The factor of a step on the learning rates because of its batch, if all steps have the same."""
    return 1.0


@dataclass(frozen=True)
class Timetable:
    """The learning rate's factor at every step.

    Attributes:
        config: the shape.
        steps: optimiser steps planned at the start.
        decisions: in the order taken.
        read: tokens read before a step, in any unit; strictly increasing.
        rates: a further factor of each step, for a smaller batch.

    Raises:
        UserError: if there are no steps, or a decision is before an earlier one, after the run's end, or at its end
            without a `progress`.
    """

    config: ScheduleConfig
    steps: int
    decisions: tuple[Decision, ...] = ()
    read: Callable[[int], int] = same_each
    rates: Callable[[int], float] = equal_rates

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps = {self.steps} is less than one: give the run a larger budget")
        for before, after in zip(self.decisions, self.decisions[1:], strict=False):
            if after.at_step < before.at_step:
                raise UserError(
                    f"decision.at_step = {after.at_step} comes before that of an earlier one, {before.at_step}"
                )
        _ = self.segments

    def decide(self, decision: Decision) -> "Timetable":
        """The timetable with one more decision."""
        return dataclasses.replace(self, decisions=(*self.decisions, decision))

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The pieces of the map from steps to u, in order; each holds until the next one starts."""
        pieces = [Segment(0, 0.0, self.steps)]
        for decision in self.decisions:
            if decision.at_step > pieces[-1].end:
                raise UserError(f"decision.at_step = {decision.at_step} is after the run's end, {pieces[-1].end}")
            u = pieces[-1].progress(decision.at_step, self.read) if decision.progress is None else decision.progress
            if u >= 1.0:
                raise UserError(
                    f"decision.at_step = {decision.at_step} is at the run's end: set decision.progress to continue"
                )
            pieces.append(Segment(decision.at_step, u, decision.steps))
        return tuple(pieces)

    @property
    def total_steps(self) -> int:
        """The run's length after all decisions."""
        return self.segments[-1].end

    @cached_property
    def warmup_steps(self) -> int:
        """Steps until the full rate, rounded to the nearest number. It depends on the plan only, so that decisions do
        not change earlier steps."""
        wanted = self.config.warmup * self.read(self.steps)
        over = bisect.bisect_left(range(self.steps), wanted, key=self.read)
        return max(1, min((max(over - 1, 0), over), key=lambda steps: (abs(self.read(steps) - wanted), steps % 2)))

    @property
    def decay_step(self) -> int | None:
        """The first step below the full rate in the final decay; None if the schedule has no such stage.

        A checkpoint after this many steps is the last from which an extension wastes no step.
        """
        if not self.config.entry.stable:
            return None
        # u only falls at decisions that set it back, so bisection is correct from the last of these on.
        start = max((d.at_step for d in self.decisions if d.progress is not None), default=0)
        steps = range(start, self.total_steps)
        first = start + bisect.bisect_left(steps, True, key=lambda step: self.shape(self.progress(step)) < 1.0)
        return first if first < self.total_steps else None

    def progress(self, step: int) -> float:
        """u of a step (0-based): 0 at the start, 1 from the end on."""
        index = bisect.bisect_right(self.segments, step, key=lambda segment: segment.start) - 1
        return self.segments[max(index, 0)].progress(step, self.read)

    def scale(self, step: int) -> float:
        """The factor on every group's peak learning rate at a step (0-based). It is above 0 at every step of the run:
        a floor of 0 is reached only at the end, after the last step."""
        warmup = min(1.0, self.read(step + 1) / self.read(self.warmup_steps))
        return warmup * self.shape(self.progress(step)) * self.rates(step)

    def shape(self, u: float) -> float:
        """The factor without the warm-up: 1 at u = 0, never rising."""
        return self.config.entry.shape(u)
