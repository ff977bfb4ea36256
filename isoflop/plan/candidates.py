"""The shapes that are considered for a budget, and what the budget lets each of them read."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from isoflop.budget import Budget
from isoflop.plan.predictability import Predictability
from isoflop.plan.prior import expect
from isoflop.plan.repetition import TOKENS_PER_PARAMETER
from isoflop.plan.shapes import LADDER
from isoflop.trainer import RunConfig

TIMED = 4  # candidate shapes that are timed
HOOKS_SHARE = 0.03  # of the time, for held-out measurements, samples and checkpoints


@dataclass(frozen=True)
class Candidate:
    """A shape that was considered. `tokens_per_second` is 0 where nothing was timed (a budget not in seconds)."""

    config: RunConfig
    parameters: int
    tokens_per_second: float


def tokens_for(budget: Budget, candidate: Candidate) -> float:
    """Tokens that the budget lets this candidate read."""
    match budget.kind:
        case "seconds":
            return budget.amount * (1 - HOOKS_SHARE) * candidate.tokens_per_second
        case "flops":
            return budget.amount / candidate.config.flops_per_token
        case "steps":
            return budget.amount * candidate.config.tokens_per_step
        case _:
            return budget.amount


def rough_flops(budget: Budget, peak: dict[str, float], device: str, machines: int = 1) -> float:
    """About how much compute a budget is, before anything is timed: to know where on the ladder to look."""
    match budget.kind:
        case "seconds":
            share = 0.35 if device == "cpu" else 0.25
            return machines * budget.amount * share * (peak["float32"] if device == "cpu" else max(peak.values()))
        case "steps":  # tokens that a batch of that size would be chosen for: the inverse of batch_tokens_for, roughly
            return 6 * (budget.amount * 8192) ** 2 / TOKENS_PER_PARAMETER
        case _:
            return 6 * budget.amount**2 / TOKENS_PER_PARAMETER


def nearest_rungs(target: float, shaped: Callable[[tuple[int, int]], RunConfig]) -> list[tuple[int, int]]:
    """The rungs of the ladder nearest to `target` parameters, nearest first."""

    def distance(rung: tuple[int, int]) -> float:
        layers, d_model = rung
        rough = 12 * layers * d_model**2 + shaped(rung).model.vocab_size * d_model
        return abs(math.log(rough / target))

    return sorted(LADDER, key=distance)[:TIMED]


def candidate_line(
    candidate: Candidate, budget: Budget, unique_tokens: int, text: Predictability, chosen: bool, from_scratch: bool
) -> dict[str, Any]:
    tokens = tokens_for(budget, candidate)
    return {
        "layers": candidate.config.model.layers,
        "d_model": candidate.config.model.d_model,
        "parameters": candidate.parameters,
        "tokens_per_second": candidate.tokens_per_second or None,
        "tokens": int(tokens),
        "expected_bits_per_byte": expect(candidate.parameters, tokens, unique_tokens, text).bits_per_byte
        if from_scratch
        else None,
        "chosen": chosen,
    }
