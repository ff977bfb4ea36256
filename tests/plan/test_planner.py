"""The plan spends the budget, whatever else is asked for."""

import pytest

from isoflop.budget import parse_budget
from isoflop.errors import UserError
from isoflop.plan.advice import Facts
from isoflop.plan.asked import Asked
from isoflop.plan.planner import finalize, propose
from isoflop.trainer import RunConfig
from isoflop.trainer.causal_lm import TextWorkload
from isoflop.trainer.workload import Text

WORKLOAD = TextWorkload(Text(5e6, b""))


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    monkeypatch.setattr("isoflop.plan.planner.measure_peak", lambda device: {"float32": 5e10, "bfloat16": 1e9})


def plan(budget: str, *assignments: str):
    proposal = propose(parse_budget(budget), RunConfig(), WORKLOAD, Asked(assignments))
    return finalize(proposal, Facts(2_000_000, proposal.vocabulary, 2.5))


@pytest.mark.parametrize("asked", [(), ("batch.sequences=4",), ("batch.sequences=64",), ("model.context=64",)])
@pytest.mark.parametrize("budget", ["4e5tok", "1e12", "300steps"])
def test_what_is_asked_for_does_not_change_what_is_spent(budget, asked):
    advice = plan(budget, *asked)
    config = advice.config
    for text in asked:
        field, _, value = text.partition("=")
        room, _, name = field.partition(".")
        assert getattr(getattr(config, room), name) == int(value)
    spent = {"4e5tok": (config.tokens, 4e5), "1e12": (advice.flops, 1e12), "300steps": (config.steps, 300)}[budget]
    one_step = {"4e5tok": config.tokens_per_step, "1e12": advice.flops / config.steps, "300steps": 0}[budget]
    assert spent[1] - one_step <= spent[0] <= spent[1]
    assert advice.tokens == config.tokens == config.steps * config.tokens_per_step


def test_every_field_asked_for_is_in_the_plan():
    asked = ("runtime.compile=true", "runtime.threads=1", "optim.lr=0.003", "every.evaluate=7", "evaluate_tokens=9999")
    config = plan("4e5tok", *asked).config
    assert config.runtime.compile and config.runtime.threads == 1
    assert (config.optim.lr, config.every.evaluate, config.evaluate_tokens) == (0.003, 7, 9999)


def test_a_context_asked_for_keeps_the_tokens_of_a_step():
    short, usual = (plan("4e6tok", *asked).config.tokens_per_step for asked in (("model.context=64",), ()))
    assert short == pytest.approx(usual, rel=0.1)


def test_too_little_is_said_before_the_text_is_prepared():
    with pytest.raises(UserError, match="too small"):
        propose(parse_budget("1e4flop"), RunConfig(), WORKLOAD)
