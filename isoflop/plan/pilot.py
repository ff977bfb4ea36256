"""Pilots: a few tiny complete runs on the prepared text, made before a run to forecast what it will reach.

A smaller run on the same text says far more than what can be known of a text without any training (prior.py has how
much, and bench/prior.py the runs that say so). Pilots have the run's tokenizer, its recipe and its held-out pieces, and
a smaller model that reads fewer tokens at about the same ratio of the two. They take SHARE of the budget at most, are
inside it, and are made only where they pay. A budget in tokens or steps says how long the run itself is, so nothing is
taken off it.

Where they pay was measured on the prior's own corpora (LAB.md). At 2e12 FLOPs, about a minute, pilots of 50 to 110
steps told hardly more than the text alone. Runs of 5e11 FLOPs, which is what pilots of 2e13 FLOPs are, told more.
Between the two nothing was measured. A recipe that is not the prior's has no forecast without pilots, so that it has
them from a minute on.

What a pilot costs is the loss that its compute would have bought: at 5 % of the budget 0.05 times the slope of
log(bits per byte) in log compute, which is 0.07 to 0.12 in the prior's table: about 0.5 %.

Here is which runs to make; job/pilots.py makes them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from isoflop.budget import Budget
from isoflop.errors import UserError
from isoflop.parallel.config import ParallelConfig
from isoflop.plan.advice import Advice, Proposal
from isoflop.plan.hierarchy import Seen
from isoflop.plan.settings import with_batch, with_rates
from isoflop.plan.trials import STEEPEST
from isoflop.records import PilotRun
from isoflop.trainer import RunConfig
from isoflop.trainer.config import EveryConfig
from isoflop.trainer.workload import Workload

SHARE = 0.05  # of a budget, for all pilots together, with everything around their steps
FROM = {"seconds": 600.0, "flops": 2e13}  # budgets from which pilots pay
FROM_OTHER = {"seconds": 60.0, "flops": 2e12}  # for a recipe that is not the prior's
PARTS = (0.3, 0.65)  # of that share for each pilot, the smaller one first; the rest is slack
AROUND = 0.25  # of a pilot's seconds, for making it and for measuring what it reached
FEWEST_STEPS = 40  # fewer are no run: warm-up and decay would be all of it
SMALLER = 0.9  # of the run's parameters that a pilot may have at most
BALANCE = (4.0, 60.0)  # tokens per parameter that a pilot has at least and at most
WIDTHS = (16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024)  # where the depth is kept
MEASURED = 0.25  # of the tokens that a pilot reads, measured held out: a twelfth of its FLOPs
FEWEST_MEASURED, MOST_MEASURED = 32_768, 1_000_000  # tokens


@dataclass(frozen=True)
class Pilots:
    """What came of them.

    Attributes:
        runs: those that ended.
        spent: seconds that they took now; 0 where they were on record.
        note: why there are none, or fewer than meant; empty: as meant.
    """

    runs: tuple[PilotRun, ...] = ()
    spent: float = 0.0
    note: str = ""

    @property
    def seen(self) -> tuple[Seen, ...]:
        return seen_of(self.runs)


NONE = Pilots()


def seen_of(runs: Sequence[PilotRun]) -> tuple[Seen, ...]:
    """Pilots as the forecast takes them; those whose records lack something are left out."""
    return tuple(
        Seen(run.parameters, run.tokens, run.unique_tokens, run.bits_per_byte, pilot=True)
        for run in runs
        if run.parameters and run.tokens and run.unique_tokens and run.bits_per_byte
    )


def pays(budget: Budget, workload: Workload, other: bool = False) -> bool:
    """Whether pilots are made for a budget: it is large enough, and the task is one whose loss is forecast.

    Args:
        other: the recipe is not the prior's.
    """
    least = (FROM_OTHER if other else FROM).get(budget.kind, math.inf)
    return workload.text is not None and budget.amount >= least


def without_pilots(budget: Budget) -> Budget:
    """What is left of a budget for the run itself."""
    return replace(budget, amount=(1 - SHARE) * budget.amount)


def designs(advice: Advice, strange: bool) -> list[RunConfig]:
    """The pilots of a planned run, the smaller one first. In a budget of seconds each is held to its part of them, and
    how many steps that is, is a guess.

    Args:
        advice: the plan; its budget is the whole one.
        strange: the recipe is not the prior's: then depth, on which a recipe may hang, is the run's own.
    """
    budget, proposal = advice.budget, advice.proposal
    if proposal is None:
        return []
    found: list[RunConfig] = []
    for part in reversed(PARTS):
        amount = part * SHARE * budget.amount
        seconds = (1 - AROUND) * amount if budget.kind == "seconds" else 0.0
        flops = amount / (1 + MEASURED / 3) if budget.kind == "flops" else seconds * flops_per_second(advice)
        try:
            pilot = design(advice, proposal, flops, seconds, strange)
        except UserError:  # blocks that do not go with a smaller shape
            pilot = None
        if pilot is not None and all(pilot.model != other.model or 2 * pilot.steps < other.steps for other in found):
            found.insert(0, pilot)
    return found


def flops_per_second(advice: Advice) -> float:
    """6 N D per second of the plan's own shape; a smaller one is slower, see `design`."""
    chosen = next((one for one in advice.candidates if one.chosen), None)
    return 6.0 * advice.parameters * (chosen.tokens_per_second or 0.0) if chosen else 0.0


