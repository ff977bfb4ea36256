import dataclasses

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from isoflop.config import from_dict, override, to_dict
from isoflop.errors import UserError
from isoflop.optim.config import ScheduleConfig
from isoflop.optim.timetable import Decision, Timetable
from isoflop.trainer.config import RunConfig

SHARES = st.floats(0, 1)
CONFIGS = st.builds(ScheduleConfig, st.sampled_from(["wsd", "cosine", "constant"]), SHARES, SHARES, SHARES)
PLANS = st.builds(Timetable, CONFIGS, st.integers(1, 300))


@st.composite
def decided(draw, backwards=True):
    """A timetable with up to three decisions; `backwards`: some of them set the progress."""
    table = draw(PLANS)
    at = 0
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(at, table.total_steps))
        progress = draw(st.none() | st.floats(0, 0.99)) if backwards else None
        if progress is None and table.progress(at) >= 1:
            break
        table = table.decide(Decision(at, at + draw(st.integers(1, 300)), progress))
    return table


@given(decided())
def test_the_rate_is_between_zero_and_the_peak_and_never_zero_in_a_run(table):
    for step in range(table.total_steps):
        assert 0.0 < table.scale(step) <= 1.0
        assert 0.0 <= table.progress(step) < 1.0
    end = table.scale(table.total_steps)
    assert table.progress(table.total_steps) == 1.0
    falls = table.config.name == "cosine" or (table.config.name == "wsd" and table.config.decay > 0)
    if falls and table.total_steps >= table.warmup_steps:
        assert end == pytest.approx(table.config.floor, abs=1e-12)


@given(decided(backwards=False))
def test_progress_never_falls_and_the_rate_never_rises_after_the_warmup(table):
    steps = range(table.total_steps + 3)
    us = [table.progress(s) for s in steps]
    assert us == sorted(us)
    scales = [table.scale(s) for s in steps if s + 1 >= table.warmup_steps]
    assert scales == sorted(scales, reverse=True)


@given(decided(), st.integers(0, 400), st.integers(1, 300), st.none() | st.floats(0, 0.99))
def test_a_decision_changes_nothing_before_its_step_and_keeps_the_progress_there(table, at, more, progress):
    at = min(table.total_steps, max([at] + [d.at_step for d in table.decisions]))
    assume(progress is not None or table.progress(at) < 1)
    after = table.decide(Decision(at, at + more, progress))
    assert [after.scale(s) for s in range(at)] == [table.scale(s) for s in range(at)]
    assert after.progress(at) == (table.progress(at) if progress is None else progress)
    if progress is None:
        assert after.scale(at) == table.scale(at)
    assert after.total_steps == at + more
    assert after.warmup_steps == table.warmup_steps


@given(st.integers(50, 400), st.integers(1, 200), st.integers(1, 300))
def test_the_rate_has_no_jump_where_a_decision_is_taken(steps, at, more):
    assume(at < steps)
    after = Timetable(ScheduleConfig("wsd", warmup=0.0, decay=0.4), steps, (Decision(at, at + more),))
    # one step moves u by at most the steeper of the two slopes, and the rate by that over the decay's share
    slope = max(1 / steps, (1 - after.progress(at)) / more)
    assert abs(after.scale(at) - after.scale(at - 1)) <= slope / 0.4 + 1e-9


@given(decided())
@settings(max_examples=200)
def test_decay_step_is_the_first_step_of_the_last_decay(table):
    step = table.decay_step
    if table.config.name != "wsd":
        assert step is None
        return
    below = [table.shape(table.progress(s)) < 1 for s in range(table.total_steps)]
    if step is None:
        assert not below[-1]
    else:
        assert all(below[step:])
        set_back = max((d.at_step for d in table.decisions if d.progress is not None), default=0)
        assert step == set_back or not below[step - 1]


def test_the_shapes_of_the_schedules():
    wsd = Timetable(ScheduleConfig("wsd", warmup=0.1, decay=0.25, floor=0.0), 100)
    assert wsd.warmup_steps == 10 and wsd.decay_step == 76
    assert [wsd.scale(s) for s in (0, 4, 9, 50, 75)] == pytest.approx([0.1, 0.5, 1, 1, 1])
    assert [wsd.scale(s) for s in (80, 90, 99)] == pytest.approx([0.8, 0.4, 0.04])
    cosine = Timetable(ScheduleConfig("cosine", warmup=0.0, floor=0.1), 100)
    assert [cosine.scale(s) for s in (0, 50, 100)] == pytest.approx([1.0, 0.55, 0.1])
    constant = Timetable(ScheduleConfig("constant", warmup=0.0), 7)
    assert {constant.scale(s) for s in range(9)} == {1.0} and constant.decay_step is None


def test_less_time_brings_the_decay_forward_and_an_extension_goes_back_before_it():
    plan = Timetable(ScheduleConfig("wsd", warmup=0.02, decay=0.3), 1000)
    short = plan.decide(Decision(500, 800, reason="the machine slowed down"))
    assert short.total_steps == 800 and 500 < short.decay_step < plan.decay_step
    before = plan.decay_step - 1
    longer = plan.decide(Decision(before, 2000, progress=0.35))
    assert longer.scale(before) == 1.0 and longer.scale(1000) == 1.0
    assert plan.scale(1000) == 0.0 and 1000 < longer.decay_step < 2000


