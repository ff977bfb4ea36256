import pytest

from isoflop.optim.config import ScheduleConfig
from isoflop.optim.timetable import Timetable
from isoflop.trainer.pace import Pace


def drive(planned: int, budget: float, seconds_of_step):
    """Run the clock without a model: the seconds at the end, the timetable, and the scales that the steps had."""
    timetable, pace, elapsed, step, scales = Timetable(ScheduleConfig(), planned), Pace(budget), 0.0, 0, []
    while step < timetable.total_steps:
        scales.append(timetable.scale(step))
        elapsed += seconds_of_step(step)
        step += 1
        if decision := pace.check(step, elapsed, timetable):
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


COSTS = {"evaluate": 0.4, "sample": 2.5, "checkpoint": 0.6}


def drive_with_hooks(planned, budget, seconds_of_step, costs, shares):
    """`drive` with measurements, samples and checkpoints next to the steps, each so many times and at the end."""
    every = {name: -(-planned // times) for name, times in shares.items()}
    timetable, pace, elapsed, aside, step = Timetable(ScheduleConfig(), planned), Pace(budget, every), 0.0, 0.0, 0
    while step < timetable.total_steps:
        elapsed += seconds_of_step(step)
        step += 1
        decision = pace.check(step, elapsed, timetable, aside)
        timetable = timetable.decide(decision) if decision else timetable
        done = step >= timetable.total_steps
        due = [name for name in every if step % every[name] == 0 or done]
        spent = sum(costs[name] for name in due)
        elapsed, aside = elapsed + spent, aside + spent
        if due:
            pace.record_cost(due, spent)
    return elapsed


@pytest.mark.parametrize("speed", [0.5, 0.9, 1.0, 1.2, 2.9])
def test_work_outside_the_steps_is_planned_for(speed):
    shares = {"evaluate": 12, "sample": 3, "checkpoint": 10}
    elapsed = drive_with_hooks(1500, 60.0, lambda step: 0.03 * speed, COSTS, shares)
    assert abs(elapsed - 60.0) < 3.0


@pytest.mark.parametrize("sample", [0.5, 4.0])
def test_a_long_final_evaluation_is_inside_the_budget(sample):
    shares = {"evaluate": 12, "sample": 3, "checkpoint": 10}
    elapsed = drive_with_hooks(1526, 60.0, lambda step: 0.0369, {**COSTS, "sample": sample}, shares)
    assert abs(elapsed - 60.0) < 3.0


def test_costs_are_tracked_separately():
    pace = Pace(60.0, {"evaluate": 10, "sample": 20, "checkpoint": 0})
    pace.record_cost(["evaluate"], 1.0)
    pace.record_cost(["evaluate", "sample"], 4.0)
    assert pace.remaining_cost(20, 45) == pytest.approx(3 * 1.0 + 2 * 3.0)  # at 30, 40 and 45; at 40 and 45
    assert pace.remaining_cost(45, 45) == pytest.approx(1.0 + 3.0)  # the end itself
