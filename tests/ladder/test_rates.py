"""The best learning rates at two sizes, and whether the rule between them carries over."""

import math

import pytest

from isoflop.ladder.messages import transfer_lines
from isoflop.ladder.rates import MOST, bracket, following, transfer


def losses(best: float, factors=(0.5, 1.0, 2.0), bend: float = 0.02) -> dict[float, float]:
    return {factor: 2.0 * math.exp(bend * math.log2(factor / best) ** 2) for factor in factors}


def search(best: float) -> dict[float, float]:
    """What is tried until the search ends."""
    tried: dict[float, float] = {}
    while wanted := following(tried):
        tried |= losses(best, wanted)
    return tried


@pytest.mark.parametrize("best", [0.3, 0.7, 1.0, 1.4, 3.0])
def test_the_optimum_is_found_between_two_worse_rates(best):
    tried = search(best)
    assert 3 <= len(tried) <= MOST
    found = bracket(1e5, tried, 0.001)
    assert found.inside and found.best == pytest.approx(best, rel=0.02)
    assert found.low <= found.best <= found.high and found.gain == pytest.approx(
        1 - math.exp(-0.02 * math.log2(best) ** 2), abs=1e-4
    )


def test_the_search_ends_and_says_where_no_worse_rate_was_found():
    tried = search(1e-3)
    assert len(tried) == MOST
    found = bracket(1e5, tried, 0.001)
    assert not found.inside and found.best < 0.2


def test_a_run_that_diverged_is_the_worse_side():
    tried = {0.25: 2.1, 0.5: 2.0, 1.0: 2.05, 2.0: math.inf}
    assert following(tried) == []
    assert bracket(1e5, tried, 0.001).inside
    assert following({0.5: 2.0, 1.0: math.inf, 2.0: math.inf}) == [0.25]
    assert bracket(1e5, {0.5: 2.0, 1.0: math.inf, 2.0: math.inf}, 0.0) is None


def test_noise_widens_the_optimum():
    exact, noisy = (bracket(1e5, losses(1.2), noise) for noise in (1e-4, 5e-3))
    assert noisy.high / noisy.low > exact.high / exact.low


def test_a_rule_that_does_not_carry_over_is_said_and_costs():
    same = transfer([bracket(1e5, losses(1.0), 1e-3), bracket(1e6, losses(1.1), 1e-3)])
    assert same.holds and same.per_decade == 0
    assert "carries over" in transfer_lines(same)[-1]
    moved = transfer([bracket(1e5, losses(1.4), 1e-3), bracket(1e6, search(0.5), 1e-3)])
    assert not moved.holds and moved.moves == pytest.approx(math.log2(0.5 / 1.4), rel=0.1) and moved.per_decade > 0.005
    assert transfer_lines(moved)[-1].startswith("warning")
    noisy = transfer([bracket(1e5, losses(1.4, bend=0.002), 0.01), bracket(1e6, losses(0.7, bend=0.002), 0.01)])
    assert noisy.holds
