"""Every pair of entries across slots works together, or is refused with a sentence: a covering array of models."""

import random
from itertools import combinations, product

import pytest

from isoflop.model.registry import SLOTS
from product import refusal, train_and_decode

DEFAULT = {"norm": "rms", "position": "rotary", "attention": "full", "feed_forward": "mlp", "wiring": "pre"}
# The rules by which entries refuse each other: (a pair of entries, words of the sentence).
REFUSED = {
    frozenset({("attention", "latent"), ("position", "relative")}): "a part of each head",
}


def pairs_of(names):
    return {frozenset(pair) for pair in combinations(names.items(), 2)}


ALL_PAIRS = [
    frozenset({(one, a), (other, b)})
    for one, other in combinations(SLOTS, 2)
    for a, b in product(SLOTS[one], SLOTS[other])
]


def covering_array():
    """Few combinations in which every pair that is not refused occurs: greedy, the best of some random rows each time,
    each built around a pair that is still missing."""
    draw = random.Random(0)
    missing = dict.fromkeys(pair for pair in ALL_PAIRS if pair not in REFUSED)
    rows = []
    while missing:
        first = next(iter(missing))
        trials = []
        for _ in range(60):
            row = {slot: draw.choice(list(table)) for slot, table in SLOTS.items()} | dict(first)
            if not pairs_of(row) & REFUSED.keys():
                trials.append((sum(pair in missing for pair in pairs_of(row)), len(trials), row))
        row = max(trials)[2]
        rows.append(row)
        for pair in pairs_of(row):
            missing.pop(pair, None)
    return rows


@pytest.mark.parametrize("names", covering_array(), ids=lambda names: "-".join(names.values()))
def test_a_pair_of_entries_trains_and_decodes(names):
    assert refusal(names) == ""
    train_and_decode(names)


def test_only_pairs_with_a_rule_are_refused():
    for pair in ALL_PAIRS:
        message = refusal(DEFAULT | dict(pair))
        if pair in REFUSED:
            assert REFUSED[pair] in message
        else:
            assert message == ""
