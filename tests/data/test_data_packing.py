"""Windows that begin with documents: packed best-fit, each token once."""

import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isoflop.data import packing
from isoflop.data.loader import Loader
from isoflop.data.packing import DOCUMENTS, PackedText, pack, windows_of_documents

EOT, START = 0, 1
LENGTHS = st.lists(st.integers(1, 70), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 40))
def test_every_token_is_packed_once_into_full_windows(lengths, size):
    starts, counts = pack(lengths, size)
    tokens = [token for start, count in zip(starts, counts, strict=True) for token in range(start, start + count)]
    assert sorted(tokens) == list(range(sum(lengths)))
    ends = counts.cumsum()
    assert set(range(size, sum(lengths) + 1, size)) <= set(ends.tolist())  # no piece lies in two windows
    begins = {0, *itertools.accumulate(lengths)}
    cut = [start for start in starts.tolist() if start not in begins]
    windows = -(-sum(lengths) // size)
    assert len(cut) <= windows + sum(length // size for length in lengths)  # at most one cut per window


def test_the_longest_document_that_fits_is_next_and_the_shortest_is_cut():
    starts, counts = pack([3, 9, 5, 4], 10)
    assert starts.tolist() == [3, 0, 12, 17, 1, 2]
    assert counts.tolist() == [9, 1, 5, 4, 1, 1]


@given(LENGTHS, st.integers(1, 40))
def test_windows_of_documents_are_the_documents_cut(lengths, context):
    tokens = np.ones(sum(lengths), np.int64)
    tokens[np.cumsum(lengths) - 1] = EOT
    for ids in (tokens, tokens[:-1]):  # the last document may have no end
        starts, counts = windows_of_documents(ids, EOT, context)
        covered = [token for start, count in zip(starts, counts, strict=True) for token in range(start, start + count)]
        assert covered == list(range(len(ids)))
        begins = {0, *itertools.accumulate(lengths[:-1])} if len(ids) else set()
        assert begins & set(range(len(ids))) <= set(starts.tolist())
        ends = {*np.cumsum(lengths), len(ids)}
        assert all(count == context or end in ends for count, end in zip(counts, starts + counts, strict=True))


class Documents:
    """Prepared data: a stream of documents of distinct ids, each followed by EOT."""

    def __init__(self, lengths):
        self.sources, self.tokenizer = ("all",), SimpleNamespace(eot=EOT, start=START)
        ids = itertools.count(2)
        self.documents = [[next(ids) for _ in range(length - 1)] + [EOT] for length in lengths]
        self.ids = np.array(list(itertools.chain(*self.documents)))

    def train(self, name):
        return self

    def __len__(self):
        return len(self.ids)

    def read(self, start, length):
        return np.take(self.ids, range(start, start + length), mode="wrap")

    def train_tokens(self, name):
        return len(self.ids)

    def weights(self):
        return {"all": 1.0}


GENERATOR = np.random.default_rng(0)
MADE = Documents([*GENERATOR.integers(2, 40, 60).tolist(), 150, 3, 97])
AFTER = {before: after for document in MADE.documents for before, after in itertools.pairwise(document)}
FIRST = {document[0] for document in MADE.documents}


def loader(seed=0, sequences=4, context=32, **more):
    return Loader(MADE, context, sequences, seed, windows=DOCUMENTS, **more)


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch):
    monkeypatch.setattr(packing, "STRETCH", 256)
    monkeypatch.setattr(packing, "FEWEST", 8)


@pytest.mark.parametrize("length", [8, 32])
def test_each_row_begins_with_a_document_and_so_does_every_other_in_it(length):
    one = loader(length=lambda step: length)
    begun = 0
    for step in range(40):
        inputs, targets = one.batch(step)
        assert inputs.shape == targets.shape == (4 * 32 // length, length) and inputs.is_contiguous()
        assert (inputs[:, 0] == START).all() and not (inputs == EOT).any()
        for before, after in zip(inputs.flatten().tolist(), targets.flatten().tolist(), strict=True):
            if before == START:
                begun += after in FIRST
            else:
                assert AFTER[before] == after
    assert begun > 40


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_has_every_token_as_a_target(epoch):
    one = loader(sequences=1)
    windows = -(-len(MADE) // 32)
    steps = range(epoch * windows, (epoch + 1) * windows)
    seen = Counter(torch.cat([one.batch(step)[1] for step in steps]).flatten().tolist())
    expected = Counter(MADE.ids.tolist())
    assert not expected - seen and (seen - expected).total() == windows * 32 - len(MADE) < 32
    assert one.account(windows).sources["all"].repeated_per_epoch == windows * 32 - len(MADE)


def test_any_step_in_any_order_from_any_loader_gives_the_same():
    one = loader()
    straight = [one.batch(step) for step in range(12)]
    for step in (7, 0, 11, 3):
        for ours, theirs in zip(loader().batch(step), straight[step], strict=True):
            assert torch.equal(ours, theirs)
        ranks = [loader().batch(step, rank, 2)[0] for rank in range(2)]
        assert torch.equal(torch.cat(ranks), straight[step][0])
    assert not torch.equal(loader(seed=1).batch(0)[0], straight[0][0])
    gapped = loader(skipped=((8, 4),))
    assert torch.equal(gapped.batch(2)[0], straight[3][0])


def test_fewer_documents_are_cut_than_windows_one_after_the_other_cut():
    lengths = np.random.default_rng(1).integers(10, 400, 500)
    starts, _ = pack(lengths.tolist(), 512)
    assert len(starts) - len(lengths) < 0.5 * lengths.sum() / 512


def test_the_packing_of_a_stretch_does_not_depend_on_the_others():
    text = PackedText(MADE, 32, EOT)
    windows = [list(text.pieces(5, window, 32)) for window in range(text.windows)]
    assert [list(PackedText(MADE, 32, EOT).pieces(5, window, 32)) for window in range(text.windows)] == windows
    assert all(sum(length for _, length in pieces) == 32 for pieces in windows)
    halves = [list(text.pieces(5, window, 16)) for window in range(text.windows)]
    assert all(sum(length for _, length in pieces) == 32 for pieces in halves)
    assert all(16 in itertools.accumulate(length for _, length in pieces) for pieces in halves)
