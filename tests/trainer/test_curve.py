"""The forecast of a run's final loss from its curve: properties that hold for any prior."""

import math
from dataclasses import replace

import numpy as np
import pytest

from isoflop.optim.config import ScheduleConfig
from isoflop.optim.timetable import Decision, Timetable
from isoflop.trainer.curve import Observed, extrapolate
from isoflop.trainer.curve_law import PRIOR, Schedule
from isoflop.trainer.decay_probe import LAG
from isoflop.trainer.running_forecast import sample_schedule

STEPS = 1000
WSD = ScheduleConfig(name="wsd", warmup=0.02, decay=0.3)
COSINE = ScheduleConfig(name="cosine", warmup=0.02, floor=0.1)
CONSTANT = ScheduleConfig(name="constant", warmup=0.02)


def course(config: ScheduleConfig = WSD, steps: int = STEPS, epochs: float = 0.5) -> Schedule:
    return sample_schedule(Timetable(config, steps), epochs)


def losses_on(schedule: Schedule, steps, seed=0, noise=0.02, scale=3.0, alpha=0.4, repeat=0.0, gap=0.0):
    """Losses as the law has them with coefficients in the middle of the prior."""
    area, end = schedule.area(steps), schedule.area(np.array([schedule.end]))[0]
    fall = (np.maximum(area, 1e-9) / end) ** -alpha
    drop = PRIOR.drop + PRIOR.steeper * alpha * (1 - PRIOR.floor)
    law = PRIOR.floor + (1 - PRIOR.floor) * fall - drop * schedule.decay_effect(steps, PRIOR.onset)
    law = law + repeat * schedule.repeated_epochs(steps) + gap
    return scale * (law + noise * np.random.default_rng(seed).normal(size=len(steps)))


def seen_on(schedule: Schedule, seed=0, **law) -> Observed:
    """Every step's training loss, and 12 held-out ones."""
    steps = np.arange(1.0, schedule.end + 1)
    measured = np.linspace(schedule.end / 12, schedule.end, 12).round()
    law = {"scale": 3.0, "alpha": 0.4, **law}
    training = losses_on(schedule, steps, seed, 0.02, gap=0.03, **{k: v for k, v in law.items() if k != "repeat"})
    return Observed(steps, training, measured, losses_on(schedule, measured, seed + 1, 0.002, **law))


@pytest.mark.parametrize("config", [WSD, COSINE, CONSTANT], ids=["wsd", "cosine", "constant"])
def test_a_curve_that_follows_the_law_is_forecast_and_the_interval_narrows(config):
    schedule = course(config)
    widths, held, errors = {share: [] for share in (0.25, 0.5, 0.9)}, [], []
    for seed in range(10):
        seen = seen_on(schedule, 10 * seed)
        truth = losses_on(schedule, np.array([schedule.end]), noise=0.0)[0]
        for share in widths:
            found = extrapolate(seen.until(share * STEPS), schedule)
            widths[share].append(found.high - found.low)
            held.append(found.low <= truth <= found.high)
            errors.append(abs(found.value / truth - 1))
    assert np.mean(held) >= 0.9
    assert np.mean(errors) < 0.03
    means = [np.mean(width) for width in widths.values()]
    assert means == sorted(means, reverse=True)


def test_the_unit_of_the_loss_does_not_matter():
    schedule = course()
    seen = seen_on(schedule).until(400)
    found = extrapolate(seen, schedule)
    halved = extrapolate(replace(seen, losses_T=seen.losses_T / 2, heldout_H=seen.heldout_H / 2), schedule)
    assert (halved.value, halved.low, halved.high) == pytest.approx((found.value / 2, found.low / 2, found.high / 2))


def test_the_decay_that_is_left_and_a_later_end_lower_the_forecast():
    wsd, constant = course(WSD), course(CONSTANT)
    seen = seen_on(wsd, alpha=0.1).until(500)
    assert extrapolate(seen, wsd).value < extrapolate(seen, constant).value
    later = Timetable(WSD, STEPS).decide(Decision(at_step=500, steps=2 * STEPS, progress=0.25))
    assert extrapolate(seen, sample_schedule(later, 1.0)).value < extrapolate(seen, wsd).value


