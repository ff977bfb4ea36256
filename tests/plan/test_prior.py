import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from isoflop.plan.hierarchy import Corpus, Observation, estimate, log_law, predict, sizes
from isoflop.plan.predictability import (
    ORDER,
    UNKNOWN,
    Predictability,
    block_of,
    ngram_bits_per_byte,
    predictability,
)
from isoflop.plan.prior import LEVELS, calibrate, corpora_of, expect, half_widths, leave_corpora_out, population, table
from isoflop.plan.repetition import reducible_loss

TEXT = {value: Predictability(value, value) for value in (2.5, 3.0)}


def test_the_table_has_runs_of_several_corpora():
    runs = table()["runs"]
    assert len({run["corpus"] for run in runs}) >= 3
    assert "bench/prior.py" in table()["command"]
    for run in runs:
        assert math.isclose(run["flops"], 6 * run["parameters"] * run["tokens"], rel_tol=1e-6)


def test_more_compute_and_easier_text_mean_a_lower_loss():
    assert expect(1e6, 2e7, 1e9, TEXT[3.0]).bits_per_byte < expect(3e5, 6e6, 1e9, TEXT[3.0]).bits_per_byte
    assert expect(1e6, 2e7, 1e9, TEXT[2.5]).bits_per_byte < expect(1e6, 2e7, 1e9, TEXT[3.0]).bits_per_byte


def test_the_interval_contains_the_value_and_widens_beyond_the_table():
    inside, far = expect(1e5, 2e6, 1e9, TEXT[3.0]), expect(1e9, 2e10, 1e12, TEXT[3.0])
    for e in (inside, far):
        assert 0 < e.low < e.bits_per_byte < e.high <= 16
    assert far.high / far.low > inside.high / inside.low
    assert "prior" in far.source and "law" in far.source


def test_the_stored_population_follows_from_the_stored_runs():
    estimated = estimate(list(corpora_of(table()["runs"]).values())).to_dict()
    for name, value in estimated.items():
        assert np.allclose(value, table()["population"][name], rtol=1e-3, atol=1e-4), name


def test_the_stored_calibration_follows_from_the_stored_runs():
    found, stored = calibrate(leave_corpora_out(table()["runs"])), table()["calibration"]
    for name, value in vars(found).items():
        assert value == pytest.approx(stored[name], rel=1e-3, abs=1e-4), name


def test_half_widths_hold_their_share_of_the_errors_whatever_the_number_of_runs_per_corpus():
    many = [("often", 9.0)] * 50 + [(f"text {i}", float(i)) for i in range(1, 100)]
    half, most, nearly_all = half_widths(many)
    assert 50 <= half <= 52 and 80 <= most <= 82 and 90 <= nearly_all <= 92
    assert half_widths([("one", 2.0)]) == (2.0, 2.0, 2.0)


def test_intervals_of_rising_levels_are_nested():
    e = expect(1e5, 2e6, 1e9, TEXT[3.0])
    bounds = [e.between(level) for level in LEVELS]
    lows, highs = [one.low for one in bounds], [one.high for one in bounds]
    assert lows == sorted(lows, reverse=True) and highs == sorted(highs)
    assert (lows[-1], highs[-1]) == (e.low, e.high) and lows[0] < e.bits_per_byte < highs[0]


def test_pilots_correct_the_forecast_and_narrow_its_interval():
    text, target = TEXT[2.5], (5e5, 5e6, 1e9)
    alone = expect(*target, text)
    theta = population().mean(text)
    for shift in (-0.3, 0.3):  # a text a third easier or harder than its n-gram says
        odd = theta + np.array([0.0, shift, 0.0])

        def reached(n, d, odd=odd):
            return float(np.exp(log_law(odd, *sizes([n], [d], [1e9]))[0][0]))

        pilots = [Observation(n, d, 1e9, reached(n, d)) for n, d in ((5e4, 5e5), (1e5, 1e6))]
        piloted = expect(*target, text, pilots)
        assert abs(math.log(piloted.bits_per_byte / reached(5e5, 5e6))) < 0.35 * abs(shift)
        assert piloted.high / piloted.low < alone.high / alone.low
        assert "pilot" in piloted.source and "prior" not in piloted.source

        other = expect(*target, text, pilots, other_recipe=True)
        assert other.high / other.low > piloted.high / piloted.low


def test_a_text_too_small_to_measure_has_a_wider_interval():
    known, unknown = expect(1e5, 2e6, 1e9, Predictability(2.4, 2.4)), expect(1e5, 2e6, 1e9, UNKNOWN)
    assert unknown.high / unknown.low > known.high / known.low


