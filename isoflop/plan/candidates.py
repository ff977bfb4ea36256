"""The shapes that are considered for a budget, and what the budget lets each of them read."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from isoflop.budget import Budget
from isoflop.errors import UserError
from isoflop.plan.repetition import TOKENS_PER_PARAMETER, reducible_loss
from isoflop.plan.trials import usual_speed
from isoflop.trainer import RunConfig
from isoflop.trainer.workload import Rung, Workload

HOOKS_SHARE = 0.03  # of the time, for held-out measurements, samples and checkpoints
MIN_STEPS = 20  # fewer are no training; a budget that buys fewer is refused


@dataclass(frozen=True)
class Candidate:
    """A shape that was considered.

    Attributes:
        weights: N of 6 N D, where D counts the workload's tokens.
        tokens_per_second: 0 where nothing was timed (a budget not in seconds).
        extrapolated: from what smaller shapes reach; this one was not timed.
    """

    config: RunConfig
    workload: Workload
    weights: float
    tokens_per_second: float = 0.0
    extrapolated: bool = False

    def tokens(self, budget: Budget) -> float:
        """Tokens that the budget lets this candidate read."""
        match budget.kind:
            case "seconds":
                return budget.amount * (1 - HOOKS_SHARE) * self.tokens_per_second
            case "flops":
                return budget.amount / self.workload.flops_per_token(self.config)
            case "steps":
                return budget.amount * self.config.batch.sequences * self.workload.tokens_per_sequence(self.config)
            case _:
                return budget.amount

    def steps(self, budget: Budget) -> int:
        """The steps that the budget buys this candidate.

        Raises:
            UserError: if they are fewer than MIN_STEPS and were not asked for as such.
        """
        if budget.kind == "steps":
            return int(budget.amount)
        sequences = self.config.batch.sequences
        steps = int(self.tokens(budget) / (sequences * self.workload.tokens_per_sequence(self.config)))
        if steps < MIN_STEPS:
            each = f"{sequences} {self.workload.sequences}"
            if self.workload.static_shapes:
                each = f"{self.config.tokens_per_step} tokens for {self.weights:,} parameters"
            raise UserError(
                f"budget {str(budget)!r} is too small: it buys {steps} steps of {each}, and fewer than {MIN_STEPS} "
                "train nothing; give it more"
            )
        return steps

    def score(self, budget: Budget, unique_tokens: int) -> float:
        """What the best candidate has least of: reducible loss or, where more parameters would always be better and
        cost more (a budget in tokens or steps), distance from the balance of tokens and parameters."""
        if budget.kind in ("tokens", "steps"):
            return abs(math.log(self.tokens(budget) / self.weights / TOKENS_PER_PARAMETER))
        return reducible_loss(self.weights, self.tokens(budget), unique_tokens)


def rough_flops(budget: Budget, peak: dict[str, float], device: str, machines: int = 1) -> float:
    """About how much compute a budget is, before anything is timed: to know where on the ladder to look."""
    match budget.kind:
        case "flops":
            return budget.amount
        case "seconds":
            return machines * budget.amount * usual_speed(device, "float32", peak)
        case "steps":  # tokens that a batch of that size would be chosen for: the inverse of batch_tokens_for, roughly
            return 6 * (budget.amount * 8192) ** 2 / TOKENS_PER_PARAMETER
        case _:
            return 6 * budget.amount**2 / TOKENS_PER_PARAMETER


def nearest_rungs(workload: Workload, target: float, shaped: Callable[[Rung], RunConfig]) -> list[Rung]:
    """The rungs of the workload's ladder that are considered: those nearest to `target` parameters, nearest first."""
    ordered = sorted(workload.ladder, key=lambda rung: abs(math.log(workload.size(rung, shaped(rung)) / target)))
    return ordered[: workload.near or None]


def different(configs: Iterable[RunConfig]) -> list[RunConfig]:
    """The first configuration of each model: rungs are alike where the user has set what they differ in."""
    found: list[RunConfig] = []
    for config in configs:
        if all(config.model != known.model for known in found):
            found.append(config)
    return found
