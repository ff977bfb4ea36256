"""The candidate shapes for a budget, and the number of tokens that the budget buys each of them."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from isoflop.budget import Budget
from isoflop.errors import UserError
from isoflop.optim.timetable import MOST_STEPS
from isoflop.plan.repetition import TOKENS_PER_PARAMETER, reducible_loss
from isoflop.plan.trials import usual_speed
from isoflop.trainer import RunConfig
from isoflop.trainer.workload import Rung, Workload

HOOKS_SHARE = 0.03  # of the time, for held-out measurements, samples and checkpoints
# What a weight of the head is worth next to one of the blocks, in the choice of a shape. Small models with a usual
# vocabulary are mostly head: where N was the sum of both, the blocks of the chosen shape were far too small (LAB.md).
HEAD_WORTH = 0.3
MIN_STEPS = 20  # a budget that buys fewer is refused: so few train nothing


@dataclass(frozen=True)
class Candidate:
    """A shape that was considered.

    Attributes:
        weights: N of 6 N D, where D counts the workload's tokens.
        tokens_per_second: 0 if nothing was timed (a budget not in seconds).
        extrapolated: the speed is extrapolated from smaller shapes; this one was not timed.
    """

    config: RunConfig
    workload: Workload
    weights: float
    tokens_per_second: float = 0.0
    extrapolated: bool = False

    @property
    def capacity(self) -> float:
        """See the function of this name."""
        return capacity(self.workload, self.config, self.weights)

    def tokens(self, budget: Budget) -> float:
        """The number of tokens that the budget buys this candidate."""
        match budget.kind:
            case "seconds":
                return budget.amount * (1 - HOOKS_SHARE) * self.tokens_per_second
            case "flops":
                return budget.amount / self.workload.flops_per_token(self.config)
            case "steps" if self.config.batch.ramp_share:
                return self.workload.tokens(replace(self.config, steps=int(budget.amount)))
            case "steps":
                return budget.amount * self.config.batch.sequences * self.workload.tokens_per_sequence(self.config)
            case _:
                return budget.amount

    def steps(self, budget: Budget) -> int:
        """The number of steps that the budget buys this candidate.

        Raises:
            UserError: if it is less than MIN_STEPS and the budget is not in steps, or more than a run can have.
        """
        if budget.kind == "steps":
            return int(budget.amount)

        sequences = self.config.batch.sequences
        steps = int(self.tokens(budget) / (sequences * self.workload.tokens_per_sequence(self.config)))
        batch = self.config.batch
        # with batch.ramp_sequences other budgets buy as many steps as without a ramp, as they always have
        if batch.ramp_share or (batch.ramp_from and budget.kind == "seconds"):
            read = self.tokens(budget) / self.workload.tokens_per_sequence(self.config)
            steps = self.config.batch.steps_for(read)
            steps -= replace(self.config, steps=steps).sizes.before(steps) > read
        if steps < MIN_STEPS:
            each = f"{sequences} {self.workload.sequences}"
            if self.workload.static_shapes:
                each = f"{self.config.tokens_per_step} tokens for {self.weights:,} parameters"
            raise UserError(
                f"budget {str(budget)!r} is too small: it buys {steps} steps of {each}, and fewer than {MIN_STEPS} "
                "train nothing; give it more"
            )
        if steps > MOST_STEPS:
            raise UserError(
                f"budget {str(budget)!r} is too large: it buys {steps:.2g} steps, and a run has at most "
                f"{MOST_STEPS:.0e}; give it less"
            )
        return steps

    def score(self, budget: Budget, unique_tokens: int) -> float:
        """The value that the best candidate minimises: the reducible loss or, with a budget in tokens or steps, where
        more parameters would always be better and cost more, the distance from TOKENS_PER_PARAMETER."""
        if budget.kind in ("tokens", "steps"):
            return abs(math.log(self.tokens(budget) / self.capacity / TOKENS_PER_PARAMETER))
        return reducible_loss(self.capacity, self.tokens(budget), unique_tokens)


def capacity(workload: Workload, config: RunConfig, weights: float) -> float:
    """The weights of a model that stand for N in the expected loss: those of the blocks, and HEAD_WORTH of the head's.

    Args:
        weights: N of 6 N D, which both cost alike.
    """
    return weights - (1 - HEAD_WORTH) * workload.head_weights(config)


def rough_flops(budget: Budget, peak: dict[str, float], device: str, machines: int = 1) -> float:
    """A rough estimate of a budget's compute before anything is timed, to choose the rungs to consider."""
    match budget.kind:
        case "flops":
            return budget.amount
        case "seconds":
            return machines * budget.amount * usual_speed(device, "float32", peak)
        case "steps":  # at a batch of 8,192 tokens
            return 6 * (budget.amount * 8192) ** 2 / TOKENS_PER_PARAMETER
        case _:
            return 6 * budget.amount**2 / TOKENS_PER_PARAMETER


def best_rungs(workload: Workload, flops: float, shaped: Callable[[Rung], RunConfig]) -> list[Rung]:
    """The rungs of the workload's ladder to consider: those with the least expected loss for `flops` FLOPs on fresh
    text if all shapes were equally fast, the best one first."""

    def loss(rung: Rung) -> float:
        config = shaped(rung)
        size = workload.size((config.model.layers, config.model.d_model), config)  # some may be the user's
        return reducible_loss(capacity(workload, config, size), flops / (6 * size), math.inf)

    return sorted(workload.ladder, key=loss)[: workload.considered or None]


def different(configs: Iterable[RunConfig]) -> list[RunConfig]:
    """The first configuration of each model: rungs are equal if the user has set the fields in which they differ."""
    distinct: list[RunConfig] = []
    for config in configs:
        if all(config.model != other.model for other in distinct):
            distinct.append(config)
    return distinct
