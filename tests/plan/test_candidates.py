"""The tokens and steps that a budget buys a shape, and which shapes are considered."""

from dataclasses import replace

import pytest

from isoflop.budget import parse_budget
from isoflop.config import override
from isoflop.errors import UserError
from isoflop.plan.candidates import HOOKS_SHARE, MIN_STEPS, Candidate, best_rungs, different, rough_flops
from isoflop.trainer import RunConfig
from isoflop.trainer.causal_lm import LADDER, TextWorkload
from isoflop.trainer.workload import Text

WORKLOAD = TextWorkload(Text(5e6, b""))
CONFIG = override(RunConfig(), ["model.layers=2", "model.d_model=64", "model.context=128", "batch.sequences=8"])
PEAK = {"float32": 1e11, "bfloat16": 4e11}


def candidate(rate: float = 0.0, config: RunConfig = CONFIG) -> Candidate:
    return Candidate(config, WORKLOAD, WORKLOAD.weights(config), rate)


def test_tokens_of_every_kind_of_budget():
    one = candidate(rate=5000.0)
    assert one.tokens(parse_budget("100s")) == pytest.approx(100 * (1 - HOOKS_SHARE) * 5000)
    assert one.tokens(parse_budget("1e12")) == pytest.approx(1e12 / (6 * one.weights))
    assert one.tokens(parse_budget("300steps")) == 300 * 8 * 128
    assert one.tokens(parse_budget("5e5tok")) == 5e5


def test_steps_are_whole_and_too_few_are_refused():
    one = candidate()
    assert one.steps(parse_budget(f"{1024 * MIN_STEPS + 1023}tok")) == MIN_STEPS
    with pytest.raises(UserError, match=f"buys {MIN_STEPS - 1} steps of 1024 tokens for {one.weights:,} parameters"):
        one.steps(parse_budget(f"{1024 * MIN_STEPS - 1}tok"))
    assert one.steps(parse_budget("3steps")) == 3  # asked for as such


def test_a_budget_in_tokens_is_scored_by_balance_and_others_by_loss():
    small, large = candidate(), candidate(config=override(CONFIG, ["model.d_model=256"]))
    balanced = parse_budget(f"{round(20 * small.capacity)}tok")
    assert small.score(balanced, 10**12) < 1e-6 < large.score(balanced, 10**12)
    plenty = parse_budget(f"{6 * 20 * large.weights**2}flop")
    assert large.score(plenty, 10**12) < small.score(plenty, 10**12)
    assert small.score(plenty, 10**3) > small.score(plenty, 10**12)  # repeated text is worth less


def test_rough_compute():
    assert rough_flops(parse_budget("1e15"), PEAK, "cpu") == 1e15
    assert rough_flops(parse_budget("10s"), PEAK, "cpu", machines=2) == 2 * 10 * 0.35 * 1e11
    assert rough_flops(parse_budget("10s"), PEAK, "cuda") == 10 * 0.25 * 4e11
    assert rough_flops(parse_budget("1e6tok"), PEAK, "cpu") == 6 * 1e12 / 20


def best_of(flops: float, ids: int = CONFIG.model.vocab_size) -> list[tuple[int, int]]:
    """The rungs to consider for a vocabulary of `ids`."""

    def shaped(rung: tuple[int, int]) -> RunConfig:
        model = replace(CONFIG.model, layers=rung[0], d_model=rung[1], heads=1, vocab_size=ids)
        return replace(CONFIG, model=model)

    return best_rungs(WORKLOAD, flops, shaped)


def balanced(rung: tuple[int, int], ids: int) -> float:
    """The FLOPs of a rung with 20 tokens per parameter."""
    return 6 * 20 * WORKLOAD.size(rung, replace(CONFIG, model=replace(CONFIG.model, vocab_size=ids))) ** 2


def test_the_rungs_with_the_least_expected_loss_are_considered():
    alone = best_of(balanced((4, 128), 2), 2)  # a model that is hardly any head
    assert alone[0] == (4, 128) and len(alone) == WORKLOAD.considered
    assert set(alone) <= set(LADDER[LADDER.index((4, 128)) - 4 : LADDER.index((4, 128)) + 5])
    assert best_of(balanced((4, 128), CONFIG.model.vocab_size))[0] >= (4, 128)


@pytest.mark.parametrize("flops", [2e13, 2e14, 2e16])
def test_a_larger_vocabulary_does_not_choose_far_smaller_blocks(flops):
    """The head of a small model is as large as its blocks: it must not take their place."""
    few, many = best_of(flops, 1024)[0], best_of(flops, 8192)[0]
    assert LADDER.index(many) >= LADDER.index(few) - 2


def test_equal_shapes_are_considered_once():
    other = override(CONFIG, ["model.layers=1"])
    assert different([CONFIG, other, replace(CONFIG, seed=3)]) == [CONFIG, other]