def test_a_decision_at_a_step_already_decayed_can_raise_the_rate_again():
    plan = Timetable(ScheduleConfig("wsd", decay=0.5), 100)
    assert plan.decide(Decision(100, 200, progress=0.5)).scale(100) == 1.0


@given(decided())
def test_decisions_are_written_and_read_back(table):
    lines = [{**d.to_dict(), "time": 1.5} for d in table.decisions]
    again = dataclasses.replace(table, decisions=tuple(Decision.from_dict(line) for line in lines))
    assert again == table
    assert [again.scale(s) for s in range(50)] == [table.scale(s) for s in range(50)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Decision(10, 10),
        lambda: Decision(10, 5),
        lambda: Decision(-1, 5),
        lambda: Decision(1, 5, progress=1.0),
        lambda: Decision(1, 5, progress=float("nan")),
        lambda: Decision.from_dict({"at_step": 3}),
        lambda: Decision.from_dict({"at_step": "x", "steps": 5}),
        lambda: Timetable(ScheduleConfig(), 0),
        lambda: Timetable(ScheduleConfig(), 100, (Decision(50, 90), Decision(40, 95))),
        lambda: Timetable(ScheduleConfig(), 100, (Decision(101, 200, progress=0.5),)),
        lambda: Timetable(ScheduleConfig(), 100, (Decision(100, 200),)),  # at the end: needs a progress
    ],
)
def test_invalid_decisions_are_refused(make):
    with pytest.raises(UserError):
        make()


@given(st.floats(0, 0.9), st.floats(0, 1), st.integers(10, 300))
def test_cosine_begins_at_the_end_of_the_warmup_or_at_the_start(warmup, floor, steps):
    table = Timetable(ScheduleConfig("cosine", warmup=warmup, floor=floor), steps)
    assert table.shape(warmup) == 1.0
    assert table.shape((1 + warmup) / 2) == pytest.approx((1 + floor) / 2)
    assert table.shape(1.0) == pytest.approx(floor, abs=1e-12)
    before = Timetable(ScheduleConfig("cosine", warmup=warmup, floor=floor, cosine_from="start"), steps)
    assert before.shape(0.5) == pytest.approx((1 + floor) / 2)
    if warmup == 0:
        assert [table.scale(s) for s in range(steps)] == [before.scale(s) for s in range(steps)]


def test_an_older_config_has_its_cosine_from_the_start():
    written = to_dict(ScheduleConfig("cosine", warmup=0.1))
    assert from_dict(ScheduleConfig, written) == ScheduleConfig("cosine", warmup=0.1)
    del written["cosine_from"]
    assert from_dict(RunConfig, {"schedule": written}).schedule.cosine_from == "start"
    assert from_dict(RunConfig, {}).schedule.cosine_from == RunConfig().schedule.cosine_from == "warmup"
    assert override(RunConfig(), ["schedule.name=cosine"]).schedule.cosine_from == "warmup"
    with pytest.raises(UserError, match="warmup, start"):
        override(RunConfig(), ["schedule.cosine_from=middle"])


def test_cosine_may_end_before_the_run_and_stays_at_the_floor():
    """GPT-3: down to 10 % over 260 of 300 billion tokens."""
    table = Timetable(ScheduleConfig("cosine", warmup=0.0, floor=0.1, length=260 / 300), 300)
    assert table.scale(130) == pytest.approx(0.55)
    assert table.scale(259) > 0.1
    assert [table.scale(step) for step in range(260, 300)] == pytest.approx([0.1] * 40)


def test_a_schedule_that_ends_at_rate_zero_early_is_refused():
    with pytest.raises(UserError, match=r"schedule\.length = 0\.5 with schedule\.floor = 0"):
        ScheduleConfig("cosine", floor=0.0, length=0.5)


def slow_start(step):
    """Ten steps of one, then as many as ten each."""
    return min(step, 10) + 10 * max(0, step - 10)


def test_progress_and_warmup_follow_the_sequences_read():
    plan = Timetable(ScheduleConfig("cosine", warmup=0.2, floor=0.1), 19, read=slow_start)  # reads 100
    assert [plan.progress(step) for step in (0, 5, 10, 14, 19)] == pytest.approx([0.0, 0.05, 0.1, 0.5, 1.0])
    assert plan.warmup_steps == 11  # which have read 20 of 100
    assert plan.scale(4) == pytest.approx(5 / 20 * plan.shape(0.04))
    after = plan.decide(Decision(at_step=10, steps=28))
    assert [after.scale(step) for step in range(10)] == [plan.scale(step) for step in range(10)]
    assert after.progress(19) == pytest.approx(0.1 + 0.9 * 90 / 180)


@given(decided(), st.integers(1, 50))
def test_equal_batches_give_the_same_bits_as_counting_steps(table, each):
    scaled = dataclasses.replace(table, read=lambda step: step * each)
    steps = range(table.total_steps + 1)
    assert [scaled.scale(step) for step in steps] == [table.scale(step) for step in steps]
