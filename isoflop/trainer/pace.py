"""Keeps a run within its budget in seconds: when the speed drifts from the calibration, the end of the run moves.

The learning rate remains a pure function of the step and of the recorded decisions (optim/schedules.py); this module
only makes the decisions. They depend on how long steps took, and on the work between them: evaluations, samples and
checkpoints are expected to cost what they cost so far, as often as they are still due.
"""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from isoflop.optim.schedules import Decision, Timetable

FIRST_LOOK = 0.05  # share of the run after which its own speed predicts better than the calibration
LATE = 0.8  # share of the run after which little time is left to correct an error
BETWEEN, BETWEEN_LATE = 0.05, 0.01  # share of the run between two checks: rare, so that noise causes no decisions
TOLERANCE = 0.02  # of the budget; the promise is 5 %, and a late decision has less time to correct an error
TOLERANCE_LATE = 0.01  # in the last fifth
RECENT = 0.35  # share of the elapsed time over which speed is measured: long enough to be steady, short enough to adapt


@dataclass
class Pace:
    """Checks the clock at regular intervals and decides when the end has to move.

    Attributes:
        seconds: the budget of training time.
        every: work between steps by name: every how many steps (0: never); it is also done at the end.
    """

    seconds: float
    every: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._marks: list[tuple[int, float]] = []
        self._next_look = 0.0
        self._costs: dict[str, float] = {}

    def spent(self, due: Sequence[str], seconds: float) -> None:
        """Record the work that was done after a step and its total time. The known cost of some of it is subtracted to
        get that of the others."""
        known = sum(self._costs.get(name, 0.0) for name in due)
        new = [name for name in due if name not in self._costs]
        for name in due:
            if name in new:
                self._costs[name] = max(0.0, seconds - known) / len(new)
            elif not new and known:
                self._costs[name] *= 0.5 + 0.5 * seconds / known  # average of the old and the new cost

    def to_come(self, step: int, total: int) -> float:
        """Seconds of all work between steps that is still due until the end at step `total`."""
        return sum(
            cost * (total // every - step // every + bool(total % every))
            for name, cost in self._costs.items()
            if (every := self.every.get(name, 0))
        )

    def look(self, step: int, elapsed: float, timetable: Timetable, aside: float = 0.0) -> Decision | None:
        """The decision that is due after `step` steps and `elapsed` seconds of training, if any.

        Args:
            aside: those of these seconds that were not spent on steps.
        """
        stepping = elapsed - aside
        self._marks.append((step, stepping))
        progress = timetable.progress(step)
        if step >= timetable.total_steps or progress < max(FIRST_LOOK, self._next_look):
            return None
        late = progress > LATE
        self._next_look = progress + (BETWEEN_LATE if late else BETWEEN)

        # recent speed
        since = next(mark for mark in self._marks if mark[1] >= (1 - RECENT) * stepping)
        if since[0] == step:
            since = self._marks[0]
        if since[0] == step:
            return None
        self._marks = [mark for mark in self._marks if mark[1] >= since[1]]
        per_step = (stepping - since[1]) / (step - since[0])

        # when does the run end at that speed?
        to_come = self.to_come(step, timetable.total_steps)
        ends = elapsed + (timetable.total_steps - step) * per_step + to_come
        tolerance = TOLERANCE_LATE if late else TOLERANCE
        if abs(ends - self.seconds) <= tolerance * self.seconds:
            return None
        left = max(0.0, self.seconds - elapsed)

        def takes(steps: int) -> float:
            return (steps - step) * per_step + self.to_come(step, steps)

        # the last end within the budget, or the next one if it is nearer to the budget (it may have one more sample)
        ends_at = range(step + 1, step + 2 + int(left / per_step))
        first_late = max(bisect.bisect_right(ends_at, left, key=takes), 1)
        steps = min(ends_at[first_late - 1], ends_at[first_late - 1] + 1, key=lambda steps: abs(takes(steps) - left))
        if steps == timetable.total_steps:
            return None
        return Decision(
            at_step=step,
            steps=steps,
            reason=f"at {in_words(per_step)} per step it would have ended at {ends:.0f} s, not {self.seconds:.0f} s",
        )


def in_words(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