def test_the_estimate_recovers_a_known_distribution_of_laws():
    generator = np.random.default_rng(0)
    corpora = []
    for _ in range(40):
        text = Predictability(*np.exp(generator.normal(0.85, 0.1, 2)))
        level = 0.5 + 1.5 * (math.log(text.ngram) - 0.85) + generator.normal(0, 0.08)
        rate = -1.5 - 0.5 * (math.log(text.lzma) - 0.85) + generator.normal(0, 0.1)
        theta = np.array([math.log(0.35 / 0.65), level, rate])
        runs = []
        for n, d in ((5e4, 1e6), (1e5, 2e6), (2e5, 4e6), (5e5, 1e7), (1e6, 2e7)):
            value = log_law(theta, *sizes([n], [d], [1e9]))[0][0] + generator.normal(0, 0.01)
            runs.append(Observation(n, d, 1e9, float(np.exp(value))))
        corpora.append(Corpus.of(text, runs))
    known, new = estimate(corpora[:15]), corpora[15:]
    assert known.level[1] == pytest.approx(1.5, abs=0.6)
    assert known.spread[0][0] ** 0.5 == pytest.approx(0.08, rel=0.5)
    assert known.noise == pytest.approx(0.01, rel=0.4)

    # the 90 % intervals of 25 new corpora have about that coverage
    inside = 0
    for corpus in new:
        value, deviation = predict(known, corpus.text, Observation(1e6, 2e7, 1e9, 0.0))
        inside += abs(corpus.target[-1] - value) < 1.77 * deviation
    assert inside >= 17


def test_the_verdict_is_better_inside_or_worse():
    e = expect(1e5, 2e6, 1e9, TEXT[3.0])
    assert [e.verdict(x) for x in (e.low * 0.9, e.bits_per_byte, e.high * 1.1)] == ["better", "inside", "worse"]


def test_twenty_tokens_per_parameter_are_best_on_fresh_text():
    compute = 1e13
    ratios = (5, 10, 20, 40, 80)
    losses = {ratio: reducible_loss(n := math.sqrt(compute / 6 / ratio), n * ratio, 1e15) for ratio in ratios}
    assert min(losses, key=losses.__getitem__) == 20


def test_repeated_text_is_worth_less_than_fresh_text():
    assert reducible_loss(1e6, 2e7, 1e6) > reducible_loss(1e6, 2e7, 2e7) == reducible_loss(1e6, 2e7, 1e9)


def naive(sample: bytes) -> float:
    """predictability.py's formula with dictionaries, byte by byte."""
    size = block_of(len(sample))
    blocks = [sample[i : i + size] for i in range(0, len(sample), size)]
    learned = b"".join(block for i, block in enumerate(blocks) if i % 4 != 3)
    held = b"".join(blocks[3::4])
    seen = [defaultdict(Counter) for _ in range(ORDER + 1)]
    for k in range(ORDER + 1):
        for i in range(k, len(learned)):
            seen[k][learned[i - k : i]][learned[i]] += 1
    bits = 0.0
    for i in range(ORDER, len(held)):
        p = 1 / 256
        for k in range(ORDER + 1):
            after = seen[k].get(held[i - k : i])
            if after:
                p = (after[held[i]] + len(after) * p) / (after.total() + len(after))
        bits -= math.log2(p)
    return bits / (len(held) - ORDER)


def test_predictability_is_the_ngram_model_of_its_docstring():
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefgh", k=generator.randint(1, 5))) for _ in range(50)]
    sample = " ".join(generator.choices(words, k=25_000)).encode()
    assert ngram_bits_per_byte(sample) == pytest.approx(naive(sample), rel=1e-9)
    assert ngram_bits_per_byte(b"the same line again\n" * 5000) < 0.01
    assert ngram_bits_per_byte(random.Random(1).randbytes(200_000)) > 7.9
    assert predictability(b"too little") == UNKNOWN
    assert predictability(sample).ngram == ngram_bits_per_byte(sample) > 0 < predictability(sample).lzma


@pytest.mark.parametrize("ngram", [1e-9, 0.01, 0.3, 2.4, 8.0, 12.0])
@pytest.mark.parametrize("lzma", [1e-6, 0.05, 2.4, 8.0])
def test_texts_unlike_the_priors_corpora_have_finite_forecasts(ngram, lzma):
    """Such as a text of one line, repeated."""
    for n, d in ((1e3, 1e3), (4e4, 1e3), (1e6, 2e7), (1e11, 1e13)):
        found = expect(n, d, min(d, 1e6), Predictability(ngram, lzma))
        assert all(math.isfinite(value) for value in (found.bits_per_byte, found.low, found.high))
        assert 0 <= found.low <= found.bits_per_byte <= found.high
