"""Holding a run to its seconds: when the clock drifts from the calibration, the end of the run moves.

The learning rate stays a pure function of the step and of the decisions on record (optim/schedules.py); here is only
the rule by which a decision is made. It looks at nothing but how long the steps took.
"""

from dataclasses import dataclass

from isoflop.optim.schedules import Decision, Timetable

FIRST_LOOK = 0.05  # share of the run after which its own speed is a better guide than the calibration
LATE = 0.8  # share of the run after which little room is left to be right
BETWEEN, BETWEEN_LATE = 0.05, 0.01  # share of the run between two looks: seldom, so that noise is not answered
TOLERANCE = 0.02  # of the whole budget; the promise is 5 %, and a late decision has less room to be right
TOLERANCE_LATE = 0.01  # in the last fifth
RECENT = (
    0.35  # share of the elapsed time from which the speed is read: long enough to be steady, short enough to follow
)


@dataclass
class Pace:
    """Reads the clock at even distances and says when the end has to move.

    Attributes:
        seconds: the training time that the run is held to.
    """

    seconds: float

    def __post_init__(self) -> None:
        self._marks: list[tuple[int, float]] = []
        self._next_look = 0.0

    def look(self, step: int, elapsed: float, timetable: Timetable) -> Decision | None:
        """The decision that is due after `step` steps and `elapsed` seconds of training, if any."""
        self._marks.append((step, elapsed))
        progress = timetable.progress(step)
        if step >= timetable.total_steps or progress < max(FIRST_LOOK, self._next_look):
            return None
        late = progress > LATE
        self._next_look = progress + (BETWEEN_LATE if late else BETWEEN)

        # the speed of late
        since = next(mark for mark in self._marks if mark[1] >= (1 - RECENT) * elapsed)
        if since[0] == step:
            since = self._marks[0]
        if since[0] == step:
            return None
        self._marks = [mark for mark in self._marks if mark[1] >= since[1]]
        per_step = (elapsed - since[1]) / (step - since[0])

        # does the run end in time at that speed?
        ends = elapsed + (timetable.total_steps - step) * per_step
        tolerance = TOLERANCE_LATE if late else TOLERANCE
        if abs(ends - self.seconds) <= tolerance * self.seconds:
            return None
        steps = step + max(1, round((self.seconds - elapsed) / per_step))
        if steps == timetable.total_steps:
            return None
        return Decision(
            at_step=step,
            steps=steps,
            reason=f"at {in_words(per_step)} a step it would have ended at {ends:.0f} s, not {self.seconds:.0f} s",
        )


def in_words(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
