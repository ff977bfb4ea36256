"""Pairs: reading, dropped and counted lines, the split, and the pairs of a step."""

import gzip
import lzma

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.config import from_dict, to_dict
from isoflop.data.config import DataConfig
from isoflop.data.pair_loader import IGNORED, POOL, PairLoader
from isoflop.data.pair_split import divide, size_of
from isoflop.data.pairs import prepare_pairs
from isoflop.data.prepared_pairs import open_pairs
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.files import home
from isoflop.trainer import RunConfig


def some_lines(count=300, separator="\t"):
    rng = np.random.default_rng(0)
    words = dict.fromkeys("".join(rng.choice(list("abcdefg"), rng.integers(2, 9))) for _ in range(3 * count))
    return [f"{word}{separator}{' '.join(word.upper())}" for word in list(words)[:count]]


def write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def prepared(path, **settings):
    return prepare_pairs(DataConfig(sources=(str(path),), **settings))


def texts(data, part):
    pairs, decode = getattr(data, part)(), data.tokenizer.decode
    return [(decode(pairs.source[i]), decode(pairs.target[i])) for i in range(len(pairs))]


def test_every_pair_comes_back_and_none_is_on_both_sides(tmp_path):
    lines = some_lines()
    data = prepared(write(tmp_path / "a.tsv", lines))
    train, heldout = texts(data, "train"), texts(data, "heldout")
    assert sorted(train + heldout) == sorted(tuple(line.split("\t")) for line in lines)
    assert not {source for source, _ in train} & {source for source, _ in heldout}
    assert 0.005 * len(lines) < len(heldout) < 0.03 * len(lines)
    assert data.account().train.tokens == data.train().tokens


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstandard.compress], ids=["gzip", "xz", "zstd"])
def test_compressed_files_and_blanks_give_the_same_tokens(tmp_path, pack):
    plain = prepared(write(tmp_path / "a.txt", some_lines()))
    (tmp_path / "a.packed").write_bytes(pack("\n".join(some_lines(separator=" ")).encode()))
    assert prepared(tmp_path / "a.packed").fingerprint == plain.fingerprint


def test_a_byte_order_mark_is_not_part_of_the_first_input(tmp_path):
    plain = prepared(write(tmp_path / "a.tsv", some_lines()))
    (tmp_path / "marked.tsv").write_text("\n".join(some_lines()), encoding="utf-8-sig")
    assert prepared(tmp_path / "marked.tsv").fingerprint == plain.fingerprint


def test_lines_that_are_not_pairs_are_counted(tmp_path):
    lines = some_lines()
    extra = ["", "no tab here", "\tno input", "no output\t", "one\ttwo\tthree", lines[0], lines[1]]
    path = write(tmp_path / "a.tsv", [*lines, *extra])
    account = prepared(path).account()
    assert account.documents == len(lines) + 2 and account.duplicates == 2
    assert account.skipped_records == 4 and account.empty == 1
    assert {skip.path.rpartition(" ")[2] for skip in account.skipped} == {"302", "303", "304", "305"}
    assert account.train.documents + account.heldout.documents == len(lines)
    with pytest.raises(UserError, match="line 302"):
        prepared(path, strict=True)


def test_variants_of_a_word_stay_on_its_side(tmp_path):
    lines = [f"{line.split(' ')[0]}(2) X X" for line in some_lines(separator=" ")] + some_lines(separator=" ")
    data = prepared(write(tmp_path / "a.txt", [*lines, "f(3) Y"]))
    both = texts(data, "train"), texts(data, "heldout")
    for side in both:
        inputs = [source for source, _ in side if source != "f(3)"]
        assert len(inputs) == 2 * len(set(inputs)) and not any("(" in text for text in inputs)
    assert data.account().variants == 300
    assert ("f(3)", "Y") in both[0] + both[1]  # there is no f, so this is its name


