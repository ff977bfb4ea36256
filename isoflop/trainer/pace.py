"""Keeps a run within its budget in seconds: when the speed drifts from the calibration, the end of the run moves.

The learning rate remains a pure function of the step and of the recorded decisions (optim/timetable.py); this module
only makes the decisions. They depend on the time that steps took, and on the work between steps: each evaluation, set
of samples and checkpoint still due is expected to cost what it cost so far.

Where steps grow (trainer/batch.py), the time of the coming ones is not known yet, but bounded: none takes less than the
recent ones, and none takes longer per token, times its context over theirs. The end moves only if the run would miss
its budget by both bounds, and then to where the nearer one says. When the steps have stopped growing, both are equal.
"""

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from isoflop.optim.timetable import Decision, Timetable
from isoflop.trainer.batch import Sizes

FIRST_LOOK = 0.05  # share of the run after which its own speed predicts better than the calibration
LATE = 0.8  # share of the run after which little time is left to correct an error
BETWEEN, BETWEEN_LATE = 0.05, 0.01  # share of the run between two checks: few, so that noise causes no decisions
TOLERANCE = 0.02  # of the budget; we promise 5 %, and a late decision has less time to correct an error
TOLERANCE_LATE = 0.01  # after LATE
RECENT = 0.35  # share of the elapsed time over which speed is measured: long enough to be steady, short enough to adapt
ALIKE = 8  # steps of the same size from which their speed is measured without earlier, smaller ones
EVEN = Sizes(((0, 0, 1),))


@dataclass
class Pace:
    """Checks the clock at regular intervals and decides when the end has to move.

    Attributes:
        seconds: the budget of training time.
        every: kinds of work between steps, by name: the interval in steps (0: never). Each is also done at the end.
        sizes: of the steps.
    """

    seconds: float
    every: Mapping[str, int] = field(default_factory=dict)
    sizes: Sizes = EVEN

    def __post_init__(self) -> None:
        self._marks: list[tuple[int, float]] = []
        self._next_look = 0.0
        self._costs: dict[str, float] = {}

    @property
    def even(self) -> bool:
        """Whether all steps are alike."""
        return len(self.sizes.levels) == len(self.sizes.stages) == 1

    def record_cost(self, due: Sequence[str], seconds: float) -> None:
        """Record the kinds of work that were done after a step, and their total time. The known cost of some is
        subtracted to get that of the others."""
        known_cost = sum(self._costs.get(name, 0.0) for name in due)
        unknown = [name for name in due if name not in self._costs]
        for name in due:
            if name in unknown:
                self._costs[name] = max(0.0, seconds - known_cost) / len(unknown)
            elif not unknown and known_cost:
                self._costs[name] *= 0.5 + 0.5 * seconds / known_cost  # average of the old and the new cost

    def remaining_cost(self, step: int, total: int) -> float:
        """Seconds of all work between steps that is still due until the end at step `total`."""
        return sum(
            cost * (total // every - step // every + bool(total % every))
            for name, cost in self._costs.items()
            if (every := self.every.get(name, 0))
        )

    def check(self, step: int, elapsed: float, timetable: Timetable, aside_seconds: float = 0.0) -> Decision | None:
        """The decision that is due after `step` steps and `elapsed` seconds of training, if any.

        Args:
            aside_seconds: the part of `elapsed` that was not spent on steps.
        """
        stepping = elapsed - aside_seconds
        self._marks.append((step, stepping))
        progress = timetable.progress(step)
        if not self.even:  # small first steps: much of the time may have passed before much was read
            progress = max(progress, elapsed / self.seconds)
        if step >= timetable.total_steps or progress < max(FIRST_LOOK, self._next_look):
            return None
        late = progress > LATE
        self._next_look = progress + (BETWEEN_LATE if late else BETWEEN)

        # recent speed, per step and per unit of work
        start = next(mark for mark in self._marks if mark[1] >= (1 - RECENT) * stepping)
        if start[0] == step:
            start = self._marks[0]
        alike = self.sizes.since(step - 1)
        if start[0] < alike <= step - ALIKE:
            start = next(mark for mark in self._marks if mark[0] >= alike)
        if start[0] == step:
            return None
        self._marks = [mark for mark in self._marks if mark[1] >= start[1]]
        recent = stepping - start[1]
        per_step = recent / (step - start[0])
        least, most = self.bounds(step, per_step, recent / (self.sizes.work(step) - self.sizes.work(start[0])))

        # when does the run end at that speed?
        remaining_cost = self.remaining_cost(step, timetable.total_steps)
        earliest, latest = (elapsed + bound(timetable.total_steps) + remaining_cost for bound in (least, most))
        tolerance = (TOLERANCE_LATE if late else TOLERANCE) * self.seconds
        if earliest - tolerance <= self.seconds <= latest + tolerance:
            return None
        stepping_until, predicted_end = (least, earliest) if earliest > self.seconds else (most, latest)
        time_left = max(0.0, self.seconds - elapsed)

        def seconds_until(steps: int) -> float:
            return stepping_until(steps) + self.remaining_cost(step, steps)

        # the last end within the budget, or the next one if it is nearer to the budget (it may have one more sample)
        candidates = range(step + 1, step + 2 + int(time_left / per_step))
        within = max(bisect.bisect_right(candidates, time_left, key=seconds_until), 1)
        steps = min(
            candidates[within - 1], candidates[within - 1] + 1, key=lambda steps: abs(seconds_until(steps) - time_left)
        )
        if steps == timetable.total_steps:
            return None
        return Decision(
            at_step=step,
            steps=steps,
            reason=f"at {format_seconds(per_step)} per step it would have ended at {predicted_end:.0f} s, "
            f"not {self.seconds:.0f} s",
        )

    def bounds(self, step: int, per_step: float, per_unit: float) -> tuple[Callable[[int], float], ...]:
        """The least and the most seconds of the steps from `step` on up to another one, at the recent speed.

        Args:
            per_step: recent seconds per step.
            per_unit: recent seconds per unit of Sizes.work.
        """
        if self.even:
            return (lambda end: (end - step) * per_step,) * 2
        done = self.sizes.work(step)
        return lambda end: (end - step) * per_step, lambda end: (self.sizes.work(end) - done) * per_unit


def format_seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
