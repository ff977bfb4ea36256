"""Every entry of TOKENIZERS has the required properties, and a new one needs no other file."""

import itertools
import json
from collections import Counter
from importlib.metadata import version

import pytest
from tokenizers import models

import isoflop
from isoflop import job
from isoflop.cli import run as cli
from isoflop.config import describe, override
from isoflop.data.config import DataConfig
from isoflop.data.kinds import TOKENIZERS, Kind, byte_characters, byte_level, find_kind, origin_of, with_eot
from isoflop.data.pairs import prepare_pairs
from isoflop.data.prepare import prepare
from isoflop.data.tokenizer import PROBE, Tokenizer
from isoflop.errors import UserError
from isoflop.job.listener import Listener
from isoflop.records import read_run
from isoflop.trainer.config import RunConfig
from small import TINY, CutAt, PowerCut, write_texts


class Digraphs(Kind):
    """The most frequent pairs of letters, each with an id of its own, and bytes for all else."""

    words = "pairs of letters"
    smallest = 260
    reason = "pairs of letters need at least 260 ids"

    def version(self):
        return "1"

    def train(self, texts, vocab_size):
        vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
        letters = "abcdefghijklmnopqrstuvwxyz"
        counts = Counter((a, b) for text in texts for a, b in itertools.pairwise(text) if a in letters and b in letters)
        merges = sorted(counts, key=lambda pair: (-counts[pair], pair))[: vocab_size - 257]
        for a, b in merges:
            vocabulary[a + b] = len(vocabulary)
        return with_eot(byte_level(models.BPE(vocabulary, merges)))


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(TOKENIZERS, "digraphs", Digraphs)


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_each_kind_trains_a_lossless_tokenizer_within_its_size(name, story):
    kind = find_kind(name)
    texts = [story(i) for i in range(8)]
    for size in (kind.smallest, kind.smallest + 80):
        for made in (kind.train(texts, size), kind.train_on_pairs(texts, texts[::-1], size)):
            tokenizer = Tokenizer(made, name)
            assert kind.smallest <= tokenizer.vocab_size <= size
            assert tokenizer.decode(tokenizer.encode(PROBE)) == PROBE
            assert Tokenizer.from_json(tokenizer.to_json()).encode(texts[0]) == tokenizer.encode(texts[0])
    assert kind.words and kind.words in kind.described() and kind.version()
    with pytest.raises(UserError, match=f"data.vocab_size = {kind.smallest - 1} is too small; {kind.reason[:20]}"):
        prepare(DataConfig(tokenizer=name, vocab_size=kind.smallest - 1))


def test_the_key_of_prepared_data_is_unchanged():
    """A new version of the library may train other merges, so that it is part of the key."""
    assert origin_of("bpe") == f"bpe {version('tokenizers')}"


def test_help_and_errors_name_every_kind(toy):
    lines = {line.name: line.meaning for line in describe(RunConfig)}
    assert 'or "digraphs" to train one, or the path' in lines["data.tokenizer"]
    assert 'or "digraphs")' in lines["data.vocab_size"]
    with pytest.raises(UserError, match=r'or (.* or )?"digraphs"$'):
        Tokenizer.given("digraph")
    with pytest.raises(UserError, match="too small; pairs of letters need at least 260 ids"):
        prepare(override(DataConfig(), ["tokenizer=digraphs", "vocab_size=259"]))


def test_a_toy_prepares_trains_resumes_evaluates_and_samples(toy, tmp_path, capsys):
    """Registered here and nowhere else, it goes through a whole run; a killed one ends with the same losses."""
    corpus = write_texts(tmp_path / "texts")
    settings = [*TINY, "data.tokenizer=digraphs"]
    words = [word for text in settings if text.startswith("data.") for word in ("--set", text)]
    assert cli(["prepare", str(corpus), "--out", str(tmp_path / "prepared"), *words]) == 0
    manifest = json.loads((tmp_path / "prepared" / "manifest.json").read_text())
    assert manifest["account"]["tokenizer"] == "trained pairs of letters"

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    isoflop.pretrain([str(corpus)], budget="20steps", out=whole, assignments=settings)
    with pytest.raises(PowerCut):
        listener = Listener(hooks=(CutAt(13),))
        isoflop.pretrain([str(corpus)], budget="20steps", out=broken, assignments=settings, listener=listener)
    isoflop.resume(broken)
    assert [line.loss for line in read_run(whole).training] == [line.loss for line in read_run(broken).training]

    model, tokenizer = isoflop.load(whole)
    assert tokenizer.vocab_size == model.config.vocab_size == 320
    assert len(tokenizer.encode("the then")) < len("the then")
    own, other = job.evaluate(whole), job.evaluate(whole, [str(corpus)])
    assert 0 < own.bits_per_byte < 8 and other.bytes > own.bytes
    assert cli(["sample", str(whole), "--prompt", "the", "--tokens", "8"]) == 0
    assert "trained pairs of letters" in (whole / "report.html").read_text(encoding="utf-8")


def test_a_run_of_an_unknown_kind_resumes_with_its_own_tokenizer(toy, tmp_path, monkeypatch, capsys):
    """A run folder holds its tokenizer, so that it opens where the kind is not known."""
    corpus = write_texts(tmp_path / "texts")
    out = tmp_path / "run"
    isoflop.pretrain([str(corpus)], budget="6steps", out=out, assignments=[*TINY, "data.tokenizer=digraphs"])
    monkeypatch.delitem(TOKENIZERS, "digraphs")
    assert 0 < job.evaluate(out).bits_per_byte < 8
    assert cli(["sample", str(out), "--tokens", "4"]) == 0


def test_a_toy_is_trained_on_both_sides_of_pairs(toy, tmp_path):
    lines = [f"{a}{b}{c}\t{c}{b}{a}" for a, b, c in itertools.product("abcdefgh", repeat=3)]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    found = prepare_pairs(DataConfig(sources=(str(tmp_path / "pairs.tsv"),), tokenizer="digraphs", vocab_size=300))
    assert found.account().tokenizer == "pairs of letters trained on both sides"
    assert found.vocab_size == 300
