"""Which runs a budget pays for."""

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.errors import UserError
from isoflop.ladder.pace import Pace
from isoflop.ladder.pace import choose as choose_workers
from isoflop.ladder.rungs import (
    APART,
    FILLED,
    LENGTHS,
    Size,
    budgets,
    choose,
    pieces,
    seconds_of,
    shortest,
    trained,
    tuned,
    wall,
)
from isoflop.plan.law.points import make_points, off_ray

MEASURED = 1e5


def sizes(count: int = 14, first: float = 2e4, ratio: float = 1.5, speed: float = 1e10) -> list[Size]:
    return [Size(1 + i // 2, 16 * (i + 1), first * ratio**i, speed) for i in range(count)]


@settings(max_examples=40)
@given(
    seconds=st.floats(300, 2e5),
    workers=st.integers(1, 8),
    first=st.floats(1e4, 1e5),
    ratio=st.floats(1.2, 2.2),
    decay=st.sampled_from([0.1, 0.3, None]),
)
def test_a_ladder_fits_its_budget_and_tells_n_and_d_apart(seconds, workers, first, ratio, decay):
    try:
        rungs = choose(sizes(first=first, ratio=ratio), seconds, workers, decay, MEASURED)
    except UserError:
        return
    counts = [rung.size.parameters for rung in rungs]
    assert 3 <= len(rungs) <= 6 and all(b >= APART * a for a, b in itertools.pairwise(counts))
    works = pieces(rungs, decay, workers)
    assert wall([seconds_of(one, decay, MEASURED) for one in works], workers) <= FILLED * seconds

    # compute is on a grid of powers of two, and there is a valley to be seen at some of it
    assert all(float(math.log2(rung.flops)).is_integer() for rung in rungs)
    assert all(2.5 <= rung.tokens / rung.size.parameters <= 10 for rung in rungs)
    assert max(budgets(rungs).values()) >= 2
    n, d = zip(*[(r.size.parameters, r.tokens * length) for r in rungs for length in r.lengths], strict=True)
    assert off_ray(make_points(n, d, np.linspace(3, 2, len(n)))) > 0.5

    # rates at two sizes, and other seeds of the same runs
    assert {(one.rung.size.parameters, one.factor) for one in works if one.role == "rate"} == {
        (rung.size.parameters, factor) for rung in tuned(rungs) for factor in (0.5, 1.0, 2.0)
    }
    assert len([one for one in works if one.role == "repeat"]) == 3


def test_more_time_buys_larger_sizes_and_more_workers_do_too():
    largest = [choose(sizes(), seconds, 1, 0.3, MEASURED)[-1].size.parameters for seconds in (600, 6000, 60000)]
    assert largest == sorted(largest) and largest[0] < largest[-1]
    alone, together = (choose(sizes(), 2000, workers, 0.3, MEASURED)[-1].size.parameters for workers in (1, 2))
    assert together >= alone


def test_runs_that_share_their_beginning_cost_two_thirds():
    assert trained(LENGTHS, 0.3) == pytest.approx(10.1) and trained(LENGTHS, None) == 15
    assert trained((2,), 0.3) == 2


def test_a_budget_that_is_too_small_is_told_what_would_do():
    with pytest.raises(UserError, match="budget 30s is too small") as error:
        choose(sizes(), 30, 2, 0.3, MEASURED, "30s")
    minutes = int(re.search(r"--budget (\d+)m", str(error.value))[1])
    assert choose(sizes(), 60 * minutes, 2, 0.3, MEASURED)
    with pytest.raises(UserError, match=r"leave model\.layers"):
        choose(sizes()[:1], 1e6, 2, 0.3, MEASURED)


def test_the_shortest_run_of_a_size_is_about_five_tokens_per_parameter():
    for parameters in np.geomspace(1e4, 1e8, 9):
        assert 5 / math.sqrt(2) * 0.99 <= shortest(parameters) / parameters <= 5 * math.sqrt(2) * 1.01


@pytest.mark.parametrize(
    "timed, cores, chosen",
    [
        ({1: 10.0, 2: 12.0}, 2, (2, 1)),  # a second thread gains little: two runs at a time
        ({1: 10.0, 2: 19.5}, 2, (0, 2)),
        ({1: 10.0}, 1, (0, 1)),  # one core, or a GPU
        ({1: 1.0, 4: 3.9, 8: 7.0}, 8, (8, 1)),
    ],
)
def test_as_many_runs_at_a_time_as_train_most_in_all(timed, cores, chosen):
    assert choose_workers(timed, cores) == chosen


def test_speed_grows_with_the_width_and_not_too_far_beyond_what_was_timed():
    pace = Pace(2, 1, ((32.0, 1e9), (128.0, 4e9)))
    widths = [16, 32, 64, 128, 256, 1024]
    found = [pace.speed(width) for width in widths]
    assert found == sorted(found) and found[1] == pytest.approx(1e9) and found[3] == pytest.approx(4e9)
    assert found[-1] < 2 * 4e9
