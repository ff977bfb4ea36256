"""Law 4: which tokens step k sees is a pure function of k."""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.data.loader import UNIT, Loader, counts, keys_of, permute, place
from isoflop.data.shards import ShardWriter, TokenStream, dtype_for
from isoflop.errors import UserError


class Tokens:
    """Prepared data that is nothing but numbers: source s has the tokens base_s, base_s + 1, ..."""

    def __init__(self, folder, sizes, weights=None, shard_bytes=1 << 20):
        self.sources, self.given, self.streams = tuple(sizes), weights, {}
        dtype, base = dtype_for(1 << 17), 0
        for name, size in sizes.items():
            writer = ShardWriter(folder, f"{name}.{shard_bytes}", dtype, shard_bytes)
            writer.write(np.arange(base, base + size))
            self.streams[name] = TokenStream.open(folder, writer.close(), dtype)
            base += size

    def train_tokens(self, name):
        return len(self.streams[name])

    def train(self, name):
        return self.streams[name]

    def weights(self):
        total = sum(len(stream) for stream in self.streams.values())
        return self.given or {name: len(stream) / total for name, stream in self.streams.items()}


MIXTURE = {"books": 5000, "web": 3001, "talk": 777}
WEIGHTS = {"books": 0.3, "web": 0.6, "talk": 0.1}


@pytest.fixture
def mixture(tmp_path):
    return Tokens(tmp_path, MIXTURE, WEIGHTS)


def test_any_step_in_any_order_from_any_loader_gives_the_same(mixture):
    one = Loader(mixture, 16, 6, seed=3)
    straight = [one.batch(step) for step in range(40)]
    for step in random.Random(0).sample(range(40), 40):
        inputs, targets = Loader(mixture, 16, 6, seed=3).batch(step)
        assert torch.equal(inputs, straight[step][0]) and torch.equal(targets, straight[step][1])
    assert not torch.equal(Loader(mixture, 16, 6, seed=4).batch(0)[0], straight[0][0])


def test_targets_are_the_inputs_shifted_by_one(mixture):
    inputs, targets = Loader(mixture, 16, 6, seed=0).batch(7)
    assert inputs.shape == targets.shape == (6, 16) and inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1]) and inputs.is_contiguous() and targets.is_contiguous()


