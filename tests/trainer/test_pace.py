import bisect

import pytest

from isoflop.optim.config import ScheduleConfig
from isoflop.optim.timetable import Timetable
from isoflop.trainer.batch import BatchConfig
from isoflop.trainer.pace import EVEN, Pace


def drive(planned: int, budget: float, seconds_of_step, sizes=EVEN):
    """Run the clock without a model: the seconds at the end, the timetable, and the scales that the steps had."""
    timetable = Timetable(ScheduleConfig(), planned, read=sizes.before)
    pace, elapsed, step, scales = Pace(budget, sizes=sizes), 0.0, 0, []
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


GROWING = {
    "ramp": BatchConfig(16, ramp_from=2, ramp_share=0.3),
    "one long ramp": BatchConfig(8, ramp_from=1, ramp_share=1.0),
    "context": BatchConfig(16, context_from=32, context_share=0.5),
    "both": BatchConfig(16, ramp_from=4, ramp_share=0.4, context_from=64, context_share=0.6),
}


@pytest.mark.parametrize("fixed", [0.0, 2.0])
@pytest.mark.parametrize("wrong", [0.5, 1.0, 1.8])
@pytest.mark.parametrize("name", GROWING)
def test_a_run_whose_steps_grow_ends_within_five_percent(name, wrong, fixed):
    """Whatever share of a step does not depend on its size (`fixed`, over the time of the tokens), and however wrong
    the planned steps are."""
    batch, context, budget = GROWING[name], 256, 100.0

    def seconds(sizes, step):
        sequences, length = sizes.at(step) / batch.sequences, sizes.context(step) / context
        return 0.2 * (fixed + sequences * (0.8 + 0.2 * length))

    def seconds_of(planned):
        sizes = batch.sizes(context, planned)
        return sum(seconds(sizes, step) for step in range(planned))

    planned = 1 + bisect.bisect_left(range(1, 2000), budget, key=seconds_of)  # if all of this were known
    sizes = batch.sizes(context, round(planned * wrong))
    elapsed, timetable, scales = drive(round(planned * wrong), budget, lambda step: seconds(sizes, step), sizes)
    assert abs(elapsed - budget) < 0.05 * budget
    assert scales[-1] < 0.1  # of few and long steps
    if wrong == 1.0 and name != "one long ramp":
        assert len(timetable.decisions) <= 1  # no bound is trusted beyond what it says


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
