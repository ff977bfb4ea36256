"""Text by the first merges of a tokenizer, without encoding it again."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.data.config import DataConfig
from isoflop.data.fewer_merges import FewerMerges, has_merges, with_fewer_merges
from isoflop.data.kinds import units_in_bytes
from isoflop.data.prepare import prepare
from isoflop.data.tokenizer import Tokenizer
from small import write_texts


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = write_texts(tmp_path_factory.mktemp("corpus") / "texts")
    return prepare(DataConfig(sources=(str(folder),), vocab_size=600, workers=1))


@pytest.fixture(scope="module")
def smaller(prepared):
    return with_fewer_merges(json.loads(prepared.tokenizer.to_json()), prepared.tokenizer, 320)


@given(text=st.text() | st.lists(st.sampled_from(["the ", "there", " and", "\n", "ation", "  ", "Ünï"])).map("".join))
def test_the_ids_are_those_of_encoding_the_text_again(prepared, smaller, text):
    tokenizer, expansion = smaller
    assert tokenizer.vocab_size == 320 and prepared.tokenizer.vocab_size == 600
    whole = np.array(prepared.tokenizer.encode(text), dtype=np.int64)
    assert expansion(whole).tolist() == tokenizer.encode(text)


def test_the_view_is_the_same_text(prepared):
    view = FewerMerges(prepared, 320, (10**9, 10**9))
    (name,) = view.sources
    for ours, theirs in ((view.train(name), prepared.train(name)), (view.heldout(), prepared.heldout())):
        text = prepared.tokenizer.decode_bytes(theirs[0 : len(theirs)].tolist())
        assert view.tokenizer.decode_bytes(ours[0 : len(ours)].tolist()) == text
        ends = (ours[0 : len(ours)] == view.tokenizer.eot).sum()
        assert ends == (theirs[0 : len(theirs)] == prepared.tokenizer.eot).sum() > 0
    assert view.unique_tokens == view.train_tokens(name) > prepared.train_tokens(name)
    assert view.fingerprint != prepared.fingerprint


def test_of_a_long_text_parts_are_kept(prepared, monkeypatch):
    monkeypatch.setattr("isoflop.data.fewer_merges.FEWEST", 1)
    view = FewerMerges(prepared, 320, (2000, 1000))
    (name,) = view.sources
    whole = FewerMerges(prepared, 320, (10**9, 10**9))
    assert 0 < view.train_tokens(name) < whole.train_tokens(name) / 2
    assert view.unique_tokens == pytest.approx(whole.unique_tokens, rel=0.1)
    assert 0 < len(view.heldout()) <= 3 * 1000


def test_reading_goes_on_at_the_beginning(prepared):
    stream = FewerMerges(prepared, 320, (2000, 1000)).train(prepared.sources[0])
    end = len(stream)
    assert stream.read(end - 2, 5).tolist() == [*stream[end - 2 : end].tolist(), *stream[0:3].tolist()]


def test_tokenizers_without_an_order_of_merges_are_not_shortened(prepared):
    assert has_merges(prepared.tokenizer)
    assert not has_merges(Tokenizer(units_in_bytes(["AH0", "B"])))
    described = json.loads(prepared.tokenizer.to_json())
    described["model"]["merges"].reverse()  # a pair before the merges that make its parts
    assert not has_merges(Tokenizer.from_json(json.dumps(described)))