@settings(max_examples=60, deadline=None)
@given(
    longest=st.lists(st.integers(1, 400), min_size=20, max_size=400),
    wanted=st.sampled_from([0.01, 0.01, 0.05, 0.3]),
    seed=st.integers(0, 5),
)
def test_the_share_held_out_is_right_whatever_the_pairs(longest, wanted, seed):
    """Half to twice the requested share if the inputs allow it, never above a tenth unless more is requested."""
    pairs = [(f"input {number}", "x" * size) for number, size in enumerate(longest)]
    split = divide(pairs, [], DataConfig(heldout_fraction=wanted, seed=seed))
    total = sum(map(size_of, pairs))
    share = sum(map(size_of, split.heldout)) / total
    assert split.heldout and len(split.heldout) + len(split.train) == len(pairs)
    assert share <= max(0.1, 1.25 * wanted)
    if max(map(size_of, pairs)) / total < wanted / 2:
        assert wanted / 2 <= share <= 2 * wanted


def test_the_split_of_older_runs_can_be_made_again(tmp_path):
    pairs = [tuple(line.split("\t")) for line in some_lines()]
    new, old = (divide(pairs, [], DataConfig(pair_split=rule)) for rule in (2, 1))
    assert len(new.heldout) < 0.02 * len(pairs) < 0.05 * len(pairs) < len(old.heldout)
    path = write(tmp_path / "a.tsv", some_lines())
    first, second = (prepared(path, pair_split=rule) for rule in (1, 2))
    assert first.folder != second.folder and [one.manifest["split"]["rule"] for one in (first, second)] == [1, 2]
    written = {**to_dict(RunConfig(task="seq2seq"))["data"], "sources": [str(path)]}
    del written["pair_split"]  # a config.json of before
    assert prepare_pairs(from_dict(DataConfig, written)).fingerprint == first.fingerprint


def test_named_heldout_pairs_are_out_of_training(tmp_path):
    lines = some_lines()
    path, held = write(tmp_path / "a.tsv", lines), write(tmp_path / "held.tsv", lines[:40])
    data = prepared(path, heldout=(str(held),))
    assert texts(data, "heldout") == [tuple(line.split("\t")) for line in lines[:40]]
    assert len(data.train()) == len(lines) - 40 == len(lines) - data.account().in_heldout


def test_it_is_prepared_once_and_a_flipped_bit_is_found(tmp_path):
    path = write(tmp_path / "a.tsv", some_lines())
    first, again = prepared(path), prepared(path)
    assert not first.reused and again.reused and again.folder == first.folder
    assert not list((home() / "data").glob(".*.tmp"))
    shard = first.folder / "train.source.0000.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=shard.name):
        open_pairs(first.folder)


def test_the_tokenizer_suits_the_two_sides(tmp_path):
    words = prepared(write(tmp_path / "a.tsv", some_lines()))
    assert words.account().tokenizer == "bytes -> units between blanks"
    encode = words.tokenizer.encode
    assert len(encode("A B C")) == 3 and len(encode("abcab")) == 5
    rng = np.random.default_rng(1)
    open_words = ["".join(rng.choice(list("abcdefghij"), 6)) for _ in range(2000)]
    text = [f"{' '.join(rng.choice(open_words, 5))}\t{' '.join(rng.choice(open_words, 5))}" for _ in range(300)]
    running = prepared(write(tmp_path / "b.tsv", text), vocab_size=400)
    assert running.account().tokenizer == "byte-level BPE trained on both sides" and running.vocab_size == 400


