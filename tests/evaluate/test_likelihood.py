"""Likelihoods of continuations equal the model's, in any batch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isoflop.evaluate import likelihood
from isoflop.evaluate.batches import Window, make_batches
from isoflop.evaluate.likelihood import Request, likelihoods, read, windows_over

REQUESTS = [
    Request("The cat sat on", " the mat"),
    Request("The cat sat on ", "the mat"),  # the blank belongs to the continuation
    Request("The cat sat on", " it"),
    Request("", "A fox said things"),
    Request("   ", "dogs"),
    Request("The dogs ran to it, and " * 9, " a small brown fox"),  # longer than the context of 32
    Request("The", " dogs ran to nobody at all" * 8),  # and so is this continuation
    Request("The c", "at"),  # a boundary within a word, and within a token
    Request("The cat sat on", " the mat"),
]


def by_hand(model, tokenizer, request):
    """The definition, one request at a time: encode the whole, take off as many ids as the context has."""
    context = request.context.rstrip()
    text = request.context[len(context) :] + request.continuation
    before = tokenizer.encode(context)
    after = tokenizer.encode(context + text)[len(before) :] or tokenizer.encode(text)
    ids = torch.tensor([*(before or [tokenizer.start]), *after])
    kept = ids[-(model.config.context + 1) :]
    with torch.no_grad():
        ln_p = model(kept[None, :-1]).log_softmax(-1)[0]
    targets = kept[1:]
    scored = slice(len(targets) - len(after), None)
    nats = ln_p[torch.arange(len(targets)), targets][scored]
    return float(nats.sum()), bool((ln_p.argmax(-1) == targets)[scored].all()), len(after)


def test_each_likelihood_is_that_of_the_item_alone(model, tokenizer, runtime):
    found = likelihoods(model, tokenizer, REQUESTS, runtime)
    for request, one in zip(REQUESTS, found, strict=True):
        if len(tokenizer.encode(request.continuation)) < model.config.context:
            nats, greedy, tokens = by_hand(model, tokenizer, request)
            assert one.nats == pytest.approx(nats, rel=1e-5) and (one.greedy, one.tokens) == (greedy, tokens)
    assert found[0] == found[8] and found[0].nats == pytest.approx(found[1].nats)
    assert found[5].cut > 0 == found[0].cut


def test_the_first_choice_is_greedy(model, tokenizer, runtime):
    ids = tokenizer.encode("The cat sat on")
    with torch.no_grad():
        best = int(model(torch.tensor([ids])).argmax(-1)[0, -1])
    windows = [Window(np.array([*ids, target]), 1) for target in (best, (best + 1) % tokenizer.vocab_size)]
    assert [greedy for _, greedy in read(model, windows, runtime)] == [True, False]


def test_a_continuation_longer_than_the_context_counts_every_token(model, tokenizer, runtime):
    long = REQUESTS[6]
    one = likelihoods(model, tokenizer, [long], runtime)[0]
    assert one.tokens > model.config.context and -20 * one.tokens < one.nats < 0


def test_options_of_one_token_are_read_once(model, tokenizer, runtime, monkeypatch):
    sizes = []
    hidden = model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda tokens, *rest: sizes.append(tuple(tokens.shape)) or hidden(tokens, *rest)
    )
    letters = likelihoods(model, tokenizer, [Request("Which letter:", letter) for letter in "abcd"], runtime)
    assert all(one.tokens == 1 for one in letters)
    assert len(sizes) == 1 and sizes[0][0] == 1
    total = sum(math.exp(one.nats) for one in letters)
    assert 0 < total < 1


@pytest.mark.parametrize("most", [1, 40, 10**6])
def test_the_batch_does_not_change_a_likelihood(model, tokenizer, runtime, monkeypatch, most):
    alone = [likelihoods(model, tokenizer, [request], runtime)[0].nats for request in REQUESTS]
    monkeypatch.setitem(likelihood.BATCH_TOKENS, "cpu", most)
    monkeypatch.setattr(likelihood, "CHUNK_LOGITS", 3 * tokenizer.vocab_size)
    together = likelihoods(model, tokenizer, REQUESTS, runtime)
    assert [one.nats for one in together] == pytest.approx(alone, rel=1e-5)


def test_several_processes_give_the_same_as_one(model, tokenizer, runtime, monkeypatch):
    monkeypatch.setitem(likelihood.BATCH_TOKENS, "cpu", 40)
    expected = likelihoods(model, tokenizer, REQUESTS, runtime)
    parts: list = [None, None]

    class Part:
        size = 2

        def __init__(self, rank):
            self.rank = rank

        def pause(self):
            pass

        def gather(self, mine):
            parts[self.rank] = mine
            return parts

    with pytest.raises(TypeError):  # the other's part is not there yet
        likelihoods(model, tokenizer, REQUESTS, runtime, Part(0))
    assert likelihoods(model, tokenizer, REQUESTS, runtime, Part(1)) == expected
    assert likelihoods(model, tokenizer, REQUESTS, runtime, Part(0)) == expected


def test_the_models_mode_is_restored(model, tokenizer, runtime):
    model.train()
    try:
        likelihoods(model, tokenizer, REQUESTS[:1], runtime)
        assert model.training
    finally:
        model.eval()


@given(st.integers(2, 60), st.integers(1, 10), st.integers(2, 12), st.data())
def test_windows_predict_each_id_once(count, first, length, data):
    stride = data.draw(st.integers(1, length - 1))
    first = min(first, count - 1, length - 1)
    ids = np.arange(count)
    windows = list(windows_over(ids, first, length, stride))
    assert np.concatenate([window.ids[-window.scored :] for window in windows]).tolist() == list(range(first, count))
    assert all(window.scored < len(window.ids) <= length for window in windows)
    for window in windows[1:-1]:
        assert len(window.ids) - window.scored == length - stride


@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=9), min_size=1, max_size=20), st.integers(1, 30))
def test_batches_have_every_window_within_the_token_limit(sequences, most):
    windows = [Window(np.array(ids), 1) for ids in sequences]
    batches = make_batches(windows, most)
    assert sorted(number for batch in batches for row in batch.rows for number in row) == list(range(len(windows)))
    for batch in batches:
        longest = max(len(windows[row[0]].ids) - 1 for row in batch.rows)
        assert len(batch.rows) == 1 or len(batch.rows) * longest <= most
        assert all(len({windows[number].ids[:-1].tobytes() for number in row}) == 1 for row in batch.rows)
        assert not batch.prefixes


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(1, 4)), min_size=1, max_size=20),
    st.integers(1, 60),
    st.integers(1, 200),
)
def test_rows_with_a_common_beginning_are_all_there_and_begin_with_it(rows, most, held):
    """Rows of four families with beginnings of 9 to 21 ids, and a rest of their own."""
    windows = [
        Window(np.array([*([kind] * (9 + extra)), *(100 * i + np.arange(scored + 1))]), scored)
        for i, (kind, extra, scored) in enumerate(rows)
    ]
    context = max(len(window.ids) - 1 for window in windows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isoflop.generate.prefix.LEAST_SAVED", 1)
        batches = make_batches(windows, most, held, context)
    assert sorted(number for batch in batches for row in batch.rows for number in row) == list(range(len(windows)))
    for batch in batches:
        inputs = [windows[row[0]].ids[:-1] for row in batch.rows]
        if not batch.prefixes:
            continue
        longest = max(map(len, batch.prefixes))
        rest = max(len(ids) - batch.skipped(b) for b, ids in enumerate(inputs))
        assert longest + rest <= context and len(batch.prefix_of) == len(batch.rows)
        assert len(batch.rows) == 1 or len(batch.rows) * rest <= most or len(set(batch.prefix_of)) == 1
        assert len(batch.rows) == 1 or len(batch.rows) * (longest + rest) <= held
        for b, (row, ids) in enumerate(zip(batch.rows, inputs, strict=True)):
            assert ids[: batch.skipped(b)].tolist() == batch.prefixes[batch.prefix_of[b]].tolist()
            assert batch.skipped(b) <= len(ids) - max(windows[number].scored for number in row)


def test_a_shared_context_goes_through_the_model_once(model, tokenizer, runtime, monkeypatch):
    """Options of different lengths after contexts of different lengths: the scores are those without sharing."""
    requests = [
        Request(f"The {noun} sat on the mat and the {noun} said", f" {text}")
        for noun in ("cat", "small brown fox", "dog")
        for text in ("it", "the fox ran to it", "nobody", "a mat")
    ] + [Request("The c", "at")]
    monkeypatch.setattr(likelihood, "CACHE_BYTES", {"cpu": 0, "cuda": 0})
    alone = likelihoods(model, tokenizer, requests, runtime)
    monkeypatch.setattr(likelihood, "CACHE_BYTES", {"cpu": 2**28, "cuda": 2**28})
    monkeypatch.setattr("isoflop.generate.prefix.LEAST_SAVED", 1)
    sizes, hidden = [], model.hidden

    def counted(tokens, *rest):
        sizes.append(tuple(tokens.shape))
        return hidden(tokens, *rest)

    monkeypatch.setattr(model, "hidden", counted)
    shared = likelihoods(model, tokenizer, requests, runtime)
    assert [one.nats for one in shared] == pytest.approx([one.nats for one in alone], rel=1e-5)
    assert [one.greedy for one in shared] == [one.greedy for one in alone]
    assert [rows for rows, _ in sizes] == [1, 3, 9]  # one row for all options of one token
