"""A text that gives fewer ids than planned: shapes are timed, and models built, with the actual number."""

import json
from dataclasses import replace

import pytest

import isoflop
from isoflop.budget import parse_budget
from isoflop.config import override
from isoflop.plan.advice import Facts, Keep
from isoflop.plan.asked import Asked
from isoflop.plan.fewer_ids import needs_new_shapes, with_ids
from isoflop.plan.planner import finalize, propose, with_fewer_ids
from isoflop.records import read_run
from isoflop.trainer import RunConfig, throughput
from isoflop.trainer.causal_lm import TextWorkload
from isoflop.trainer.throughput import Throughput
from isoflop.trainer.workload import Text
from small import TINY

WORKLOAD = TextWorkload(Text(2e7, b""))
PEAK = {"float32": 5e10, "bfloat16": 1e9}


@pytest.fixture
def timed(monkeypatch):
    """The configurations that were timed, all at one speed."""
    seen = []

    def answer(configs, *_, **__):
        seen.extend(configs)
        rates = [PEAK["float32"] / 3 / WORKLOAD.flops_per_token(config) for config in configs]
        return [Throughput(c.tokens_per_step / r, r, 10, "") for c, r in zip(configs, rates, strict=True)]

    monkeypatch.setattr(throughput, "time_in_turns", answer)
    monkeypatch.setattr("isoflop.plan.ceiling.measure_peak", lambda device: dict(PEAK))
    return seen


def proposed(*assignments, budget="60s", keep=None, config=None):
    asked = Asked(assignments)
    given = {} if keep is None else {"keep": keep}
    return propose(parse_budget(budget), asked.apply(config or RunConfig()), WORKLOAD, asked, **given)


def test_shapes_are_timed_with_the_tokenizers_ids(timed):
    proposal, messages = proposed("data.vocab_size=50000"), []
    assert needs_new_shapes(proposal, 611) and not needs_new_shapes(proposal, 49_000)
    timed.clear()
    anew = with_fewer_ids(proposal, 611, 5.0, messages.append)
    assert {config.model.vocab_size for config in timed} == {611}
    assert "611 ids of 50,000 that were planned" in messages[0]
    advice = finalize(anew, Facts(2_000_000, 611, 2.5))
    assert advice.config.model.vocab_size == 611
    assert advice.parameters > finalize(proposal, Facts(2_000_000, 611, 2.5)).parameters  # which were for the rows
    line = next(choice for choice in advice.choices if choice.name == "vocabulary")
    assert line.reason == "set by you, but 50,000 were planned and the text gives no more"


def test_with_no_time_left_the_speeds_are_calculated(timed):
    proposal = proposed("data.vocab_size=50000")
    timed.clear()
    anew = with_fewer_ids(proposal, 611, 0.2, lambda line: None)
    assert not timed
    for before, after in zip(proposal.candidates, anew.candidates, strict=True):
        assert after.config.model.vocab_size == 611 and after.weights < before.weights
        flops = [one.tokens_per_second * WORKLOAD.flops_per_token(one.config) for one in (before, after)]
        assert flops[0] == pytest.approx(flops[1])


RECIPE = Keep(model=True, rates=True)


@pytest.mark.parametrize(
    ("rows", "asked_of_tokenizer", "changes", "keep", "expected"),
    [
        (50_257, 50_257, {}, RECIPE, 512),  # rows for ids that were not made
        (640, 600, {}, RECIPE, 640),  # padding of the recipe's own
        (400, 400, {}, RECIPE, 400),  # fewer than there are ids is for others to refuse
        (50_257, 50_257, {"init": "a run"}, RECIPE, 50_257),
        (50_257, 50_257, {}, Keep(model=True), 50_257),
        (50_257, 1024, {}, Keep(), 512),
    ],
)
def test_the_rows_of_a_given_model(rows, asked_of_tokenizer, changes, keep, expected):
    config = override(RunConfig(), [f"model.vocab_size={rows}", f"data.vocab_size={asked_of_tokenizer}"])
    assert with_ids(replace(config, **changes), 512, keep=keep).model.vocab_size == expected
    asked = Asked.of(["model.vocab_size=777"])
    assert with_ids(asked.apply(config), 512, asked, keep).model.vocab_size == 777


def test_a_recipe_has_no_rows_for_missing_ids(timed, corpus, tmp_path):
    more = [f"data.sources={json.dumps([str(corpus)])}", "data.vocab_size=5000", "model.vocab_size=5000", "steps=2"]
    config = override(RunConfig(), [*TINY, *more])
    isoflop.train(config, tmp_path / "as it is", quiet=True)
    isoflop.pretrain((), "3steps", tmp_path / "planned", base=config, quiet=True)
    for name in ("as it is", "planned"):
        run = read_run(tmp_path / name)
        assert 257 < run.data.vocab_size < 5000
        assert run.config["model"]["vocab_size"] == run.data.vocab_size
