import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.evaluate.transduction import edit_distance, judge

WORDS = st.lists(st.sampled_from("abc"), max_size=7)


def by_definition(a, b):
    """The recursion of the definition, without a table."""
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return by_definition(a[1:], b[1:])
    return 1 + min(by_definition(a[1:], b), by_definition(a, b[1:]), by_definition(a[1:], b[1:]))


@given(WORDS, WORDS)
def test_edit_distance_is_the_definitions(a, b):
    assert edit_distance(a, b) == by_definition(a, b) == edit_distance(b, a)


def test_rates_count_edits_over_the_nearest_references_units():
    wanted = {"read": ["R EH1 D", "R IY1 D"], "cat": ["K AE1 T"], "a": ["AH0", "EY1"]}
    answers = {"read": "R IY1 D", "cat": "K T T S", "a": "AH0"}
    found = judge(lambda words: [answers[word] for word in words], wanted)
    assert (found.inputs, found.edits, found.units, found.exact) == (3, 2, 7, 2)
    assert found.unit_error_rate == pytest.approx(2 / 7) and found.exact_match == pytest.approx(2 / 3)
    assert found.unit == "between blanks"


def test_text_without_spaces_is_scored_by_characters():
    found = judge(lambda words: ["cba", "xx"], {"abc": ["cba"], "de": ["ed"]})
    assert (found.edits, found.units, found.exact, found.unit) == (2, 5, 1, "characters")


def test_an_empty_answer_counts_every_unit_as_an_error():
    rng = random.Random(0)
    wanted = {str(i): [" ".join(rng.choices("xyz", k=5))] for i in range(20)}
    assert judge(lambda words: [""] * len(words), wanted).unit_error_rate == 1.0