def test_repeated_text_lowers_the_loss_less():
    once, often = course(epochs=0.9), course(epochs=6.0)
    seen = seen_on(once).until(150)
    assert extrapolate(seen, often).value > extrapolate(seen, once).value


def test_the_path_begins_where_the_run_is_and_ends_at_the_forecast():
    schedule = course()
    seen = seen_on(schedule).until(600)
    found = extrapolate(seen, schedule)
    steps = [point[0] for point in found.path]
    assert steps == sorted(steps) and steps[0] > 600 and steps[-1] == schedule.end
    assert found.path[-1][1:] == (found.value, found.low, found.high)
    assert all(low <= value <= high for _, value, low, high in found.path)


def with_averages(schedule: Schedule, seen: Observed, drop: float) -> Observed:
    """The same run with the average of its weights measured, if the decay will lower its loss by a share `drop`."""
    stable = seen.heldout_steps_H[seen.heldout_steps_H <= 0.7 * STEPS]
    area = schedule.area(stable)
    shown = drop * PRIOR.share * area / (area + PRIOR.settled)
    lagging = losses_on(schedule, (1 - PRIOR.lag) * stable, noise=0.0)
    return replace(seen, averaged_steps_V=stable, averaged_V=lagging - 3.0 * shown)


def test_the_average_of_the_weights_shows_how_much_the_decay_will_bring():
    schedule = course()
    seen = seen_on(schedule)
    drops = (0.06, 0.12, 0.24)
    found = [extrapolate(with_averages(schedule, seen, drop).until(400), schedule) for drop in drops]
    bare = extrapolate(seen.until(400), schedule)
    assert all(one.high - one.low < bare.high - bare.low for one in found)
    lower = -np.diff([one.value for one in found]) / 3.0  # the prior still counts
    assert (lower > 0.4 * np.diff(drops)).all() and (lower < np.diff(drops)).all()


def test_the_lag_of_the_average_is_that_of_its_window():
    assert PRIOR.lag == pytest.approx(LAG)


def test_missing_measurements_are_skipped_and_too_few_give_no_forecast():
    schedule = course()
    seen = seen_on(schedule).until(300)
    losses = seen.losses_T.copy()
    losses[::17] = math.nan
    assert extrapolate(replace(seen, losses_T=losses), schedule).value == pytest.approx(
        extrapolate(seen, schedule).value, rel=0.02
    )
    assert extrapolate(seen.until(10), schedule) is None
    assert extrapolate(replace(seen, heldout_steps_H=np.zeros(0), heldout_H=np.zeros(0)), schedule) is None
    assert extrapolate(replace(seen, losses_T=np.full_like(losses, math.nan)), schedule) is None
    assert extrapolate(seen_on(schedule), schedule) is None  # at the end there is nothing to foresee


def test_additional_uncertainty_only_widens_the_interval():
    schedule = course()
    found = extrapolate(seen_on(schedule).until(300), schedule)
    doubted = found.widened(0.02)
    assert doubted.value == found.value and doubted.low < found.low and doubted.high > found.high
    assert found.widened(0.0).high == pytest.approx(found.high)


def test_the_drop_of_the_loss_follows_the_area_under_the_decay():
    schedule = course(WSD)
    fallen = schedule.decay_effect(np.linspace(0, STEPS, 50), PRIOR.onset)
    assert fallen[0] == 0 and (np.diff(fallen) >= -1e-12).all() and 0 < fallen[-1] < 1
    assert schedule.decay_effect(np.array([600.0]), PRIOR.onset)[0] == 0  # no decay yet
    sooner = schedule.decay_effect(np.array([float(STEPS)]), PRIOR.onset / 10)[0]
    assert sooner > fallen[-1]


@pytest.mark.parametrize("decisions", [(), (Decision(300, 800),), (Decision(300, 2000), Decision(900, 1500))])
def test_the_sampled_schedule_equals_the_timetable(decisions):
    timetable = Timetable(COSINE, STEPS, decisions)
    schedule = sample_schedule(timetable, 1.0)
    exact = np.cumsum([timetable.scale(step) for step in range(timetable.total_steps)])
    asked = np.array([60, 100, 500, timetable.total_steps - 1])
    assert schedule.area(asked + 1) == pytest.approx(exact[asked], rel=0.03)
    assert schedule.end == timetable.total_steps
