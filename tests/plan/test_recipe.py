"""The prior forecasts runs with its own recipe only; other recipes need pilots."""

import pytest

from isoflop.budget import parse_budget
from isoflop.config import override
from isoflop.plan.advice import Facts
from isoflop.plan.asked import Asked
from isoflop.plan.pilot import (
    FEWEST_STEPS,
    FEWEST_TOKENS,
    SHARE,
    SMALLER,
    Pilots,
    design_pilot,
    has_pilots,
    without_pilots,
)
from isoflop.plan.planner import finalize, propose
from isoflop.plan.recipe import differences, prior_recipe, recipe_key, recipe_of
from isoflop.plan.settings import EMBEDDING_BETAS, HEAD_BETAS, MOST_DECAY, with_decay, with_recipe
from isoflop.records import PilotRun
from isoflop.trainer import RunConfig
from isoflop.trainer.causal_lm import TextWorkload
from isoflop.trainer.workload import Text, matmul_weights

WORKLOAD = TextWorkload(Text(5e6, b""))
PILOT = PilotRun(parameters=40_000, tokens=400_000, flops=1e11, unique_tokens=2_000_000, bits_per_byte=2.5)


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    monkeypatch.setattr("isoflop.plan.ceiling.measure_peak", lambda device: {"float32": 5e10, "bfloat16": 1e9})


def plan(budget: str, *assignments: str, pilots: Pilots | None = None):
    asked = Asked(assignments)
    proposal = propose(parse_budget(budget), asked.apply(RunConfig()), WORKLOAD, asked)
    return finalize(proposal, Facts(2_000_000, proposal.vocabulary, 2.5), pilots or Pilots())


def test_the_default_recipe_is_the_priors():
    assert recipe_of(with_recipe(RunConfig())) == prior_recipe()
    assert plan("1e12").expected is not None and plan("1e12").differences == ()


def test_the_default_recipe_has_value_embeddings_and_betas_by_group():
    config = plan("1e12").config
    assert config.model.value_embedding == 1
    assert config.optim.embedding_betas == EMBEDDING_BETAS and config.optim.head_betas == HEAD_BETAS
    wide = with_recipe(override(RunConfig(), ["model.d_model=512"]))
    assert wide.model.value_embedding == 2 and recipe_of(wide) == prior_recipe()


def test_a_text_that_is_read_often_gets_more_weight_decay():
    def factor(epochs: float, *assignments: str) -> float:
        return with_decay(RunConfig(), epochs, Asked(assignments)).optim.weight_decay_factor

    factors = [factor(epochs) for epochs in (0.3, 1.0, 6.0, 8.0, 12.0, 100.0)]
    assert factors[:3] == [1.0, 1.0, 1.0] and factors == sorted(factors) and factors[-1] == MOST_DECAY
    assert factor(12.0, "optim.weight_decay_factor=1") == factor(12.0, "optim.weight_decay=0.3") == 1.0
    assert recipe_of(with_decay(RunConfig(), 12.0)) == recipe_of(RunConfig())
    small = plan("1e14")  # of 2,000,000 unique tokens
    assert small.config.optim.weight_decay_factor > 1.0 and not small.differences
    assert any("weight decay" in choice.value for choice in small.choices if choice.name == "optimiser")
    assert plan("1e12").config.optim.weight_decay_factor == 1.0
    pilot = design_pilot(small, other_recipe=False)
    assert pilot.optim.weight_decay_factor == 1.0  # it reads a small part of the text once
    assert plan("1e14", "optim.weight_decay_factor=1").differences


