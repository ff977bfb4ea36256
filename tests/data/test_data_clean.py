"""Exact duplicates, and the split by content."""

import random

import numpy as np

from isoflop.data.clean import Digests, digest_of, fraction


def test_digests_agree_with_a_set():
    draw = random.Random(0)
    stream = [digest_of(b"%d" % draw.randrange(6000)) for _ in range(10_000)]
    ours, theirs = Digests(recent=64), set()
    for digest in stream:
        assert ours.add(digest) == (digest not in theirs)
        theirs.add(digest)
    assert len(ours) == len(theirs) and all(digest in ours for digest in theirs)
    assert digest_of(b"never added") not in ours


def test_digests_that_agree_in_half_their_bytes_are_distinguished():
    ours = Digests(recent=2)
    digests = [b"sameHalf" + bytes([i]) * 8 for i in range(7)]
    assert all(ours.add(digest) for digest in digests) and not any(ours.add(digest) for digest in digests)


def test_digests_take_16_bytes_each():
    ours = Digests(recent=256)
    for i in range(20_000):
        ours.add(digest_of(b"%d" % i))
    arrays = sum(first.nbytes + last.nbytes for first, last in ours.levels)
    assert arrays == 16 * (20_000 - len(ours.recent)) and len(ours.levels) <= 8


def test_fractions_are_uniform_and_independent_of_purpose_and_seed():
    digests = [digest_of(b"%d" % i) for i in range(4000)]
    columns = np.array([[fraction(d, p, s) for p, s in (("split", 0), ("share", 0), ("split", 1))] for d in digests])
    assert ((columns >= 0) & (columns < 1)).all()
    assert np.abs(columns.mean(axis=0) - 0.5).max() < 0.02
    correlation = np.corrcoef(columns.T) - np.eye(3)
    assert np.abs(correlation).max() < 0.06
    assert fraction(digests[0], "split", 0) == columns[0, 0]
