"""A run as lm-eval's model: with lm-eval if it is installed, and with requests of its form in any case."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from isoflop.errors import UserError
from isoflop.evaluate.harness import adapter, alike, rolling
from isoflop.evaluate.likelihood import Request, likelihoods
from isoflop.generate.engine import generate


@pytest.fixture
def lm(model, tokenizer, runtime, monkeypatch):
    try:
        import lm_eval.api.model  # noqa: F401
    except ImportError:
        stand_in = ModuleType("lm_eval.api.model")
        stand_in.LM = type("LM", (), {})
        monkeypatch.setitem(sys.modules, "lm_eval", ModuleType("lm_eval"))
        monkeypatch.setitem(sys.modules, "lm_eval.api", ModuleType("lm_eval.api"))
        monkeypatch.setitem(sys.modules, "lm_eval.api.model", stand_in)
    return adapter(model, tokenizer, runtime, "small")


def asked(*arguments):
    return [SimpleNamespace(args=one) for one in arguments]


def test_it_answers_every_kind_of_request(lm, model, tokenizer, runtime):
    pairs = [("The cat sat", " on the mat"), ("", "A fox"), ("The cat sat", " on it")]
    expected = likelihoods(model, tokenizer, [Request(*pair) for pair in pairs], runtime)
    assert lm.loglikelihood(asked(*pairs)) == [(one.nats, one.greedy) for one in expected]
    assert lm.loglikelihood([]) == [] and lm.generate_until([]) == []

    long = "The dogs ran to it, and said things to nobody. " * 8
    rolled = lm.loglikelihood_rolling(asked((long,), ("A fox",), ("",)))
    assert rolled[1] == pytest.approx(expected[1].nats, rel=1e-5) and rolled[0] < 10 * rolled[1] and rolled[2] == 0

    how = {"until": ["."], "max_gen_toks": 6, "do_sample": False}
    texts = lm.generate_until(asked(("The cat", how), ("A fox said", {**how, "max_gen_toks": 3}), ("The dogs", how)))
    for text, prompt, tokens in zip(texts, ("The cat", "A fox said", "The dogs"), (6, 3, 6), strict=True):
        assert text == generate(model, tokenizer, prompt, tokens, temperature=0.0, stops=["."])


def test_stop_strings_that_are_empty_stop_nothing():
    ((how, numbers),) = alike([{"until": ["", "Q:"]}, {"until": "Q:"}])
    assert how["stops"] == ("Q:",) and numbers == [0, 1] and alike([{"until": ""}])[0][0]["stops"] == ()


def test_a_long_text_is_cut_like_lm_evals():
    """The example in the docstring of its `loglikelihood_rolling`: ten tokens, a context of four."""
    windows = rolling(np.array([99, *range(10)]), 4)
    assert [window.ids[:-1].tolist() for window in windows] == [[99, 0, 1, 2], [3, 4, 5, 6], [5, 6, 7, 8]]
    assert [window.ids[-window.scored :].tolist() for window in windows] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_missing_lm_eval_is_named(model, tokenizer, runtime, monkeypatch):
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="lm-eval is not installed"):
        adapter(model, tokenizer, runtime, "small")
