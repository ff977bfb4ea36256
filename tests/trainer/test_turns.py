"""Timing in turns, with a fake clock and fake counters: no test waits."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.processors import Load, Reading
from isoflop.trainer.turns import LEAST, TURNS, Timing, Turn, take_turns


@dataclass
class Machine:
    """Two processors; `others` says how many of them another program uses at a time. Steps that need both take as much
    longer as the other program leaves less."""

    others: object = lambda now: 0.0
    now: float = 100.0
    own: float = 0.0
    worked: float = 0.0
    idle: float = 0.0
    hidden: bool = False  # a system without counters
    begun: list = field(default_factory=list)

    def clock(self):
        return self.now

    def read(self):
        counters = (None, None, None) if self.hidden else (self.worked, self.idle, 0.0)
        return Reading(self.now, self.own, *counters)

    def step(self, seconds):
        machine = self

        class Step:
            def begin(self):
                machine.begun.append(seconds)

            def __call__(self):
                free = 2.0 - machine.others(machine.now)
                took = seconds * 2.0 / free
                machine.now += took
                machine.own += took * free
                machine.worked += took * 2.0

            def wait(self):
                pass

            def whole(self, taken):
                return taken

        return Step()

    def time(self, *seconds, each=2.0, until=float("inf")):
        return take_turns([self.step(s) for s in seconds], each, self.clock, self.read, until)


def test_undisturbed_timings_are_the_steps_times():
    machine = Machine()
    fast, slow = machine.time(0.01, 0.05)
    assert fast.seconds == pytest.approx(0.01) and slow.seconds == pytest.approx(0.05)
    assert fast.trouble == slow.trouble == ""
    assert len(machine.begun) == 2 * (1 + TURNS)  # nothing is repeated


@pytest.mark.parametrize("hidden", [False, True])
def test_a_short_disturbance_does_not_affect_the_timing(hidden):
    machine = Machine(lambda now: 1.5 if 101.0 < now < 101.8 else 0.0, hidden=hidden)
    assert [one.seconds for one in machine.time(0.01, 0.05)] == pytest.approx([0.01, 0.05], rel=0.05)


def test_if_half_of_the_time_is_busy_the_other_half_counts_without_doubt():
    machine = Machine(lambda now: 1.0 if now < 102.0 else 0.0)
    assert [one.seconds for one in machine.time(0.01, 0.05)] == pytest.approx([0.01, 0.05], rel=0.05)


def test_a_lasting_disturbance_is_reported_and_timed_again_once():
    machine = Machine(lambda now: 1.0)
    (one,) = machine.time(0.01)
    assert one.seconds == pytest.approx(0.02)
    assert one.trouble == "other programs used 1.0 processors"
    assert len(machine.begun) == 1 + 2 * TURNS


def test_without_counters_disagreeing_turns_are_reported():
    machine = Machine(lambda now: 1.0 if int(now) % 2 else 0.0, hidden=True)
    (one,) = machine.time(0.02, each=2.0)
    assert "equal steps took" in one.trouble


def test_a_late_calibration_ends():
    machine = Machine(lambda now: 1.9)
    machine.time(0.5, 0.5, until=101.0)
    assert len(machine.begun) == 2 * (1 + LEAST)
    assert machine.now < 101 + (1 + 2 * LEAST) * 10.1  # one that had begun, and those that nothing can do without


@given(st.lists(st.floats(1e-4, 10.0), min_size=1, max_size=20))
def test_the_result_lies_within_the_measured_times(seconds):
    timing = Timing.of([Turn(one, 1, Load(1.0, 1.0)) for one in seconds])
    assert min(seconds) * (1 - 1e-9) <= timing.seconds <= max(seconds) * (1 + 1e-9)
    middle = sorted(seconds)[len(seconds) // 2]
    assert timing.seconds <= middle * (1 + 1e-9)  # of the turns' speeds rather a high one


def test_a_step_cut_short_counts_its_update_once():
    from isoflop.config import override
    from isoflop.trainer import RunConfig
    from isoflop.trainer.config import resolve_runtime
    from isoflop.trainer.throughput import make_step

    small = ["model.layers=1", "model.d_model=32", "model.heads=2", "batch.sequences=1", "runtime.threads=1"]
    ticks = iter(range(10**6))
    step = make_step(resolve_runtime(override(RunConfig(), small)), times=8.0, clock=lambda: float(next(ticks)))
    step.begin()
    step()
    assert step.update_seconds == 2.0  # from one reading of the clock to the next, twice
    assert step.whole(10.0) == 8 * 8.0 + 2.0