def test_what_is_set_stays_and_what_does_not_fit_is_left_out():
    def values(*assignments: str) -> int:
        return plan("1e12", *assignments).config.model.value_embedding

    assert values("model.value_embedding=0") == values("model=portable") == values("model=modern") == 0
    assert values("model.value_embedding=3") == 3
    assert values("model.attention=latent") == values("model.attention=none") == 0
    assert values('model.attention={"name":"alternating","pattern":["full","latent"]}') == 0
    assert values("model.attention=alternating") == values("model.attention=banded") == values("model.norm=layer") == 1

    def betas(*assignments: str) -> tuple:
        optim = plan("1e12", *assignments).config.optim
        return optim.embedding_betas, optim.head_betas

    assert betas("optim.betas=[0.9,0.99]") == betas("optim.name=adamw") == (None, None)
    assert betas("optim.embedding_betas=[0.7,0.9]") == ((0.7, 0.9), HEAD_BETAS)


def test_a_model_that_training_starts_from_keeps_its_blocks():
    kept = with_recipe(RunConfig(), model=False)
    assert kept.model == RunConfig().model and kept.optim.embedding_betas == EMBEDDING_BETAS
    assert with_recipe(override(RunConfig(), ["task=seq2seq"])) == override(RunConfig(), ["task=seq2seq"])


OTHERS = [
    'model.wiring={"name":"none"}',
    "model.wiring=post",
    "model.feed_forward=swiglu",
    "model.attention=none",
    "model.tied_head=true",
    "optim.name=adamw",
    "optim.weight_decay=0",
    "schedule.name=cosine",
    "schedule.decay=0",
    "optim.lr=0.1",
    "model.dropout=0.2",
    "model.context=32",
    "loss=z_loss",
]


@pytest.mark.parametrize("other", OTHERS)
def test_another_recipe_has_a_forecast_only_with_pilots(other):
    advice = plan("1e12", other)
    assert advice.expected is None and advice.differences
    assert advice.plan().expected is None and advice.plan().recipe == advice.differences
    assert all(one.expected_bits_per_byte is None for one in advice.candidates)
    piloted = plan("1e12", other, pilots=Pilots((PILOT,)))
    usual = plan("1e12", pilots=Pilots((PILOT,)))
    assert piloted.expected is not None and "pilot" in piloted.expected.source
    assert piloted.expected.high / piloted.expected.low > usual.expected.high / usual.expected.low


@pytest.mark.parametrize(
    "same",
    ["model.layers=2", "seed=3", "runtime.threads=1", "data.vocab_size=700", "optim.lr=0.012"],
)
def test_size_seed_and_machine_are_not_part_of_the_recipe(same):
    assert plan("1e12", same).expected is not None
    assert recipe_key(plan("1e12", same).config) == recipe_key(plan("1e12").config)


def test_a_difference_is_named_with_both_values():
    (difference,) = differences(plan("1e12", "schedule.name=cosine").config)
    assert difference == "schedule.name = cosine and not wsd"


@pytest.mark.parametrize("budget", ["1e13", "1e14"])
@pytest.mark.parametrize("asked", [(), ("model.wiring=post",), ("optim.name=adamw",)])
def test_a_pilot_is_a_small_complete_run_within_its_share(budget, asked):
    advice = plan(budget, *asked)
    pilot = design_pilot(advice, bool(advice.differences))
    flops = 6.0 * matmul_weights(pilot) * pilot.tokens
    assert 0.3 * SHARE * advice.budget.amount < flops < SHARE * advice.budget.amount
    assert matmul_weights(pilot) <= SMALLER * advice.parameters and pilot.steps >= FEWEST_STEPS
    assert pilot.tokens >= FEWEST_TOKENS * matmul_weights(pilot)
    assert pilot.model.vocab_size <= advice.config.model.vocab_size and pilot.seed == advice.config.seed
    assert recipe_of(pilot) == recipe_of(advice.config)
    if asked:
        assert pilot.model.layers == advice.config.model.layers


def test_budgets_in_steps_or_tokens_have_no_pilots():
    assert has_pilots(parse_budget("10m"), WORKLOAD) and has_pilots(parse_budget("1e14"), WORKLOAD)
    assert has_pilots(parse_budget("30s"), WORKLOAD)
    for small in ("5s", "1e9", "1000steps", "1e9tok"):
        assert not has_pilots(parse_budget(small), WORKLOAD)
    assert without_pilots(parse_budget("100s")).amount == pytest.approx(95.0)
