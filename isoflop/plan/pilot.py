"""The pilot: a tiny complete run on the prepared text, before a run, to forecast its loss. This file designs it;
job/pilots.py runs it.

A smaller run on the same text says far more than the predictability of the text: over the 20 corpora of the prior it
leaves 9 % of error where the text alone leaves 19 % (bench/prior.py, LAB.md). The pilot is what a plan
would train with 1/20 of the compute: it has the run's recipe, text and held-out pieces, a smaller model, fewer tokens,
and a smaller vocabulary, the first merges of the run's (data/fewer_merges.py). With the run's own vocabulary so small a
model would be nearly all head. One pilot with all of the share was as good as two with a third and two thirds of it.

It takes at most SHARE of the budget. A budget in tokens or steps fixes the length of the run itself, so that it has
none. A recipe that is not the prior's has no forecast without pilots.

A pilot costs the loss that its compute would have bought: with 5 % of the budget, 0.05 times the slope of log(bits per
byte) in log compute, which is 0.07 to 0.12 in the prior's table, so about 0.5 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from isoflop.budget import Budget
from isoflop.errors import UserError
from isoflop.parallel.config import ParallelConfig
from isoflop.plan.advice import Advice
from isoflop.plan.asked import VOCABULARY
from isoflop.plan.candidates import capacity
from isoflop.plan.hierarchy import Observation
from isoflop.plan.repetition import reducible_loss
from isoflop.plan.settings import vocabulary_for, with_batch, with_decay, with_rates, with_recipe
from isoflop.plan.trials import STEEPEST
from isoflop.records import PilotRun
from isoflop.trainer import RunConfig
from isoflop.trainer.config import EveryConfig
from isoflop.trainer.workload import Workload

SHARE = 0.05  # of a budget, at most, including everything outside its steps
SLACK = 0.05  # of SHARE, kept back
FROM = {"seconds": 20.0, "flops": 1e12}  # budgets from which on there is a pilot: less has no room for one
TOO_SMALL = "the share of the budget that a pilot may take is too small for a run"
# FLOPs of a pilot up to which its vocabulary is smaller than the run's: its text is then in memory, and the heads of
# larger models are a small part of them.
FEWER_IDS_UNTIL = 1e15
OVERHEAD = 0.25  # of a pilot's seconds, for building it and measuring its held-out loss
FEWEST_STEPS = 40  # with fewer, warm-up and decay would be most of the run
FEWEST_TOKENS = 2.0  # per parameter: with fewer, a pilot says too little of a run with more
SMALLER = 0.9  # a pilot has at most this share of the run's parameters
WIDTHS = (16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024)  # tried if the depth is fixed
MEASURED = 0.25  # held-out tokens per training token of a pilot: a twelfth of its FLOPs
FEWEST_MEASURED, MOST_MEASURED = 32_768, 1_000_000  # held-out tokens


@dataclass(frozen=True)
class Pilots:
    """The pilots of a run.

    Attributes:
        runs: those that finished.
        spent: the seconds that they took; 0 if they were on record, or the budget is not in seconds.
        note: why there are none, or fewer than designed; "" if there are as many.
    """

    runs: tuple[PilotRun, ...] = ()
    spent: float = 0.0
    note: str = ""


NO_PILOTS = Pilots()


def observations(runs: Sequence[PilotRun]) -> tuple[Observation, ...]:
    """Pilots as the input of a forecast, without those whose records are incomplete."""
    return tuple(
        Observation(run.parameters, run.tokens, run.unique_tokens, run.bits_per_byte)
        for run in runs
        if run.parameters and run.tokens and run.unique_tokens and run.bits_per_byte
    )


def has_pilots(budget: Budget, workload: Workload) -> bool:
    """Whether pilots are made for a budget: it is large enough, and the loss of the task is forecast."""
    return workload.text is not None and budget.amount >= FROM.get(budget.kind, math.inf)


def without_pilots(budget: Budget) -> Budget:
    """The part of a budget that is left for the run itself."""
    return replace(budget, amount=(1 - SHARE) * budget.amount)


def design_pilot(advice: Advice, other_recipe: bool, fewer_ids: bool = True) -> RunConfig | None:
    """The pilot of a planned run: the shape and the vocabulary that a plan gives so little compute. None if that is too
    little for FEWEST_STEPS steps and FEWEST_TOKENS tokens per parameter.

    With a budget in seconds it stops after its part of them, and its number of steps is an estimate.

    Args:
        advice: the plan; its budget is the whole one.
        other_recipe: whether the recipe differs from the prior's. The pilot then has the depth of the run, on which the
            effect of a recipe may depend.
        fewer_ids: whether the run's tokenizer can be shortened (data/fewer_merges.py).
    """
    budget, proposal = advice.budget, advice.proposal
    if proposal is None:
        return None
    target, workload, asked = advice.config.model, proposal.workload, proposal.asked

    # its compute and vocabulary
    amount = (1 - SLACK) * SHARE * budget.amount
    seconds = (1 - OVERHEAD) * amount if budget.kind == "seconds" else 0.0
    flops = amount / (1 + MEASURED / 3) if budget.kind == "flops" else seconds * flops_per_second(advice)
    ids = target.vocab_size
    if fewer_ids and flops <= FEWER_IDS_UNTIL and workload.text is not None and not asked.names(VOCABULARY):
        ids = min(ids, vocabulary_for(flops, workload.text.size))

    # the shape with the least expected loss
    base = replace(advice.config, optim=proposal.config.optim)  # whose rates `with_rates` scales to the width
    shapes = []
    for layers, width in [(target.layers, width) for width in WIDTHS] if other_recipe else workload.ladder:
        slower = (min(1.0, width / target.d_model)) ** STEEPEST if seconds else 1.0
        try:
            shape = workload.shape((layers, width), ids, target.context)
            shaped = with_recipe(replace(base, model=replace(target, **shape)), asked)
            size = float(workload.weights(shaped))
        except UserError:  # blocks that do not support a smaller shape
            return None
        tokens = max(1.0, flops * slower / (6 * size))
        if size > SMALLER * advice.parameters or tokens < FEWEST_TOKENS * size:
            break
        shapes.append((reducible_loss(capacity(workload, shaped, size), tokens, math.inf), tokens, shaped))
    if not shapes:
        return None
    _, tokens, pilot = min(shapes, key=lambda entry: entry[0])

    # its length, batch and learning rates
    pilot = with_batch(pilot, tokens, workload, asked)
    pilot = with_rates(pilot, asked) if workload.rates_by_width else pilot
    pilot = with_decay(pilot, tokens / max(1, advice.unique_tokens or 1), asked)
    steps = int(tokens / pilot.tokens_per_step)
    if pilot.batch.ramp_from:
        steps = pilot.batch.steps_for(tokens / pilot.model.context)
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


def flops_per_second(advice: Advice) -> float:
    """The FLOP/s (6 N D) of the planned shape; a smaller shape is slower, see `design_pilot`."""
    chosen = next((one for one in advice.candidates if one.chosen), None)
    return 6.0 * advice.parameters * (chosen.tokens_per_second or 0.0) if chosen else 0.0


def measured_tokens(tokens: float) -> int:
    """The number of held-out tokens that a pilot of `tokens` training tokens is measured on."""
    return int(min(max(MEASURED * tokens, FEWEST_MEASURED), MOST_MEASURED))


def describe_pilots(advice: Advice, other_recipe: bool, fewer_ids: bool) -> str:
    """The pilot that the run of a dry run's plan would have, in words."""
    pilot = design_pilot(advice, other_recipe, fewer_ids)
    if pilot is None:
        return f"none: {TOO_SMALL}"
    return f"one on this text, {pilot.model.layers} x {pilot.model.d_model} for about {pilot.steps:,} steps"


def why_no_forecast(advice: Advice) -> str:
    """Why the user's own recipe has no forecast, and how to get one, in words."""
    if any(choice.name == "pilots" for choice in advice.choices):
        return "its pilots say nothing: see their line"
    seconds, flops = FROM["seconds"], FROM["flops"]
    return f"pilots of it would say: a budget of {seconds:.0f} s or {flops:.0e} FLOPs and more has them"
