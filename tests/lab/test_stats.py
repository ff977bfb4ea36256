"""The lab's tests have their nominal error rates and power, and the right number of pairs. The full simulation is
bench/lab_stats.py."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

import lab_stats
from isoflop.lab import anytime, stats
from small import write_texts

STUDIES = 400  # so few that a rate is known to about 2 points


def rate(test, pairs, effect=0.0, sd=1.0, studies=STUDIES):
    generator = np.random.default_rng(pairs)
    return np.mean([test(effect + sd * generator.normal(size=pairs)) for _ in range(studies)])


@pytest.mark.parametrize("pairs", [3, 8])
def test_the_t_test_is_scipy_s(pairs):
    d = np.random.default_rng(pairs).normal(0.3, 1.0, pairs)
    found, theirs = stats.paired_t(d), scipy_stats.ttest_1samp(d, 0.0)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))


@pytest.mark.parametrize("n", [1, 2, 7, 12])
def test_the_sign_test_is_scipy_s(n):
    for above in range(n + 1):
        d = [1.0] * above + [-1.0] * (n - above)
        assert stats.median_difference(d).p == pytest.approx(scipy_stats.binomtest(above, n).pvalue)


@pytest.mark.parametrize("test", ["paired t", "sign-flip"])
def test_fixed_tests_reject_at_the_nominal_rate(test):
    low, high = scipy_stats.binom.ppf([0.001, 0.999], STUDIES, 0.05) / STUDIES
    assert low <= rate(lab_stats.TESTS[test], 10) <= high


@pytest.mark.parametrize("test", ["anytime t, every look", "anytime sign", "sign test"])
def test_an_anytime_test_keeps_its_error_when_checked_after_every_pair(test):
    assert rate(lab_stats.TESTS[test], 20) <= scipy_stats.binom.ppf(0.999, STUDIES, 0.05) / STUDIES


def test_checking_a_fixed_test_after_every_pair_inflates_its_error():
    assert rate(lab_stats.TESTS["paired t, every look (wrong)"], 20, studies=150) > 0.12


@pytest.mark.parametrize("sd", [0.01, 0.03])
def test_a_known_effect_is_found_with_the_planned_power(sd):
    for needed, test in (
        (stats.required_pairs(0.03, sd), lab_stats.TESTS["paired t"]),
        (anytime.required_pairs(0.03, sd), lab_stats.TESTS["anytime t, every look"]),
    ):
        assert rate(test, needed, 0.03, sd) >= 0.8 - 3 * math.sqrt(0.16 / STUDIES)


def test_arms_as_far_apart_as_the_margin_are_rarely_called_equivalent_and_equal_ones_mostly_are():
    def equal(d):
        return stats.equivalence(d, 0.03) <= 0.05

    assert rate(equal, 8, 0.03, 0.01) <= scipy_stats.binom.ppf(0.999, STUDIES, 0.05) / STUDIES
    assert rate(equal, stats.required_for_equivalence(0.03, 0.02), 0.0, 0.02) >= 0.75


@pytest.mark.parametrize("sd", [0.011, 0.03])
def test_what_the_anytime_rule_sees_is_what_it_needs_pairs_for(sd):
    pairs = anytime.required_pairs(0.02, sd)
    assert anytime.detectable(pairs, sd) <= 0.02 < anytime.detectable(pairs - 1, sd)
    assert anytime.detectable(pairs, sd) > stats.detectable(pairs, sd)
    assert math.isinf(anytime.detectable(2, sd)) and anytime.detectable(pairs, 0.0) == 0.0


def test_required_pairs_and_detectable_effects_are_inverse():
    for sd in (0.005, 0.011, 0.04):
        pairs = stats.required_pairs(0.02, sd)
        assert stats.detectable(pairs, sd) <= 0.02 and (pairs == 2 or stats.detectable(pairs - 1, sd) > 0.02)
    assert stats.required_pairs(0.01, 0.011) == 12  # "an effect of 0.01 needs a dozen pairs"


def test_signs_need_six_pairs_alone_and_nine_in_a_family_of_twelve():
    assert next(n for n in range(1, 12) if stats.enough_for_signs(n, 0.05)) == 6
    assert next(n for n in range(1, 12) if stats.enough_for_signs(n, 0.05, 12)) == 9
    assert (stats.pairs_for_signs(0.05), stats.pairs_for_signs(0.05, 12)) == (6, 9)
    n = anytime.pairs_for_signs(0.05)
    assert anytime.median_sequence([1.0] * n).p <= 0.05 < anytime.median_sequence([1.0] * (n - 1)).p
    assert stats.sign_flip([1.0] * 6) == pytest.approx(2 / 64)
    many = np.random.default_rng(0).normal(0.5, 1.0, 20)
    assert stats.sign_flip(many) == pytest.approx(stats.paired_t(many).p, abs=0.01)  # drawn, not counted out


def test_holm_is_the_textbook_s():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]) == []


def test_a_bootstrap_interval_is_about_as_wide_as_student_s():
    d = np.random.default_rng(1).normal(size=8)
    low, high = stats.bootstrap(d)
    one = stats.paired_t(d)
    assert 0.7 < (high - low) / (one.high - one.low) < 1.3


def test_a_run_that_never_reaches_the_target_counts():
    never = stats.time_to(1.0, [10, 20, 30], [3.0, 2.0, 1.5])
    assert math.isinf(never) and stats.time_to(2.5, [10, 20], [3.0, 2.0]) == pytest.approx(15.0)
    assert stats.time_to(3.5, [10, 20], [3.0, 2.0]) == 10.0

    lost = stats.subtract([math.inf] * 7, [2.0] * 7)
    found = stats.median_difference(lost)
    assert found.p == pytest.approx(2 / 128) and found.low == found.value == math.inf
    assert stats.median_difference(stats.subtract([math.inf] * 7, [math.inf] * 7)).p == 1.0  # both were lost: a tie
    with pytest.raises(ValueError, match="median_difference"):
        stats.paired_t(lost)


@pytest.mark.parametrize("n", [6, 9, 30])
def test_the_interval_of_the_median_has_its_coverage(n):
    generator = np.random.default_rng(n)
    found = [stats.median_difference(generator.exponential(size=n)) for _ in range(STUDIES)]
    assert np.mean([one.low <= math.log(2) <= one.high for one in found]) >= 0.95 - 0.035
    assert math.isinf(stats.median_difference(generator.normal(size=5)).high)  # five pairs bound nothing


def test_a_confidence_sequence_has_its_coverage_at_all_times_and_agrees_with_its_test():
    generator, misses = np.random.default_rng(3), 0
    for _ in range(200):
        d = generator.normal(0.7, 1.0, 25)
        found = anytime.confidence_sequence(d)
        misses += not found.low <= 0.7 <= found.high
        outside = not found.low <= 0.0 <= found.high
        assert outside == (found.p <= 0.05)
    assert misses <= 20


def test_the_limit_on_t_is_where_the_e_value_reaches_one_over_alpha():
    for n in (5, 9, 40):
        t = anytime.bound(n, 0.05)
        d = np.random.default_rng(n).normal(size=n)
        d = (d - d.mean()) / d.std(ddof=1) + t / math.sqrt(n)
        assert anytime.log_e_value(d) == pytest.approx(math.log(20), rel=1e-6)


def test_values_that_do_not_depend_on_the_seed_need_no_test():
    assert stats.paired_t([0.5, 0.5]).p == 0.0 and stats.paired_t([0.0, 0.0]).p == 1.0
    assert stats.paired_t([0.5]).p == 1.0 and stats.equivalence([1e-16, 1e-16], 1e-9) == 0.0


def test_a_measure_without_noise_needs_two_pairs_and_shows_any_difference():
    sd, limit = stats.noise([0.0, 0.0, 0.0])  # as of runs none of which fails
    assert sd == limit == stats.detectable(5, limit) == 0.0
    assert stats.required_pairs(0.1, limit) == 2 and anytime.required_pairs(0.1, limit) == 5


def test_planning_uses_the_upper_limit_of_the_noise():
    sd, limit = stats.noise([0.01, -0.012, 0.008])
    assert sd == pytest.approx(math.sqrt((0.01**2 + 0.012**2 + 0.008**2) / 3)) and 1.2 * sd < limit < 2.5 * sd


def by_what(rows):
    return {(row["what"], row["pairs"]): row for row in rows}


def test_runs_paired_again_and_again_are_told_apart_as_often_as_promised():
    """On a made-up pool, whose noise is known: what bench/lab_stats.py does with real runs."""
    generator = np.random.default_rng(4)
    pool = 2.0 + 0.1 * generator.normal(size=(16, 1)) + 0.01 * generator.normal(size=(16, 4))
    assert 0.007 < lab_stats.noise_of(pool) / math.sqrt(2) < 0.013
    d = lab_stats.re_paired(pool, generator, 12)
    assert d.shape == (12,) and np.abs(d).max() < 0.08  # of one order each: the orders' differences cancel

    found = by_what(lab_stats.repaired(pool, 400, sizes=(9, 20)))
    assert not any(pairs == 20 for _, pairs in found)  # more than there are orders
    wrong, right = found["no effect: paired t rejects", 9], found["no effect: anytime t, every look rejects", 9]
    assert 0.015 < wrong["share"] < 0.1 and right["share"] <= 0.075
    assert found["the effect that so many pairs promise to find: found by paired t", 9]["share"] > 0.65
    assert found["effect: the verdict is supported", 9]["share"] > 0.5
    assert found["its opposite: the verdict is refuted", 9]["share"] > 0.5
    assert found["effect: the verdict is refuted", 9]["share"] == 0.0


def test_a_pool_of_runs_is_made_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path / "home"))
    texts, out = write_texts(tmp_path / "texts"), tmp_path / "pool.jsonl"
    for count in (2, 4):  # the second call runs what the first has not
        lab_stats.make_runs(count, 2, out, 2048, 0, [str(texts)])
    assert capsys.readouterr().out.count("bits per byte, ") == 4
    pool = lab_stats.pool_of(out)
    assert pool.shape == (2, 2) and lab_stats.noise_of(pool) > 0
