"""The plan spends the budget, whatever else the user sets."""

import pytest

from isoflop.budget import parse_budget
from isoflop.errors import UserError
from isoflop.model.presets import PRESETS, heads_for
from isoflop.plan.advice import Facts
from isoflop.plan.asked import Asked
from isoflop.plan.planner import finalize, propose
from isoflop.trainer import RunConfig
from isoflop.trainer.causal_lm import TextWorkload
from isoflop.trainer.workload import Text

WORKLOAD = TextWorkload(Text(5e6, b""))


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    monkeypatch.setattr("isoflop.plan.ceiling.measure_peak", lambda device: {"float32": 5e10, "bfloat16": 1e9})


def plan(budget: str, *assignments: str):
    asked = Asked(assignments)
    proposal = propose(parse_budget(budget), asked.apply(RunConfig()), WORKLOAD, asked)
    return finalize(proposal, Facts(2_000_000, proposal.vocabulary, 2.5))


@pytest.mark.parametrize("asked", [(), ("batch.sequences=4",), ("batch.sequences=64",), ("model.context=64",)])
@pytest.mark.parametrize("budget", ["4e5tok", "1e12", "300steps"])
def test_the_users_settings_do_not_change_the_budget(budget, asked):
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


@pytest.mark.parametrize("budget", ["4e6tok", "1e13", "300steps"])
def test_a_batch_that_grows_for_a_share_of_the_run_reads_the_budget(budget):
    advice = plan(budget, "batch.ramp_from=2", "batch.ramp_share=0.5")
    config = advice.config
    assert config.batch.sequences % 2 == 0 and config.sizes.at(0) == 2 < config.batch.sequences
    assert advice.tokens == config.tokens < config.steps * config.tokens_per_step
    spent = {"4e6tok": (config.tokens, 4e6), "1e13": (advice.flops, 1e13), "300steps": (config.steps, 300)}[budget]
    steps_off = {"4e6tok": config.tokens_per_step, "1e13": advice.flops / config.tokens * config.tokens_per_step}
    assert abs(spent[0] - spent[1]) <= 2 * steps_off.get(budget, 0)
    [line] = [choice for choice in advice.choices if choice.name == "batch"]
    assert "growing from 2 x" in line.value


def test_every_field_set_by_the_user_is_in_the_plan():
    asked = ("runtime.compile=true", "runtime.threads=1", "optim.lr=0.003", "every.evaluate=7", "evaluate_tokens=9999")
    config = plan("4e5tok", *asked).config
    assert config.runtime.compile and config.runtime.threads == 1
    assert (config.optim.lr, config.every.evaluate, config.evaluate_tokens) == (0.003, 7, 9999)


def test_a_context_set_by_the_user_keeps_the_tokens_per_step():
    short, usual = (plan("4e6tok", *asked).config.tokens_per_step for asked in (("model.context=64",), ()))
    assert short == pytest.approx(usual, rel=0.1)


def test_the_heads_follow_a_width_set_by_the_user():
    workload, asked = TextWorkload(Text(1e9, b"")), Asked(("model.layers=3", "model.d_model=96"))
    budget = parse_budget("1e19flop")  # whose own shapes are wider
    proposal = propose(budget, asked.apply(RunConfig()), workload, asked)
    assert [candidate.config.model.heads for candidate in proposal.candidates] == [heads_for(96)]


def test_a_budget_that_is_too_small_is_refused_before_preparing():
    with pytest.raises(UserError, match="too small"):
        propose(parse_budget("1e4flop"), RunConfig(), WORKLOAD)


def with_ids(made: int, *assignments: str, vocab_size: int = 0):
    """The plan for a trained tokenizer of `made` ids, or a given one of `vocab_size` ids."""
    workload = TextWorkload(Text(5e6, b""), vocab_size)
    asked = Asked(assignments)
    proposal = propose(parse_budget("300steps"), asked.apply(RunConfig()), workload, asked)
    advice = finalize(proposal, Facts(2_000_000, made, 2.5))
    return advice.config.model, next(choice for choice in advice.choices if choice.name == "vocabulary")


@pytest.mark.parametrize("preset", ["gpt1", "gpt2", "smollm2-135m", "stories-260k", "modern"])
def test_a_preset_gives_the_shape_and_the_tokenizer_the_ids(preset):
    small = (f"model={preset}", "model.layers=1", "model.d_model=64", "model.heads=2", "model.attention.kv_heads=0")
    model, line = with_ids(512, *small)
    assert (model.vocab_size, line.value) == (512, "512 ids")
    assert model.norm == PRESETS[preset]().norm and model.layers == 1
    theirs = PRESETS[preset]().vocab_size
    assert with_ids(theirs, *small, vocab_size=theirs)[0].vocab_size == theirs
    assert with_ids(512, *small, "model.vocab_size=640")[0].vocab_size == 640


def test_a_model_as_json_keeps_its_vocabulary_if_it_has_one():
    shape = '"layers": 1, "d_model": 32, "heads": 2'
    assert with_ids(512, f"model={{{shape}}}")[0].vocab_size == 512
    assert with_ids(512, f'model={{{shape}, "vocab_size": 600}}')[0].vocab_size == 600


def test_the_vocabulary_line_shows_the_tokenizers_ids():
    _, line = with_ids(611, "data.vocab_size=50000", "model.layers=1", "model.d_model=32", "model.heads=2")
    assert line.value == "611 ids"
    assert line.reason == "set by you, but 50,000 were planned and the text gives no more"
    _, line = with_ids(600, "model.layers=1", "model.d_model=32", "model.heads=2", vocab_size=600)
    assert (line.value, line.reason) == ("600 ids", "the tokenizer that was given")
