"""Decoding with an encoder-decoder equals decoding token by token without a cache."""

import itertools

import numpy as np
import pytest
import torch

from isoflop.errors import UserError
from isoflop.generate import memory
from isoflop.generate.transduce import Search, transduce
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.encoder_decoder import EncoderDecoder

V, EOT, CONTEXT = 7, 6, 5


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = EncoderDecoder(ModelConfig(vocab_size=V, context=CONTEXT, layers=2, d_model=16, heads=2, init=Spec("gpt2")))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model.train()


@pytest.fixture
def sources():
    rng = np.random.default_rng(0)
    return [rng.integers(0, V - 1, size=rng.integers(1, CONTEXT + 1)) for _ in range(9)]


@torch.no_grad()
def log_p(model, source, written):
    """log p of the next token, without cache or padding."""
    model.eval()
    tokens = torch.tensor([[EOT, *written]])
    return model(torch.tensor(source)[None], None, tokens)[0, -1].log_softmax(-1)


def test_greedy_takes_the_most_likely_token(model, sources):
    found = transduce(model, sources, EOT)
    assert model.training  # it was, and still is
    for source, output in zip(sources, found, strict=True):
        written = []
        while len(written) < CONTEXT and (token := int(log_p(model, source, written).argmax())) != EOT:
            written.append(token)
        assert output == written
    assert len({tuple(output) for output in found}) > 1


def worth(model, source, output):
    whole = [*output, EOT][:CONTEXT]
    return sum(float(log_p(model, source, whole[:i])[token]) for i, token in enumerate(whole))


def test_a_wide_beam_finds_the_best_output_there_is(model, sources):
    source = sources[0]
    ended = [o for n in range(CONTEXT) for o in itertools.product(range(V - 1), repeat=n)]
    # No more than two tokens are searched by hand: the model is made to end early.
    with torch.no_grad():
        model.head.weight[EOT] += 0.5 * model.head.weight.norm(dim=1).max()
    short = [list(o) for o in ended if len(o) <= 2]
    best = max(short, key=lambda output: worth(model, source, output))
    [found] = transduce(model, [source], EOT, beam=60)
    assert worth(model, source, found) >= worth(model, source, best) - 1e-4


def test_a_wider_beam_is_not_worse_and_rows_do_not_mix(model, sources):
    narrow, wide = transduce(model, sources, EOT), transduce(model, sources, EOT, beam=4)
    assert [transduce(model, [source], EOT, beam=4)[0] for source in sources] == wide
    gains = [worth(model, s, w) - worth(model, s, n) for s, w, n in zip(sources, wide, narrow, strict=True)]
    assert sum(gains) > 0


def test_invalid_arguments_are_refused(model, sources):
    with pytest.raises(UserError, match="--beam 0"):
        transduce(model, sources, EOT, beam=0)
    with pytest.raises(UserError, match="context"):
        transduce(model, [np.zeros(CONTEXT + 1, np.int64)], EOT)


def test_as_many_are_decoded_together_as_memory_has_room_for(model, sources, monkeypatch):
    whole, rows = transduce(model, sources, EOT, beam=2), []
    begin = Search.__init__

    def seen(self, model, sources, eot, beam, at_once):
        rows.append(at_once * beam)
        begin(self, model, sources, eot, beam, at_once)

    monkeypatch.setattr(Search, "__init__", seen)
    for free in np.geomspace(4e5, 2e5, 60):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: int(free))
        try:
            assert transduce(model, sources, EOT, beam=2) == whole
        except UserError as error:
            assert "\n" not in str(error)
            break
    assert rows[0] == 18 and 2 in rows and sorted(rows, reverse=True) == rows


def test_a_beam_that_memory_has_no_room_for_is_refused_with_one_that_fits(model, sources, monkeypatch):
    expected = transduce(model, sources, EOT, beam=3)
    monkeypatch.setattr("isoflop.generate.transduce.slots_for", lambda *arguments, **named: 3)
    assert transduce(model, sources, EOT, beam=3) == expected
    with pytest.raises(UserError, match=r"--beam 4 needs more memory .* at most 3 "):
        transduce(model, sources, EOT, beam=4)


SLOW = [pytest.mark.slow]
ATTENTIONS = ["full", "latent", "none", Spec("banded", window=2), Spec("full", kv_heads=1)]


@pytest.mark.parametrize(
    ("position", "attention", "beam"),
    [
        # each position, each attention and each beam in the quick ones, all combinations with the slow ones
        pytest.param(
            position,
            attention,
            beam,
            marks=[]
            if (position == "rotary" or attention == "full") and beam == (1 if position == "learned" else 3)
            else SLOW,
        )
        for position in ("none", "learned", "sinusoidal", "rotary")
        for attention in ATTENTIONS
        for beam in (1, 3)
    ],
)
def test_finished_sources_make_room_for_others(position, attention, beam):
    torch.manual_seed(1)
    shape = {"vocab_size": V, "context": 9, "layers": 2, "d_model": 16, "heads": 2, "init": Spec("gpt2")}
    model = EncoderDecoder(ModelConfig(**shape, position=position, attention=attention)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.5)
    rng = np.random.default_rng(0)
    sources = [rng.integers(0, V - 1, size=rng.integers(1, 10)) for _ in range(20)]
    alone = [transduce(model, [source], EOT, beam)[0] for source in sources]
    assert transduce(model, sources, EOT, beam) == alone
    assert transduce(model, sources, EOT, beam, at_once=3 * beam) == alone
    assert transduce(model, [], EOT, beam) == []
    if (position, attention) == ("learned", "full"):  # some of the others end all outputs at once
        assert len({len(output) for output in alone}) > 1
