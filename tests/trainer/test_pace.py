import pytest

from isoflop.optim.config import ScheduleConfig
from isoflop.optim.schedules import Timetable
from isoflop.trainer.pace import Pace


def drive(planned: int, budget: float, seconds_of_step):
    """Run the clock without a model: the seconds at the end, the timetable, and the scales that the steps had."""
    timetable, pace, elapsed, step, scales = Timetable(ScheduleConfig(), planned), Pace(budget), 0.0, 0, []
    while step < timetable.total_steps:
        scales.append(timetable.scale(step))
        elapsed += seconds_of_step(step)
        step += 1
        if decision := pace.look(step, elapsed, timetable):
            timetable = timetable.decide(decision)
    return elapsed, timetable, scales


@pytest.mark.parametrize("speed", [0.4, 0.8, 0.97, 1.0, 1.04, 1.3, 2.5])
def test_a_wrong_calibration_still_ends_within_five_percent(speed):
    elapsed, timetable, scales = drive(2000, 100.0, lambda step: 0.05 * speed)
    assert abs(elapsed - 100.0) < 5.0
    assert scales[-1] < 0.05  # the decay reaches its end all the same
    assert all(Timetable(ScheduleConfig(), 2000, timetable.decisions).scale(i) == s for i, s in enumerate(scales))


@pytest.mark.parametrize("late", [0.5, 0.75, 0.9])
def test_a_machine_that_slows_down_late_still_ends_within_five_percent(late):
    elapsed, _, _ = drive(2000, 100.0, lambda step: 0.05 if step < 2000 * late else 0.075)
    assert abs(elapsed - 100.0) < 5.0


def test_a_steady_machine_needs_no_decision():
    assert drive(2000, 100.0, lambda step: 0.05 * (1 + 0.01 * (step % 3 - 1)))[1].decisions == ()