def test_units_are_single_ids_and_every_text_comes_back():
    tokenizer = Tokenizer.of_units(["AH0", "B", "ß"])
    assert len(tokenizer.encode("AH0 B AH0 ß")) == 4
    for text in ("AH0 B", "AH0B", "  AH0   B ", "naïve AH01\tB\n", "ab<|endoftext|>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert Tokenizer.from_json(tokenizer.to_json()).encode(text) == tokenizer.encode(text)


@pytest.fixture
def data(tmp_path):
    return prepared(write(tmp_path / "a.tsv", some_lines()))


def test_a_step_is_a_function_of_its_number(data):
    straight, random = (PairLoader(data, 32, 7, seed=3) for _ in range(2))
    batches = [straight.batch(step) for step in range(60)]
    for step in (59, 0, 17, 16, 58, 15):
        assert all(torch.equal(a, b) for a, b in zip(random.batch(step), batches[step], strict=True))
        assert random.tokens(step) == sum(
            int(visible.sum() + (targets != IGNORED).sum()) for _, visible, _, targets in batches[:step]
        )
    other = PairLoader(data, 32, 7, seed=4).batch(0)
    assert other[0].shape != batches[0][0].shape or not torch.equal(other[0], batches[0][0])


def test_an_epoch_is_every_pair_once(data):
    rows = 6
    loader = PairLoader(data, 32, rows, seed=0)
    seen = loader.drawn(np.arange(2 * len(loader.pairs)))
    first, second = np.split(seen, 2)
    assert sorted(first) == sorted(second) == list(range(len(loader.pairs)))
    assert not np.array_equal(first, second)
    pool = np.concatenate([loader.pool(0)[step] for step in range(POOL)])
    assert sorted(pool) == sorted(seen[: POOL * rows])  # dealt out again, none lost
    epochs = loader.account(len(loader.pairs)).sources[data.sources[0]].epochs
    assert epochs == rows


def test_batches_hold_the_pairs_and_padding_that_is_not_counted(data):
    loader = PairLoader(data, 32, 8, seed=0)
    source, visible, inputs, targets = loader.batch(5)
    there, eot = set(texts(data, "train")), data.tokenizer.eot
    for row in range(8):
        counted = targets[row] != IGNORED
        text = data.tokenizer.decode(source[row][visible[row]].tolist())
        written = targets[row][counted].tolist()
        assert (text, data.tokenizer.decode(written[:-1])) in there and written[-1] == eot
        assert inputs[row][0] == eot and inputs[row][1 : len(written)].tolist() == written[:-1]
    assert visible.all(1).any() and (targets != IGNORED).all(1).any()  # no wider than the longest


def test_skipped_steps_are_not_read_and_are_counted(data):
    plain, gapped = PairLoader(data, 32, 8, 0), PairLoader(data, 32, 8, 0, skipped=((24, 8), (160, 16)))
    there = [step for step in range(40) if step not in (3, 20, 21)]
    lengths = [plain.tokens(step + 1) - plain.tokens(step) for step in range(40)]
    for step in (0, 2, 3, 18, 19, 30):
        for one, other in zip(gapped.batch(step), plain.batch(there[step]), strict=True):
            assert torch.equal(one, other)
    for steps in (0, 3, 4, 19, 20, 30):
        assert gapped.tokens(steps) == sum(lengths[step] for step in there[:steps])
    account = gapped.account(30)
    assert account.passed_over == lengths[3] + lengths[20] + lengths[21]
    assert account.tokens + account.passed_over == plain.tokens(33)
    assert gapped.span(18, 2) == (144 + 8, 32)  # steps 19 and 22 of an unbroken run, and what lies between them
    assert gapped.span(2, 1) == (16, 8)
    with pytest.raises(UserError, match="are not complete steps"):
        PairLoader(data, 32, 8, 0, skipped=((4, 8),))


def test_ranks_share_a_step(data):
    loader = PairLoader(data, 32, 8, seed=0)
    whole = loader.pool(0)[3]
    parts = [loader.batch(3, rank, 4)[3] for rank in range(4)]
    assert sum(int((part != IGNORED).sum()) for part in parts) == int((loader.batch(3)[3] != IGNORED).sum())
    assert len(whole) == sum(map(len, parts))
    with pytest.raises(UserError, match="multiple"):
        loader.batch(0, 0, 3)


def test_a_pair_that_does_not_fit_is_refused(data):
    with pytest.raises(UserError, match=r"model\.context=9"):
        PairLoader(data, 5, 8, seed=0)


def test_a_long_pair_is_dropped_and_counted(tmp_path):
    long = "x" * 600
    data = prepared(write(tmp_path / "a.tsv", [*some_lines(), f"{long}\tA B"]))
    assert data.account().too_long == 1 and data.longest() < 32
