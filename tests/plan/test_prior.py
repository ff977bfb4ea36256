import math
import random
from collections import Counter, defaultdict

import pytest

from isoflop.plan.predictability import BLOCK, ORDER, UNKNOWN, Predictability, ngram_bits_per_byte, predictability
from isoflop.plan.prior import expect, table
from isoflop.plan.repetition import excess, reducible_loss

TEXT = {value: Predictability(value, value) for value in (2.5, 3.0)}


def test_the_table_is_of_real_runs_over_several_corpora():
    runs = table()["runs"]
    assert len({run["corpus"] for run in runs}) >= 3
    assert "bench/prior.py" in table()["command"]
    for run in runs:
        assert math.isclose(run["flops"], 6 * run["parameters"] * run["tokens"], rel_tol=1e-6)


def test_more_compute_and_easier_text_mean_less_loss():
    assert expect(1e6, 2e7, 1e9, TEXT[3.0]).bits_per_byte < expect(3e5, 6e6, 1e9, TEXT[3.0]).bits_per_byte
    assert expect(1e6, 2e7, 1e9, TEXT[2.5]).bits_per_byte < expect(1e6, 2e7, 1e9, TEXT[3.0]).bits_per_byte


def test_the_interval_holds_the_value_and_widens_beyond_the_table():
    inside, far = expect(1e5, 2e6, 1e9, TEXT[3.0]), expect(1e9, 2e10, 1e12, TEXT[3.0])
    for e in (inside, far):
        assert 0 < e.low < e.bits_per_byte < e.high <= 16
    assert far.high / far.low > inside.high / inside.low
    assert "prior" in far.source and "law" in far.source


def test_a_verdict_says_on_which_side():
    e = expect(1e5, 2e6, 1e9, TEXT[3.0])
    assert [e.verdict(x) for x in (e.low * 0.9, e.bits_per_byte, e.high * 1.1)] == ["better", "inside", "worse"]


def test_twenty_tokens_a_parameter_is_best_on_fresh_text():
    compute = 1e13
    losses = {ratio: excess(n := math.sqrt(compute / 6 / ratio), n * ratio, 1e15) for ratio in (5, 10, 20, 40, 80)}
    assert min(losses, key=losses.__getitem__) == 20
    assert losses[20] == pytest.approx(1.0)


def test_repeated_text_is_worth_less_than_fresh():
    assert reducible_loss(1e6, 2e7, 1e6) > reducible_loss(1e6, 2e7, 2e7) == reducible_loss(1e6, 2e7, 1e9)


def naive(sample: bytes) -> float:
    """predictability.py's formula with dictionaries, byte by byte."""
    blocks = [sample[i : i + BLOCK] for i in range(0, len(sample), BLOCK)]
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


def test_predictability_is_the_interpolated_ngram_of_its_docstring():
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefgh", k=generator.randint(1, 5))) for _ in range(50)]
    sample = " ".join(generator.choices(words, k=25_000)).encode()
    assert ngram_bits_per_byte(sample) == pytest.approx(naive(sample), rel=1e-9)
    assert ngram_bits_per_byte(b"the same line again\n" * 5000) < 0.01
    assert ngram_bits_per_byte(random.Random(1).randbytes(200_000)) > 7.9
    assert predictability(b"too little") == UNKNOWN
    assert predictability(sample).ngram == ngram_bits_per_byte(sample) > 0 < predictability(sample).lzma
