"""Verdicts on simulated data: equal arms show no difference, known effects are found, and a claim is refuted if its
opposite is true. Every shipped claim is tested, without training."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from isoflop.errors import UserError
from isoflop.lab.claim import Comparison, all_claims, claim_of
from isoflop.lab.procedures.job import Job
from isoflop.lab.procedures.published import compute
from isoflop.lab.verdict import EQUIVALENT, REFUTED, SIGNS, SUPPORTED, UNDECIDED, decide, differences

CLAIMS = {claim.name: claim for claim in all_claims()}
PAIRS = 12


def planted(claim, effects, noise, pairs=PAIRS, seed=0):
    """Made-up measurements of all arms in which the comparisons have these true differences, as far as those before
    leave one of their runs open."""
    generator = np.random.default_rng(seed)
    measured = {arm: {pair: {} for pair in range(pairs)} for arm in claim.arms}
    for comparison, effect in zip(claim.comparisons, effects, strict=True):
        for pair in range(pairs):
            plant(measured, comparison, pair, effect + generator.normal(0.0, noise * comparison.smallest), generator)
    return measured


def plant(measured, comparison, pair, difference, generator):
    """Set what is open of a comparison's runs: random values, and one of them such that the difference is this one."""
    name = comparison.measure
    for place, arm in enumerate(comparison.law):
        measured[arm][pair] |= {"flops": 5.0**place, name: measured[arm][pair].get(name, generator.uniform(2.0, 2.2))}
        measured[comparison.arm][pair]["flops"] = 5.0 ** len(comparison.law)
    terms = [(comparison.arm, name, 1), (comparison.against, comparison.other or name, -1)]  # differences are their sum
    terms += [(arm, name, sign) for arm, sign in zip(comparison.beyond, (-1, 1), strict=False)]
    open_ones = [term for term in terms if term[0] and term[1] not in measured[term[0]][pair]]
    if not open_ones:
        return
    for arm, measure, _ in open_ones[1:]:
        measured[arm][pair][measure] = generator.normal(2.0, 0.1)
    arm, measure, sign = open_ones[0]
    measured[arm][pair][measure] = 0.0
    one_pair = {name: {pair: values[pair]} for name, values in measured.items()}
    measured[arm][pair][measure] = sign * (difference - differences(comparison, one_pair)[0])


def alone(claim, comparison):
    """A claim of one comparison, whose arms share no measurement with another one."""
    return replace(claim, comparisons=(replace(comparison, aside=False),))


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


SWAPPED = [case for case in each() if case.values[1].expect != "same" and case.values[1].against]


@pytest.mark.parametrize(("claim", "comparison"), [case for case in SWAPPED if not case.values[1].other])
def test_swapping_the_arms_flips_the_verdict(claim, comparison):
    one = alone(claim, comparison)
    measured = planted(one, [3 * SIGNS[comparison.expect] * comparison.smallest], 0.5)
    swapped = replace(
        comparison, arm=comparison.against, against=comparison.arm, beyond=tuple(reversed(comparison.beyond))
    )
    assert decide(one, measured).verdict == SUPPORTED
    assert decide(alone(claim, swapped), measured).verdict == REFUTED


def predicted_effects(claim):
    return [0.0 if c.expect == "same" else 3 * SIGNS[c.expect] * c.smallest for c in claim.comparisons]


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_a_claim_is_supported_if_all_predictions_hold_and_refuted_if_one_is_reversed(claim):
    effects = predicted_effects(claim)
    assert decide(claim, planted(claim, effects, 0.3)).verdict == SUPPORTED
    refuted = 0
    for index, comparison in enumerate(claim.comparisons):
        opposite = 3 * comparison.zone if comparison.expect == "same" else -effects[index]
        found = decide(claim, planted(claim, [*effects[:index], opposite, *effects[index + 1 :]], 0.3))
        if found.findings[index].verdict == REFUTED:  # unless comparisons before it decide it (claim pre-norm)
            refuted += 1
            assert found.verdict == (SUPPORTED if comparison.aside else REFUTED)
    assert refuted >= min(2, len(claim.comparisons))