def design(advice: Advice, proposal: Proposal, flops: float, seconds: float, strange: bool) -> RunConfig | None:
    """A run of about so many FLOPs that is to the planned one as small is to large; None if it could have no more than
    a few steps."""
    config, target, workload, asked = advice.config, advice.config.model, proposal.workload, proposal.asked
    ratio = min(max(advice.tokens / advice.parameters, BALANCE[0]), BALANCE[1])
    shapes = []
    for layers, width in [(target.layers, width) for width in WIDTHS] if strange else workload.ladder:
        shape = {**workload.shape((layers, width), target.vocab_size, target.context)}
        slower = (min(1.0, width / target.d_model)) ** STEEPEST if seconds else 1.0
        model = replace(target, **shape)
        size = float(workload.weights(replace(config, model=model)))
        if size > SMALLER * advice.parameters:
            break
        best = math.sqrt(max(flops, 1.0) * slower / (6 * ratio))
        shapes.append((abs(math.log(size / best)), size, slower, model))
    if not shapes:
        return None
    _, size, slower, model = min(shapes, key=lambda one: one[0])

    tokens = flops * slower / (6 * size)
    pilot = replace(config, model=model, optim=proposal.config.optim)  # with the rates that those of a width come from
    pilot = with_batch(pilot, tokens, workload, asked)
    pilot = with_rates(pilot, asked) if workload.rates_by_width else pilot
    steps = int(tokens / pilot.tokens_per_step)
    if steps < FEWEST_STEPS:
        return None
    return replace(
        pilot,
        steps=steps,
        seconds=seconds,
        every=EveryConfig(log=max(1, steps // 10), evaluate=0, sample=0, checkpoint=0, background=False),
        guard=replace(pilot.guard, preflight=False),
        runtime=replace(pilot.runtime, compile=False),
        parallel=ParallelConfig(),
        trackers=(),
        evaluate_tokens=measured_tokens(tokens),
    )


def measured_tokens(tokens: float) -> int:
    """Held-out tokens that a pilot is measured on."""
    return int(min(max(MEASURED * tokens, FEWEST_MEASURED), MOST_MEASURED))


def told(advice: Advice, strange: bool) -> str:
    """What pilots a dry run would have made, in words."""
    made = designs(advice, strange)
    if not made:
        return "none: the share of the budget that they may take is too small for a run"
    sizes = ", ".join(f"{one.model.layers} x {one.model.d_model} for about {one.steps:,} steps" for one in made)
    return f"{len(made)} on this text, {sizes}"


def no_forecast(advice: Advice) -> str:
    """Why nothing is expected of a recipe of somebody's own, and what would change that, in words."""
    if any(choice.name == "pilots" for choice in advice.choices):
        return "its pilots say nothing: see their line"
    seconds, flops = FROM_OTHER["seconds"], FROM_OTHER["flops"]
    return f"pilots of it would say: a budget of {seconds:.0f} s or {flops:.0e} FLOPs and more has them"
