"""Intervals and tests, compared with scipy and with their nominal properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from isoflop.evaluate.statistics import bootstrap, holm, mcnemar, newcombe, paired, wilson


@given(st.integers(1, 5000), st.data())
def test_wilson_is_scipys(items, data):
    right = data.draw(st.integers(0, items))
    ours, theirs = wilson(right, items), binomtest(right, items).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


@given(st.integers(0, 1500), st.integers(0, 1500))
def test_mcnemar_is_the_exact_binomial(one, other):
    expected = binomtest(one, one + other).pvalue if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(expected, rel=1e-6)
    assert mcnemar(one, other) == mcnemar(other, one)


def test_a_bootstrap_interval_contains_the_mean_and_narrows_with_items():
    values = np.random.default_rng(0).exponential(size=2000)
    few, many = bootstrap(values[:50], np.exp), bootstrap(values, np.exp)
    for found, part in ((few, values[:50]), (many, values)):
        assert found.value == pytest.approx(np.exp(part.mean())) and found.low < found.value < found.high
    assert many.high - many.low < few.high - few.low
    assert bootstrap(values, np.exp) == many  # the same each time


def test_two_models_are_compared_item_by_item():
    generator = np.random.default_rng(1)
    hard = generator.random(1000) < 0.5  # what one gets right, the other mostly does too
    first = hard.astype(float)
    second = np.where(generator.random(1000) < 0.05, 1.0, first)
    found = paired(first, second, shares=True)
    assert found.p < 1e-3 and 0 < found.difference.low < found.difference.value < found.difference.high
    assert paired(first, first, shares=True).p == 1.0
    nats = generator.normal(3, 1, 400)
    worse = paired(nats, nats + generator.normal(0.2, 0.5, 400), shares=False)
    assert worse.p < 0.01 and worse.difference.low > 0
    assert paired(nats, nats + generator.normal(0, 0.5, 400), shares=False).p > 0.01


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_an_interval_of_a_difference_of_shares(pairs):
    first, second = np.array(pairs, dtype=float).T
    found, back = newcombe(first, second), newcombe(second, first)
    assert -1 <= found.low <= found.value <= found.high <= 1 and found.value == pytest.approx(
        second.mean() - first.mean()
    )
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))
    if len(pairs) > 7 and mcnemar(int((second < first).sum()), int((second > first).sum())) > 0.3:
        assert found.low <= 0 <= found.high  # few items show nothing


def test_with_many_items_it_is_the_bootstraps():
    generator = np.random.default_rng(2)
    first = (generator.random(3000) < 0.4).astype(float)
    second = np.where(generator.random(3000) < 0.1, 1.0, first)
    wide, drawn = newcombe(first, second), bootstrap(second - first)
    assert (wide.low, wide.high) == pytest.approx((drawn.low, drawn.high), abs=0.002)


def test_holms_correction_is_stricter_for_more_comparisons():
    assert holm([0.04]) == [True] and holm([0.04, 0.9]) == [False, False]
    assert holm([0.04, 0.001, 0.02]) == [True, True, True] and holm([0.03, 0.001, 0.03]) == [False, True, False]
    assert holm([]) == []