def test_an_arm_is_compared_with_the_prediction_of_a_law():
    claim = CLAIMS["law"]
    [comparison] = claim.comparisons

    def measured(x25):
        losses = {"x1": (1e10, 4.0), "x5": (5e10, 3.0), "x25": (2.5e11, x25)}
        return {arm: {i: {"flops": c, "bits_per_byte": loss} for i in range(6)} for arm, (c, loss) in losses.items()}

    assert differences(comparison, measured(2.5)) == pytest.approx([2.5 - 3.0**2 / 4.0] * 6)
    assert decide(claim, measured(2.25)).verdict == SUPPORTED
    assert decide(claim, measured(2.5)).verdict == REFUTED
    assert decide(claim, measured(math.inf)).findings[0].lost == (6, 0)
    lost = measured(2.25) | {"x1": {i: {"bits_per_byte": math.inf} for i in range(6)}}
    assert decide(claim, lost).verdict != SUPPORTED


def test_an_interaction_is_the_difference_of_two_differences():
    comparison = CLAIMS["norms-batch"].comparisons[-1]
    values = {"batch": 2.5, "layer": 2.0, "batch-16": 2.1, "layer-16": 1.9}
    measured = {arm: {0: {"bits_per_byte": value}} for arm, value in values.items()}
    assert differences(comparison, measured) == pytest.approx([0.3])
    assert differences(comparison, {**measured, "batch-16": {}}) == ()  # not all arms have the pair


def test_published_cases_do_not_ask_for_more_pairs():
    claim = CLAIMS["hundredfold"]
    jobs = {arm: [Job("compute", None, order, claim.options(arm)) for order in range(5)] for arm in claim.arms}
    measured = {arm: {job.order: compute(job).measures for job in some} for arm, some in jobs.items()}
    found = decide(claim, measured)
    verdicts = [finding.verdict for finding in found.findings]
    assert verdicts == [SUPPORTED, UNDECIDED, UNDECIDED] and found.verdict == UNDECIDED and found.needs == 0
    known = {**measured, "gpt2": {n: {"log10_ratio": 0.5} for n in range(5)}}
    assert decide(claim, known).verdict == REFUTED


def test_what_the_notes_on_the_share_of_pretraining_say_of_other_cases_is_so():
    claim = CLAIMS["pretraining-share"]
    without, with_r1, *others = claim.setup.options["values"]

    def verdict(*values):
        return decide(claim, {"open": {n: {"value": value} for n, value in enumerate(values)}}).verdict

    assert verdict(without, with_r1, *others) == verdict(with_r1, *others) == SUPPORTED
    assert verdict(without, *others) == verdict(without, with_r1, *others, 0.5) == UNDECIDED
    assert sum([without, with_r1, *others, 0.5]) / 5 == pytest.approx(0.83, abs=0.005) and "0.83" in claim.notes


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


@pytest.mark.parametrize("expect", ["same", "lower"])
def test_arms_that_both_diverge_are_not_shown_to_be_alike(expect):
    claim, lost = one_claim(pairs=12), [math.inf] * 12
    claim = replace(claim, comparisons=(replace(claim.comparisons[0], expect=expect),))
    assert decide(claim, measured_of(lost, lost)).verdict == UNDECIDED
    noisy = [2.0 + 0.001 * (-1) ** n for n in range(11)]
    assert decide(claim, measured_of([2.0] * 11 + lost[:1], noisy + lost[:1])).verdict == UNDECIDED


def test_a_diverged_run_without_the_measure_leaves_the_comparison_undecided():
    claim = CLAIMS["covariate-shift"]
    measured = planted(claim, predicted_effects(claim), 0.3)
    assert decide(claim, measured).verdict == SUPPORTED
    name = claim.comparisons[0].arm
    del measured[name][3]["covariate_shift"]
    found = decide(claim, measured)
    finding = found.findings[0]
    assert found.verdict == UNDECIDED and finding.left_out == 1 and sum(finding.lost) == 1


def test_what_is_told_aside_does_not_decide():
    claim = CLAIMS["chinchilla"]
    effects = [3 * claim.comparisons[0].smallest, -3 * claim.comparisons[1].smallest]
    found = decide(claim, planted(claim, effects, 0.3))
    assert [finding.verdict for finding in found.findings] == [SUPPORTED, REFUTED] and found.verdict == SUPPORTED
    assert found.findings[1].to_dict()["aside"]
    with pytest.raises(UserError, match="at least one has to decide"):
        replace(claim, comparisons=claim.comparisons[1:])


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
