"""Finding items in the training text."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.evaluate import contamination
from isoflop.evaluate.contamination import documents_of, find_overlap
from isoflop.evaluate.items import Item

LONG = "One two three four five six seven eight nine ten eleven twelve"


def item(context, *options):
    return Item(1, "", (context,) * len(options), options, tuple(f" {option}" for option in options))


def test_an_item_is_found_by_thirteen_words_of_any_of_its_texts():
    items = [
        item(LONG, "thirteen", "fourteen"),
        item(LONG, "dogs", "cats"),
        item("Too short a question", "yes", "no"),
    ]
    text = "and, ONE -- two three; four five six seven eight nine ten\n eleven twelve (fourteen) and so on"
    found = find_overlap(items, ["nothing of it here", text])
    assert found.overlaps.tolist() == [True, False, False]
    assert found.short.tolist() == [False, False, True] and found.words == 4 + 17
    apart = find_overlap(items, [LONG, "fourteen and so on"])  # not across documents
    assert not apart.overlaps.any()


WORDS = st.lists(st.sampled_from("ab"), min_size=0, max_size=40)


@given(st.lists(WORDS, min_size=1, max_size=4), st.lists(WORDS, min_size=0, max_size=4))
def test_it_equals_the_definition(texts, documents):
    def rows(words):
        return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}

    there = set().union(*(rows(words) for words in documents)) if documents else set()
    items = [Item(1, "", ("",), (" ".join(words),), (" ".join(words),)) for words in texts]
    found = find_overlap(items, [" ".join(words) for words in documents])
    assert found.overlaps.tolist() == [bool(rows(words) & there) for words in texts]
    assert found.short.tolist() == [len(words) < 13 for words in texts]


@settings(max_examples=20)
@given(st.integers(0, 400), st.integers(250, 900))
def test_a_document_that_is_decoded_in_pieces_is_searched_whole(tokenizer, place, chunk):
    words = ["cat", "dogs", "sat", "ran", "mat"]
    filler = [words[(i * i + i // 3) % 5] for i in range(400)]
    planted = [*filler[:place], LONG, "thirteen", *filler[place:]]
    texts = ["a short one", " ".join(planted), "", "another"]
    stream = np.concatenate([[*tokenizer.encode(text), tokenizer.eot] for text in texts]).astype(np.uint16)
    before = contamination.CHUNK, contamination.ENOUGH
    contamination.CHUNK, contamination.ENOUGH = chunk, 200
    try:
        found = find_overlap([item(LONG, "thirteen"), item(LONG, "dogs")], documents_of(stream, tokenizer))
    finally:
        contamination.CHUNK, contamination.ENOUGH = before
    assert found.overlaps.tolist() == [True, False]
    assert list(documents_of(stream, tokenizer)) == [text for text in texts if text]