@pytest.mark.parametrize("size", [1000, 1001, 1023, 33, 17])
@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_has_every_token_as_a_target(tmp_path, size, epoch):
    context = 16
    loader = Loader(Tokens(tmp_path, {"all": size}), context, 1, seed=1)
    windows = -(-size // context)
    targets = [loader.batch(step)[1] for step in range(epoch * windows, (epoch + 1) * windows)]
    seen = torch.cat(targets).flatten().tolist()
    assert set(seen) == set(range(size)) and len(seen) - size < context
    account = loader.account(2 * windows).sources["all"]
    assert account.epochs == 2 and account.repeated_per_epoch == len(seen) - size


def test_epochs_are_cut_and_ordered_differently(tmp_path):
    loader = Loader(Tokens(tmp_path, {"all": 1600}), 16, 100, seed=1)
    first, second = (loader.batch(step)[0][:, 0].tolist() for step in (0, 1))
    assert first != second and first != sorted(first)
    assert {start % 16 for start in first} != {start % 16 for start in second}


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_the_order_is_a_bijection(n, seed, epoch):
    keys = keys_of(seed, "source", epoch)[:4]
    order = permute(np.arange(n), n, keys)
    assert sorted(order.tolist()) == list(range(n))
    some = np.arange(n)[:: max(1, n // 5)]
    assert permute(some, n, keys).tolist() == order[some].tolist()


def test_the_order_looks_random():
    n = 20_000
    order = permute(np.arange(n), n, keys_of(0, "source", 0)[:4])
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.03
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03


@settings(max_examples=100, deadline=None)
@given(weights=st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=6), start=st.sampled_from([0, 10_007, 10**15]))
def test_every_sequence_has_one_place_and_shares_are_exact_at_every_point(weights, start):
    weights = sorted(weights, reverse=True)
    shares = [max(1, round(w / sum(weights) * UNIT)) for w in weights]
    drawn = counts(shares, start)
    assert sum(drawn) == start
    for i in range(start, start + 200):
        source, number = place(shares, i)
        assert number == drawn[source]
        drawn[source] += 1
        exact = [(i + 1) * share / sum(shares) for share in shares]
        if start < 10**9:  # beyond, floats cannot say what is exact
            assert max(abs(a - b) for a, b in zip(drawn, exact, strict=True)) < 2
    assert drawn == counts(shares, start + 200)


def test_shares_are_those_asked_for(mixture):
    loader = Loader(mixture, 16, 10, seed=0)
    account = loader.account(100)
    assert account.tokens == 100 * 10 * 16
    for name, weight in WEIGHTS.items():
        assert account.sources[name].share == pytest.approx(weight, abs=0.002) == account.sources[name].asked
    read = torch.cat([loader.batch(step)[0] for step in range(100)])[:, 0]
    bounds = list(itertools.accumulate(MIXTURE.values(), initial=0))
    for name, low, high in zip(MIXTURE, bounds, bounds[1:], strict=False):
        rows = ((read >= low) & (read < high)).sum().item()
        assert rows * 16 == account.sources[name].tokens


def test_ranks_divide_a_batch_into_rows(mixture):
    loader = Loader(mixture, 16, 6, seed=0)
    whole = loader.batch(5)
    for world in (2, 3, 6):
        parts = [loader.batch(5, rank, world) for rank in range(world)]
        assert all(torch.equal(torch.cat([p[side] for p in parts]), whole[side]) for side in (0, 1))
    with pytest.raises(UserError, match="cannot be divided among 4"):
        loader.batch(5, 0, 4)


def test_the_split_into_files_does_not_matter(tmp_path, mixture):
    many = Tokens(tmp_path, MIXTURE, WEIGHTS, shard_bytes=100)
    for step in range(10):
        assert torch.equal(Loader(mixture, 16, 6, 0).batch(step)[0], Loader(many, 16, 6, 0).batch(step)[0])


def test_skipped_ranges_shift_later_sequences_and_are_counted(mixture):
    plain, gapped = Loader(mixture, 16, 6, 0), Loader(mixture, 16, 6, 0, skipped=((72, 6), (24, 18)))
    for step, read in [(0, 0), (3, 3), (4, 7), (8, 11), (9, 13), (20, 24)]:
        assert torch.equal(gapped.batch(step)[0], plain.batch(read)[0])
    account = gapped.account(21)
    assert account.tokens == 21 * 6 * 16
    assert sum(source.passed_over for source in account.sources.values()) == 4 * 6 * 16
    assert gapped.account(3) == plain.account(3)


def test_a_growing_batch_reads_the_same_sequences_in_the_same_order(mixture):
    """How a run is cut into steps does not change what it reads."""
    sizes = [2, 2, 4, 6, 6, 6]
    before = list(itertools.accumulate(sizes, initial=0)).__getitem__
    grown, plain = Loader(mixture, 16, before, 0), Loader(mixture, 16, 1, 0)
    for step, size in enumerate(sizes[:-1]):
        rows = [plain.batch(before(step) + row) for row in range(size)]
        for side in (0, 1):
            assert torch.equal(grown.batch(step)[side], torch.cat([row[side] for row in rows]))
    halves = [grown.batch(3, rank, 2)[0] for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), grown.batch(3)[0])
    assert grown.account(4) == plain.account(14)


def test_shorter_rows_are_the_same_sequences_cut(mixture):
    lengths = [4, 4, 8, 16, 16]
    cut, plain = Loader(mixture, 16, 6, 3, length=lengths.__getitem__), Loader(mixture, 16, 6, 3)
    for step, length in enumerate(lengths):
        for side in (0, 1):
            whole, parts = plain.batch(step)[side], cut.batch(step)[side]
            assert parts.shape == (6 * 16 // length, length) and parts.is_contiguous()
            assert torch.equal(parts.flatten(), whole.flatten())
            ranks = [cut.batch(step, rank, 3)[side] for rank in range(3)]
            assert torch.equal(torch.cat(ranks), parts)
    assert cut.tokens(5) == plain.tokens(5) and cut.account(5) == plain.account(5)


def test_skipped_ranges_are_whole_steps_of_a_growing_batch(mixture):
    sizes = [2, 2, 4, 6, 6, 6, 6, 6, 6]
    before = list(itertools.accumulate(sizes, initial=0)).__getitem__
    gapped, plain = Loader(mixture, 16, before, 0, skipped=((2, 6),)), Loader(mixture, 16, 1, 0)
    read = [*range(2), *range(8, 30)]  # sequences 2 to 7 were those of steps 1 and 2
    for step in range(5):
        rows = [plain.batch(i)[0] for i in read[before(step) : before(step + 1)]]
        assert torch.equal(gapped.batch(step)[0], torch.cat(rows))
    account = gapped.account(5)
    assert account.tokens == before(5) * 16
    assert sum(source.passed_over for source in account.sources.values()) == 6 * 16


def test_a_source_smaller_than_a_window_is_refused_with_both_numbers(tmp_path):
    with pytest.raises(UserError, match=r"source all has 16 training tokens, fewer than the 17 .*model\.context"):
        Loader(Tokens(tmp_path, {"all": 16}), 16, 1, seed=0)


def test_a_source_with_a_tiny_weight_is_read(tmp_path):
    loader = Loader(Tokens(tmp_path, {"a": 500, "b": 500}, {"a": 1 - 1e-5, "b": 1e-5}), 16, 1000, seed=0)
    assert loader.account(1000).sources["b"].tokens == 10 * 16
