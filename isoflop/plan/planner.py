"""Budget -> parameters, tokens, shape, vocabulary, context, batch, learning rate, each with its reason.

The first planner. It knows three things: how fast real steps of a few shapes run here (speeds.py), that
about 20 tokens per parameter are compute-optimal (Hoffmann et al. 2022) unless they have to be repeated
(repetition.py), and what our own runs reached (prior.py). What it plans for, a task on its data, it knows as a
Workload. `plan` is in two parts, since the vocabulary has to be known before a text can be prepared:

    proposal = propose(budget, ...)           machine timed, candidates listed, vocabulary and share of the text chosen
    advice   = finalize(proposal, facts)      tokens known: shape, steps, batch, learning rates, expected loss
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

from isoflop.budget import Budget
from isoflop.data.excerpt import excerpt
from isoflop.data.manifest import Data
from isoflop.data.prepare import Prepared, Progress
from isoflop.data.survey import SAMPLE_BYTES
from isoflop.parallel.mesh import ALONE, Group
from isoflop.plan.advice import CHOOSE, Advice, Facts, Keep, Proposal
from isoflop.plan.asked import NOTHING, Asked
from isoflop.plan.candidates import Candidate, different, nearest_rungs, rough_flops
from isoflop.plan.ceiling import machine_peak, raised
from isoflop.plan.explain import choices_of
from isoflop.plan.fewer import for_ids, is_far, rescaled, with_ids
from isoflop.plan.machine import choose_runtime
from isoflop.plan.pilot import NONE, Pilots, pays, seen_of, told, without_pilots
from isoflop.plan.predictability import predictability
from isoflop.plan.prior import expect
from isoflop.plan.recipe import differences, is_other
from isoflop.plan.repetition import TOKENS_PER_PARAMETER
from isoflop.plan.settings import bytes_per_token_for, context_for, vocabulary_for, with_batch, with_length, with_rates
from isoflop.plan.speeds import find_speeds
from isoflop.plan.trials import calibration_seconds, first_trial, usual_speed
from isoflop.records import CandidateShape, Choice, Expectation
from isoflop.trainer import RunConfig, throughput
from isoflop.trainer.config import resolve_runtime
from isoflop.trainer.task import make_task
from isoflop.trainer.workload import Rung, Workload, matmul_weights

Forecast = Callable[[float, float], Expectation]  # of N and D

BYTES_PER_TOKEN = 3.0  # before there is a tokenizer; small vocabularies make 2 to 3 of English and code
PREPARED = 2.5e6  # bytes of text per second, about: for an estimate before it begins (bench/prepare.py)
DRY_SECONDS = 10.0  # of preparing text that a dry run may take
LEAST_SECONDS = 1.5  # with less, shapes are not timed anew
SURPRISE = 1.5  # times the peak that real steps reach: then what was chosen from it is chosen anew


def plan(
    budget: Budget,
    config: RunConfig,
    asked: Asked = NOTHING,
    keep: Keep = CHOOSE,
    group: Group = ALONE,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress | None = None,
    phase: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
    dry: bool = False,
    make_pilots: Callable[[Advice, Data], Pilots] | None = None,
) -> tuple[Advice, Data | None]:
    """Time the machine, choose what to train, and prepare the data, in the order in which they need each other.

    Args:
        config: whose shape, batch, rates and length are to be chosen, with what the user has set (`asked`).
        group: the processes that will train it.
        phase: is entered for each part, "prepare" or "calibrate", to time it.
        dry: nothing will be trained: text of which preparing would take long is not prepared, and what a plan needs to
            know of it is estimated. There are no data then.
        make_pilots: makes pilots of a plan, on its data, where they pay (pilot.py); None: none are made.

    Raises:
        UserError: for data that cannot be used, or a budget that buys less than MIN_STEPS steps.
    """
    task = make_task(config)
    with phase("prepare"):
        workload = task.workload(config, progress)
    piloted = make_pilots is not None and not keep.model and pays(budget, workload, is_other(config))
    with phase("calibrate"):
        machines, started = group.machines(resolve_runtime(config).runtime.device), time.perf_counter()
        rest = without_pilots(budget) if piloted else budget
        proposal = replace(propose(rest, config, workload, asked, say, keep, machines), whole=budget)
        left = calibration_seconds(budget) - (time.perf_counter() - started)
    if workload.text is not None:
        size = min(workload.text.size, proposal.train_bytes)
        if dry and not config.data.path and size / PREPARED > DRY_SECONDS:
            what = "tokens, ids and how predictable it is"
            say(f"{size / 1e6:,.0f} MB of text are not prepared for a dry run: {what} are estimated")
            advice = finalize(proposal, estimated(proposal, size))
            return (with_told(advice) if piloted else advice), None
        how_long = f"up to {size / 1e6:,.3g} MB of text, about {size / PREPARED:,.0f} s if that was not done before"
        say(f"preparing {how_long}; measuring and preparing are outside the budget")
    with phase("prepare"):
        data = workload.data or task.prepare_data(proposal.data, progress)
        facts = Facts.of(data, excerpt(data, SAMPLE_BYTES) if isinstance(data, Prepared) else b"")
    if is_far(proposal, facts.vocab_size):
        with phase("calibrate"):
            proposal = with_fewer_ids(proposal, facts.vocab_size, left, say)
    advice = finalize(proposal, facts)
    if not piloted or make_pilots is None:
        return advice, data
    if dry:
        return with_told(advice), data

    # pilots, and the run planned once more on what they left of the budget
    pilots = make_pilots(advice, data)
    if budget.kind == "seconds":
        proposal = replace(proposal, budget=replace(budget, amount=budget.amount - pilots.spent))
    return finalize(proposal, facts, pilots), data


def with_told(advice: Advice) -> Advice:
    """The plan of a dry run, with the pilots that it would have had."""
    line = Choice(name="pilots", value=told(advice, bool(advice.differences)), reason="a dry run makes none")
    return replace(advice, choices=(*advice.choices, line))


def with_fewer_ids(proposal: Proposal, ids: int, left: float, say: Callable[[str], None]) -> Proposal:
    """Shapes and their speeds for a tokenizer that came out with far fewer ids than were planned.

    Args:
        left: seconds that may still be spent on timing; with too few the speeds are worked out.
    """
    say(f"the text gives {ids:,} ids of {proposal.vocabulary:,} that were planned: shapes are chosen for these")
    if proposal.budget.kind == "seconds" and left < LEAST_SECONDS:
        return rescaled(proposal, ids)
    begun = for_ids(proposal, ids)
    anew = propose(
        begun.budget,
        begun.config,
        begun.workload,
        begun.asked,
        say,
        begun.keep,
        begun.machines,
        known_peak=begun.peak,
        allowed=max(left, LEAST_SECONDS),
    )
    doubt = anew.calibration.doubt or proposal.calibration.doubt
    calibration = proposal.calibration.updated(doubt=doubt) if doubt else proposal.calibration
    return replace(proposal, candidates=anew.candidates, calibration=calibration)


def estimated(proposal: Proposal, size: float) -> Facts:
    """What is thought of `size` bytes of text that are not prepared."""
    per_token = bytes_per_token_for(proposal.vocabulary)
    return Facts(int(size / per_token), proposal.vocabulary, per_token, measured=False)


def propose(
    budget: Budget,
    config: RunConfig,
    workload: Workload,
    asked: Asked = NOTHING,
    say: Callable[[str], None] = lambda line: None,
    keep: Keep = CHOOSE,
    machines: int = 1,
    known_peak: dict[str, float] | None = None,
    allowed: float = 0.0,
) -> Proposal:
    """Time the machine where the budget is in seconds, and choose what a text has to be prepared with.

    Args:
        config: whose shape, batch, rates and length are to be chosen, with what the user has set.
        asked: the fields that the user has set; they hold in every candidate, so that what is timed is what will run.
        machines: how many like this one train together; what they lose to one another, the clock finds out.
        known_peak: FLOP/s by dtype where they are known; by default as remembered, or measured now.
        allowed: seconds for timing; by default as many as go with the budget.

    Raises:
        UserError: if the budget buys less than MIN_STEPS steps.
    """
    begun = config
    device, allowed = resolve_runtime(config).runtime.device, allowed or calibration_seconds(budget)
    until = time.perf_counter() + allowed
    say(f"measuring this machine ({device}), for at most {allowed:.0f} s")
    peak = known_peak or machine_peak(device)
    flops = rough_flops(budget, peak, device, machines)
    vocabulary = choose_vocabulary(config, workload, flops, asked, keep)
    context = workload.context or context_for(flops)
    if keep.model and workload.vocab_size:
        config = with_ids(config, workload.vocab_size, asked, keep)

    def shaped(rung: Rung, tokens: float) -> RunConfig:
        shape = {} if keep.model else workload.shape(rung, vocabulary, context)
        made = asked.choose(config, "model", **shape)
        return made if keep.rates else with_batch(made, tokens, workload, asked)

    # candidates: the shapes near to what the compute would feed at the best ratio of tokens and parameters
    target = math.sqrt(flops / (6 * TOKENS_PER_PARAMETER))
    tokens = flops / (6 * target)
    rungs = nearest_rungs(workload, target, lambda rung: shaped(rung, 1e6))

    def descending(first: Rung) -> Iterator[RunConfig]:
        """What can be timed in place of a shape that is too large, the shape itself first."""
        yield resolved(shaped(first, tokens), config)
        for rung in reversed(workload.ladder):
            if rung < first:
                yield resolved(shaped(rung, tokens), config)

    started = time.perf_counter()
    usual = usual_speed(device, "float32", peak)
    trial = None if workload.data is not None else first_trial(descending(rungs[0]), workload, usual)
    half_time = started + max(0.0, until - started) / 2
    first, calibration = choose_runtime(shaped(rungs[0], tokens), budget, peak, workload, asked, trial, half_time)
    usual = min(usual, calibration.flops_per_second or usual)
    config = replace(config, runtime=first.runtime)
    shapes = different(shaped(rung, tokens) for rung in rungs)[: workload.timed]
    shapes = [in_passes(one, workload, machines) for one in shapes]
    if budget.kind != "seconds":
        candidates = tuple(Candidate(one, workload, workload.weights(one)) for one in shapes)
    else:
        smallest = min(rungs)
        speeds = find_speeds(shapes, descending(smallest), workload, peak, usual, until, say)
        candidates = tuple(
            Candidate(one, workload, workload.weights(one), machines * speed.tokens_per_second, speed.extrapolated)
            for one, speed in zip(shapes, speeds.each, strict=True)
        )
        calibration = calibration.updated(doubt=speeds.doubt or calibration.doubt)
        dtype, fastest = config.runtime.dtype, max(one.flops_per_second for one in speeds.each)
        if not known_peak and fastest > peak.get(dtype, fastest):
            say(f"steps reached {fastest / peak[dtype]:.1f} times what was taken for this machine's peak: it is raised")
            surprised = fastest > SURPRISE * peak[dtype]
            peak = raised(device, peak, dtype, fastest)
            if surprised:
                return propose(budget, begun, workload, asked, say, keep, machines, known_peak=peak)
    if calibration.doubt:
        say(f"note: this machine was not left alone while it was timed ({calibration.doubt}); nothing of it is kept")

    if workload.text is not None:  # too small a budget is said before the text is prepared
        min(candidates, key=lambda candidate: candidate.weights).steps(budget)
    most = max(candidate.tokens(budget) for candidate in candidates)
    return Proposal(
        budget=budget,
        config=config,
        asked=asked,
        keep=keep,
        workload=workload,
        candidates=candidates,
        flops=flops,
        vocabulary=vocabulary,
        train_bytes=most * BYTES_PER_TOKEN * 2,
        calibration=calibration,
        peak=peak,
        machines=machines,
    )


def finalize(proposal: Proposal, facts: Facts, pilots: Pilots = NONE) -> Advice:
    """Choose among the candidates now that the tokens are counted, and state the loss to expect.

    Args:
        pilots: that were made on the text.

    Raises:
        UserError: if the budget buys less than MIN_STEPS steps.
    """
    budget, workload, asked, keep = proposal.budget, proposal.workload, proposal.asked, proposal.keep
    best = min(proposal.candidates, key=lambda candidate: candidate.score(budget, facts.unique_tokens))

    # what was proposed, with the tokenizer that the data were given
    config = best.config
    if workload.text is not None:
        config = with_ids(config, facts.vocab_size, asked, keep)
        config = replace(config, data=replace(proposal.data, vocab_size=facts.vocab_size))
    elif not keep.model:
        config = with_ids(config, facts.vocab_size, asked, keep)

    # batch, rates and length
    if not keep.rates:
        config = with_batch(config, best.tokens(budget), workload, asked)
        config = with_rates(config, asked) if workload.rates_by_width else config
    config = in_passes(config, workload, proposal.machines)
    steps = replace(best, config=config).steps(budget)
    seconds = budget.amount if budget.kind == "seconds" else 0.0
    config = with_length(config, max(1, steps), seconds, asked)

    # what it costs and should reach
    count, tokens = matmul_weights(config), workload.tokens(config)
    text = None if workload.text is None else predictability(facts.sample or workload.text.sample)
    other, seen = () if text is None or keep.model else differences(config), seen_of(pilots.runs)
    forecast: Forecast | None = None
    if text is not None and not keep.model and (seen or not other):
        forecast = partial(expect, unique_tokens=facts.unique_tokens, text=text, seen=seen, strange=bool(other))
    choices = choices_of(proposal, facts, config, best, tokens)
    if pilots.runs or pilots.note:
        choices = (*choices, pilots_line(pilots))
    return Advice(
        config=config,
        budget=proposal.whole or budget,
        parameters=count,
        tokens=tokens,
        flops=float(tokens) * workload.flops_per_token(config),
        seconds=seconds or None,
        expected=forecast(count, tokens) if forecast else None,
        choices=choices,
        candidates=tuple(candidate_line(one, proposal, forecast, one is best) for one in proposal.candidates),
        calibration=proposal.calibration,
        peak=proposal.peak,
        text=text,
        unique_tokens=facts.unique_tokens,
        workload=workload,
        pilots=pilots.runs,
        differences=other,
        proposal=proposal,
    )


def pilots_line(pilots: Pilots) -> Choice:
    """The pilots among the choices of the plan."""
    made = [f"{run.layers} x {run.d_model}: {run.bits_per_byte:.3f}" for run in pilots.runs]
    took = f"{pilots.spent:.1f} s of the budget" if pilots.spent else "on record" if made else ""
    if any(not run.reused for run in pilots.runs) and not pilots.spent:
        took = "their share of the budget"
    return Choice(name="pilots", value=", ".join(made) or "none", reason="; ".join(filter(None, [took, pilots.note])))


def choose_vocabulary(config: RunConfig, workload: Workload, flops: float, asked: Asked, keep: Keep) -> int:
    """Ids of the tokenizer that is there, or of the one to train."""
    if workload.vocab_size:
        return workload.vocab_size
    if keep.rates or asked.names("data.vocab_size"):
        return config.data.vocab_size
    return vocabulary_for(flops, workload.text.size if workload.text else math.inf)


def resolved(config: RunConfig, like: RunConfig) -> RunConfig:
    """A shape with a runtime that can be timed: what is left open as this machine has it."""
    return resolve_runtime(replace(config, runtime=like.runtime))


def in_passes(config: RunConfig, workload: Workload, machines: int) -> RunConfig:
    """With as many sequences in a pass as a GPU's memory holds, which is tried with windows of random tokens."""
    return config if workload.data is not None else throughput.fit_micro_batches(config, machines)


def candidate_line(candidate: Candidate, proposal: Proposal, forecast: Forecast | None, chosen: bool) -> CandidateShape:
    """A candidate as plan.json has it, with what is expected of it where anything is."""
    tokens = candidate.tokens(proposal.budget)
    line = CandidateShape(
        layers=candidate.config.model.layers,
        d_model=candidate.config.model.d_model,
        parameters=int(candidate.weights),
        tokens_per_second=candidate.tokens_per_second or None,
        tokens=int(tokens),
        chosen=chosen,
        extrapolated=candidate.extrapolated or None,
    )
    if proposal.workload.text is None:
        return line.written_as("layers", "d_model", "parameters", "tokens_per_second", "tokens", "chosen")
    if forecast is None:
        return line
    return line.updated(expected_bits_per_byte=forecast(candidate.weights, tokens).bits_per_byte)
