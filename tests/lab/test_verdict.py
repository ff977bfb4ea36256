"""Verdicts on simulated data: equal arms show no difference, known effects are found, and a claim is refuted if its
opposite is true. Every shipped claim is tested, without training."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from isoflop.lab.claim import Comparison, all_claims, claim_of
from isoflop.lab.verdict import EQUIVALENT, REFUTED, SIGNS, SUPPORTED, UNDECIDED, decide

CLAIMS = {claim.name: claim for claim in all_claims()}
PAIRS = 12


def planted(claim, effects, noise, pairs=PAIRS, seed=0):
    """Made-up measurements of every arm in which the comparisons have these true differences."""
    generator = np.random.default_rng(seed)
    measured = {arm: {pair: {} for pair in range(pairs)} for arm in claim.arms}
    for comparison, effect in zip(claim.comparisons, effects, strict=True):
        other = comparison.other or comparison.measure
        for pair in range(pairs):
            theirs = comparison.value
            if comparison.against:
                common = generator.normal(2.0, 0.1)
                theirs = measured[comparison.against][pair].setdefault(other, common)
            own = theirs + effect + generator.normal(0.0, noise * comparison.smallest)
            measured[comparison.arm][pair][comparison.measure] = own
    return measured


def alone(claim, comparison):
    """A claim of one comparison, whose arms share no measurement with another one."""
    return replace(claim, comparisons=(comparison,))


def each():
    return [pytest.param(c, one, id=f"{name}-{i}") for name, c in CLAIMS.items() for i, one in enumerate(c.comparisons)]


@pytest.mark.parametrize(("claim", "comparison"), each())
def test_a_claim_is_supported_by_its_prediction_and_refuted_by_the_opposite(claim, comparison):
    one, sign = alone(claim, comparison), SIGNS[comparison.expect]
    effect = 0.0 if comparison.expect == "same" else 3 * sign * comparison.smallest
    opposite = 3 * comparison.zone if comparison.expect == "same" else -effect
    assert decide(one, planted(one, [effect], 0.5)).verdict == SUPPORTED
    assert decide(one, planted(one, [opposite], 0.5)).verdict == REFUTED
    if comparison.expect != "same":
        assert decide(one, planted(one, [0.0], 0.5)).verdict == EQUIVALENT
    assert decide(one, planted(one, [effect], 20.0, pairs=5)).verdict == UNDECIDED


@pytest.mark.parametrize(
    "claim", [c for c in CLAIMS.values() if c.comparisons[0].expect != "same"], ids=lambda c: c.name
)
def test_swapping_the_arms_flips_the_verdict(claim):
    comparison = next(c for c in claim.comparisons if c.expect != "same")
    if not comparison.against or comparison.other:
        return  # compared with a number, or with another measure: there is nothing to swap
    one = alone(claim, comparison)
    measured = planted(one, [3 * SIGNS[comparison.expect] * comparison.smallest], 0.5)
    swapped = replace(comparison, arm=comparison.against, against=comparison.arm)
    assert decide(one, measured).verdict == SUPPORTED
    assert decide(alone(claim, swapped), measured).verdict == REFUTED


WRITTEN = {
    "statement": "B is better.",
    "question": "Is it?",
    "prediction": "Yes.",
    "setup": {"tokens": 1e5},
    "arms": {"a": {}, "b": {}},
    "comparisons": [{"measure": "bits_per_byte", "arm": "b", "against": "a", "expect": "lower", "smallest": 0.03}],
}


def one_claim(**setup):
    return claim_of({**WRITTEN, "setup": {"tokens": 1e5, **setup}}, "better", "better.toml")


def measured_of(a, b):
    return {
        "a": {i: {"bits_per_byte": value} for i, value in enumerate(a)},
        "b": {i: {"bits_per_byte": value} for i, value in enumerate(b)},
    }


@pytest.mark.parametrize("rule", ["fixed", "anytime"])
def test_equal_arms_are_distinguished_at_most_at_the_nominal_rate(rule):
    claim, generator, wrong = one_claim(rule=rule), np.random.default_rng(0), 0
    for _ in range(100):
        a, b = generator.normal(2.0, 0.05, (2, 8))
        wrong += decide(claim, measured_of(a, b)).verdict in (SUPPORTED, REFUTED)
    assert wrong <= 13


def test_a_diverged_run_is_an_outcome():
    claim = one_claim()
    lost = [math.inf] * 8
    found = decide(claim, measured_of(lost, [2.0] * 8))
    assert found.verdict == SUPPORTED and found.findings[0].lost == (0, 8)
    assert decide(claim, measured_of([2.0] * 8, lost)).verdict == REFUTED
    assert decide(claim, measured_of(lost, lost)).verdict != SUPPORTED
    assert decide(claim, measured_of([2.0] * 4 + lost[:4], [1.9] * 8)).findings[0].estimate.test == "sign"
    json.dumps(found.findings[0].to_dict(), allow_nan=False)


def test_where_all_runs_of_an_arm_diverge_as_many_pairs_as_signs_need_are_asked_for():
    claim, lost = one_claim(), [math.inf] * 12
    five = decide(claim, measured_of(lost[:5], [2.0] * 5))
    assert five.verdict == UNDECIDED and five.needs == 6  # five signs cannot reject, whatever they are
    assert decide(claim, measured_of(lost[:6], [2.0] * 6)).verdict == SUPPORTED
    later = decide(claim, measured_of(lost[:5], [2.0] * 5), looks_before=1).needs
    assert later > 6 and decide(claim, measured_of(lost[:later], [2.0] * later), looks_before=1).verdict == SUPPORTED


def test_an_undecided_verdict_says_how_many_pairs_are_needed():
    generator = np.random.default_rng(5)
    noisy = decide(one_claim(), measured_of([2.0] * 6, 1.99 + generator.normal(0, 0.05, 6)))
    assert noisy.verdict == UNDECIDED and 6 < noisy.needs < 200
    assert decide(one_claim(), measured_of([2.0], [1.9])).needs == 10_000  # one pair says nothing of the noise


def test_a_later_look_spends_more_error_and_needs_more_evidence():
    generator = np.random.default_rng(2)
    a, b = np.full(6, 2.0), 1.98 + generator.normal(0, 0.018, 6)
    first, later = decide(one_claim(), measured_of(a, b)), decide(one_claim(), measured_of(a, b), looks_before=1)
    assert (first.error_spent, later.error_spent) == (0.05, 0.1)
    assert later.findings[0].estimate.test == "anytime t" and later.findings[0].p > first.findings[0].p
    assert decide(one_claim(rule="anytime"), measured_of(a, b), looks_before=9).error_spent == 0.05


def test_one_refuted_prediction_refutes_a_claim_and_an_open_one_leaves_it_open():
    two = {**WRITTEN, "arms": {"a": {}, "b": {}, "c": {}}}
    two["comparisons"] = [*WRITTEN["comparisons"], {**WRITTEN["comparisons"][0], "arm": "c"}]
    claim = claim_of(two, "two", "two.toml")
    generator = np.random.default_rng(0)

    def with_c(c):
        measured = measured_of([2.0] * 8, 1.9 + generator.normal(0, 0.01, 8))
        measured["c"] = {i: {"bits_per_byte": value} for i, value in enumerate(c)}
        return decide(claim, measured).verdict

    assert with_c(1.9 + generator.normal(0, 0.01, 8)) == SUPPORTED
    assert with_c(2.1 + generator.normal(0, 0.01, 8)) == REFUTED
    assert with_c(2.0 + generator.normal(0, 0.2, 8)) == UNDECIDED
    assert with_c(2.0 + generator.normal(0, 0.01, 8)) == EQUIVALENT


def test_targets_that_are_not_reached_are_compared_by_rank():
    comparison = Comparison(
        measure="tokens_to", arm="b", against="a", expect="lower", smallest=0.1, target=2.0, words="sooner"
    )
    claim = alone(one_claim(), comparison)
    never = {i: {"tokens_to": math.inf} for i in range(7)}
    soon = {i: {"tokens_to": 10.0 + 0.01 * i} for i in range(7)}
    assert decide(claim, {"a": never, "b": soon}).verdict == SUPPORTED
    assert decide(claim, {"a": soon, "b": never}).verdict == REFUTED
