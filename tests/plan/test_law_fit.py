"""Fits recover the law behind the points, at a minimum, with intervals that have their coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize

from isoflop.plan.law.bootstrap import bootstrap, parts
from isoflop.plan.law.fit import fit
from isoflop.plan.law.forms import PUBLISHED, Law
from isoflop.plan.law.points import make_points
from isoflop.plan.law.solve import DELTA, FORMS
from surfaces import isoflop_table, random_law, same_sizes_table

CONSTANTS = ("E", "A", "B", "alpha", "beta")


@pytest.mark.parametrize("delta", [DELTA, math.inf])
@pytest.mark.parametrize("seed", range(4))
def test_a_law_without_noise_is_recovered_exactly(seed, delta):
    law = random_law(np.random.default_rng(seed))
    found = fit(isoflop_table(law, np.random.default_rng(0), noise=0.0), delta=delta)
    for name in CONSTANTS:
        assert getattr(found.law, name) == pytest.approx(getattr(law, name), rel=1e-4), name
    assert found.convergence.reached
    assert found.law.cost.s == 0
    assert found.law.cost.k == 6


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_half_a_percent_of_noise_moves_the_law_little(seed):
    rng = np.random.default_rng(seed)
    law = random_law(rng)
    found = fit(isoflop_table(law, rng, budgets=8, sizes=9))
    assert found.convergence.reached
    assert found.convergence.agreeing >= 2
    assert found.law.a == pytest.approx(law.a, abs=0.08)
    for flops in (1e19, 1e21):
        assert float(found.law.loss_star(flops)) == pytest.approx(float(law.loss_star(flops)), rel=0.01)
    assert found.noise == pytest.approx(0.005, rel=0.6)


def test_no_descent_from_the_fit_lowers_the_objective():
    """Huber's sum in the raw parametrisation of Hoffmann et al., by another optimiser from our minimum."""
    rng = np.random.default_rng(3)
    points = isoflop_table(random_law(rng), rng)
    found = fit(points)
    law = found.law

    def huber(raw):
        e, a, b, alpha, beta = raw
        terms = [
            np.full(len(points), e),
            a - alpha * np.log(points.n),
            b - beta * np.log(points.d),
        ]
        size = np.abs(np.logaddexp.reduce(terms) - np.log(points.loss))
        inside = np.minimum(size, DELTA)
        return (inside * (size - 0.5 * inside)).sum() / DELTA**2

    start = np.array([math.log(law.E), math.log(law.A), math.log(law.B), law.alpha, law.beta])
    assert huber(start) * DELTA**2 == pytest.approx(found.objective, rel=1e-9)
    for method in ("Nelder-Mead", "L-BFGS-B"):
        end = minimize(huber, start, method=method, options={"maxiter": 2000})
        assert end.fun >= huber(start) * (1 - 1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_recovered(form):
    laws = {
        "chinchilla": PUBLISHED["besiroglu2024"].law,
        "tied": PUBLISHED["muennighoff2023"].law,
        "kaplan": PUBLISHED["kaplan2020"].law,
        "free": Law(1.5, 3e4, 9e4, 0.5, 0.6, 0.6),
    }
    law = laws[form]
    n = np.repeat(np.geomspace(1e7, 1e10, 7), 7)
    d = np.tile(np.geomspace(1e9, 1e12, 7), 7)
    found = fit(make_points(n, d, law.loss(n, d)), form)
    assert found.law.loss(n, d) == pytest.approx(law.loss(n, d), rel=1e-6)
    assert (found.law.alpha, found.law.beta, found.law.gamma) == pytest.approx(
        (law.alpha, law.beta, law.gamma), rel=0.02
    )


def test_a_missing_term_stays_at_its_bound():
    n = np.repeat(np.geomspace(1e7, 1e9, 5), 5)
    d = np.tile(np.geomspace(1e9, 1e11, 5), 5)
    found = fit(make_points(n, d, 400 / n**0.3))
    assert found.law.E < 1e-3
    assert float(found.law.d_term(1e10)) < 1e-3


def test_intervals_have_their_coverage():
    """90 % intervals over 40 draws: the coverage of each constant and each prediction is within chance."""
    draws = 40
    asked = {name: (lambda law, name=name: getattr(law, name)) for name in (*CONSTANTS, "a")}
    for flops in (1e21, 1e23):
        asked[f"N*({flops:g})"] = lambda law, flops=flops: law.n_star(flops)
        asked[f"D*({flops:g})"] = lambda law, flops=flops: law.d_star(flops)
        asked[f"L*({flops:g})"] = lambda law, flops=flops: law.loss_star(flops)
    held = dict.fromkeys(asked, 0)
    for seed in range(draws):
        rng = np.random.default_rng(1000 + seed)
        law = random_law(rng)
        samples = bootstrap(fit(isoflop_table(law, rng)), 200, seed)
        for name, of in asked.items():
            interval = samples.interval(of)
            held[name] += interval.low <= float(of(law)) <= interval.high
    for name, count in held.items():
        assert stats.binomtest(count, draws, 0.9).pvalue > 0.001, (name, count)
    assert stats.binomtest(sum(held.values()), draws * len(held), 0.9).proportion_estimate > 0.85


def test_errors_shared_by_the_runs_of_a_size_widen_intervals():
    law = PUBLISHED["besiroglu2024"].law
    alone = bootstrap(fit(same_sizes_table(law, np.random.default_rng(1), noise=0.005), delta=math.inf), 200)
    shared = bootstrap(fit(same_sizes_table(law, np.random.default_rng(1), 0.005, shared=0.02), delta=math.inf), 200)
    assert alone.size_share < 0.4 < shared.size_share
    assert shared.interval(lambda one: one.alpha).error > 1.5 * alone.interval(lambda one: one.alpha).error


def test_parts_add_up():
    rng = np.random.default_rng(0)
    sizes = np.repeat(np.arange(6), 4)
    residuals = rng.standard_normal(24) + 3 * rng.standard_normal(6)[sizes]
    common, own, share = parts(residuals, sizes)
    assert common + own == pytest.approx(residuals)
    assert share > 0.5
    assert parts(residuals[:6], np.arange(6))[2] == 0  # one run per size: nothing tells the two apart


def test_the_same_seed_gives_the_same_samples():
    points = isoflop_table(PUBLISHED["besiroglu2024"].law, np.random.default_rng(5))
    found = fit(points)
    assert (bootstrap(found, 50, 3).constants == bootstrap(found, 50, 3).constants).all()
    assert (bootstrap(found, 50, 3).constants != bootstrap(found, 50, 4).constants).any()
