"""Budget -> parameters, tokens, shape, vocabulary, context, batch, learning rates, each with its reason.

The planner uses three things: the measured speed of a few shapes on this machine (speeds.py), the compute-optimal ratio
of about 20 tokens per parameter (Hoffmann et al. 2022), corrected for repeated data (repetition.py), and the losses of
our own runs (prior.py). A task with its data reaches it as a Workload. `plan` has two parts, since the vocabulary has
to be known before a text can be prepared:

    proposal = propose(budget, ...)           times the machine; lists candidates; chooses vocabulary and share of text
    advice   = finalize(proposal, facts)      tokens are counted: chooses shape, steps, batch, rates; forecasts the loss
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from isoflop.budget import Budget
from isoflop.data.excerpt import excerpt
from isoflop.data.fewer_merges import has_merges
from isoflop.data.manifest import Data
from isoflop.data.prepare import Prepared, Progress
from isoflop.data.survey import SAMPLE_BYTES
from isoflop.parallel.mesh import ALONE, Group
from isoflop.plan import fitted
from isoflop.plan.advice import CHOOSE, Advice, Facts, Keep, Proposal
from isoflop.plan.asked import NOTHING, Asked
from isoflop.plan.by_law import Forecast, forecast_of, law_choice, law_of, score_of, why_not
from isoflop.plan.candidates import Candidate, best_rungs, different, rough_flops
from isoflop.plan.ceiling import machine_peak, raised
from isoflop.plan.destinations import destinations
from isoflop.plan.explain import choices_of, export_line
from isoflop.plan.fewer_ids import inputs_for_ids, needs_new_shapes, rescaled, with_ids
from isoflop.plan.fitted import Fitted
from isoflop.plan.machine import choose_kernels, choose_runtime
from isoflop.plan.pilot import NO_PILOTS, TOO_SMALL, Pilots, describe_pilots, has_pilots, observations, without_pilots
from isoflop.plan.predictability import predictability
from isoflop.plan.recipe import decay_differs, differences
from isoflop.plan.settings import (
    bytes_per_token_for,
    context_for,
    vocabulary_for,
    with_batch,
    with_decay,
    with_length,
    with_rates,
    with_recipe,
)
from isoflop.plan.speeds import find_speeds
from isoflop.plan.trials import calibration_seconds, first_trial, usual_speed
from isoflop.records import CandidateShape, Choice
from isoflop.trainer import RunConfig, throughput
from isoflop.trainer.config import resolve_runtime
from isoflop.trainer.task import make_task
from isoflop.trainer.workload import Rung, Workload, matmul_weights

BYTES_PER_TOKEN = 3.0  # before there is a tokenizer; small vocabularies make 2 to 3 of English and code
PREPARED = 2.5e6  # bytes of text prepared per second, roughly (bench/prepare.py): for an estimate beforehand
DRY_SECONDS = 10.0  # a dry run prepares a text only if that takes at most so long
LEAST_SECONDS = 1.5  # with less time left, shapes are not timed again
SURPRISE = 1.5  # if real steps exceed the peak by this factor, the choices that depend on it are made again


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
    """Time the machine, choose what to train, and prepare the data, in the order in which these depend on each other.

    Args:
        budget: for the run and its pilots.
        config: the initial configuration, which has the user's settings (`asked`).
        asked: the user's settings.
        keep: the parts of `config` that are not changed.
        group: the processes that will train.
        say: receives messages, one line each.
        progress: receives the progress of preparing the data.
        phase: a context manager for each part, "prepare" or "calibrate", to time it.
        dry: nothing will be trained. A text that would take long to prepare is not prepared; its tokens are estimated,
            and no data are returned.
        make_pilots: runs the pilots of a plan on its data, if the budget has any (pilot.py); None: no pilots.

    Raises:
        UserError: for data that cannot be used, or a budget that buys fewer than MIN_STEPS steps.
    """
    config = config if keep.rates else with_recipe(config, asked, model=not keep.model)
    task = make_task(config)
    with phase("prepare"):
        workload = task.workload(config, progress)
    laws = () if keep.model else fitted.known(workload, config, say)
    piloted = make_pilots is not None and not keep.model and has_pilots(budget, workload)

    # time the machine, and choose what the text is prepared with
    with phase("calibrate"):
        machines, started = group.machines(resolve_runtime(config).runtime.device), time.perf_counter()
        run_budget = without_pilots(budget) if piloted else budget
        proposal = propose(run_budget, config, workload, asked, say, keep, machines, laws=laws)
        proposal = replace(proposal, whole=budget)
        left = calibration_seconds(budget) - (time.perf_counter() - started)

    # prepare the data
    if workload.text is not None:
        size = min(workload.text.size, proposal.train_bytes)
        if dry and not config.data.path and size / PREPARED > DRY_SECONDS:
            what = "tokens, ids and how predictable it is"
            say(f"{size / 1e6:,.0f} MB of text are not prepared for a dry run: {what} are estimated")
            advice = finalize(proposal, estimated_facts(proposal, size))
            return (with_pilots_described(advice, True) if piloted and advice.law is None else advice), None
        how_long = f"up to {size / 1e6:,.3g} MB of text, about {size / PREPARED:,.0f} s if that was not done before"
        say(f"preparing {how_long}; measuring and preparing are outside the budget")
    with phase("prepare"):
        data = workload.data or task.prepare_data(proposal.data, progress)
        facts = Facts.of(data, excerpt(data, SAMPLE_BYTES) if isinstance(data, Prepared) else b"")
    if needs_new_shapes(proposal, facts.vocab_size):
        with phase("calibrate"):
            proposal = with_fewer_ids(proposal, facts.vocab_size, left, say)
    if why := why_not(proposal, facts):
        say(why)
    if piloted and law_of(proposal, facts) is not None:  # it says more than pilots would: the run has their share too
        piloted, proposal = False, replace(proposal, budget=budget)

    # choose what to train
    advice = finalize(proposal, facts)
    if not piloted or make_pilots is None:
        return advice, data
    if dry:
        return with_pilots_described(advice, has_merges(data.tokenizer)), data

    # run the pilots, and plan again with what they left of the budget
    pilots = make_pilots(advice, data)
    if budget.kind == "seconds":
        proposal = replace(proposal, budget=replace(budget, amount=budget.amount - pilots.spent))
    elif pilots.note == TOO_SMALL:
        proposal = replace(proposal, budget=budget)
    return finalize(proposal, facts, pilots), data


def with_pilots_described(advice: Advice, fewer_ids: bool) -> Advice:
    """The plan of a dry run, with a line about the pilots that the run would have.

    Args:
        fewer_ids: see `design_pilot`.
    """
    pilots = describe_pilots(advice, bool(advice.differences), fewer_ids)
    line = Choice(name="pilots", value=pilots, reason="a dry run makes none")
    return replace(advice, choices=(*advice.choices, line))


def with_fewer_ids(proposal: Proposal, ids: int, left: float, say: Callable[[str], None]) -> Proposal:
    """The proposal with new shapes and speeds, for a tokenizer that has far fewer ids than planned.

    Args:
        ids: the number of the tokenizer's ids.
        left: seconds that may still be spent on timing; with fewer than LEAST_SECONDS the speeds are calculated.
    """
    say(f"the text gives {ids:,} ids of {proposal.vocabulary:,} that were planned: shapes are chosen for these")
    if proposal.budget.kind == "seconds" and left < LEAST_SECONDS:
        return rescaled(proposal, ids)

    inputs = inputs_for_ids(proposal, ids)
    new = propose(
        inputs.budget,
        inputs.config,
        inputs.workload,
        inputs.asked,
        say,
        inputs.keep,
        inputs.machines,
        known_peak=inputs.peak,
        allowed=max(left, LEAST_SECONDS),
    )
    doubt = new.calibration.doubt or proposal.calibration.doubt
    calibration = proposal.calibration.updated(doubt=doubt) if doubt else proposal.calibration
    return replace(proposal, candidates=new.candidates, calibration=calibration)


def estimated_facts(proposal: Proposal, size: float) -> Facts:
    """Estimates for `size` bytes of text that are not prepared."""
    per_token = bytes_per_token_for(proposal.vocabulary)
    law = proposal.law
    if law is not None and law.about.unique_tokens and law.about.max_train_bytes == proposal.data.max_train_bytes:
        unique, ids = law.about.unique_tokens, law.about.ids or proposal.vocabulary
        return Facts(unique, ids, size / unique, measured=False, fingerprint=law.about.fingerprint or "")
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
    laws: tuple[Fitted, ...] = (),
) -> Proposal:
    """List the candidate shapes, time them if the budget is in seconds, and choose vocabulary and amount of text.

    Args:
        config: the initial configuration, which has the user's settings (`asked`).
        asked: the user's settings; they hold in every candidate, so that the timed configuration is the one that runs.
        machines: the number of machines like this one that train together. Their communication is not counted:
            the run's pace accounts for it (trainer/pace.py).
        known_peak: FLOP/s by dtype if they are known; None: as cached, or measured now.
        allowed: seconds for timing; 0: calibration_seconds(budget).
        laws: of ladders on this text with this recipe; the tokenizer of the nearest one is used.

    Raises:
        UserError: if the budget buys fewer than MIN_STEPS steps.
    """
    initial = config = choose_kernels(config, workload, asked)
    device, allowed = resolve_runtime(config).runtime.device, allowed or calibration_seconds(budget)
    until = time.perf_counter() + allowed
    say(f"measuring this machine ({device}), for at most {allowed:.0f} s")

    # about how much compute the budget is, and what follows from that
    peak = known_peak or machine_peak(device)
    flops = rough_flops(budget, peak, device, machines)
    vocabulary = choose_vocabulary(config, workload, flops, asked, keep)
    law = None if workload.vocab_size else fitted.nearest(laws, vocabulary, asked)
    vocabulary = (law.about.vocab_size or vocabulary) if law else vocabulary
    context = workload.context or context_for(flops)
    if keep.model and workload.vocab_size:
        config = with_ids(config, workload.vocab_size, asked, keep)

    def shaped(rung: Rung, tokens: float) -> RunConfig:
        """The configuration of a rung, with a batch for so many tokens."""
        shape = {} if keep.model else workload.shape(as_set(rung, config, asked), vocabulary, context)
        candidate = asked.choose(config, "model", **shape)
        candidate = candidate if keep.model else with_recipe(candidate, asked)
        return candidate if keep.rates else with_batch(candidate, tokens, workload, asked)

    # candidates: the shapes near the compute-optimal one
    rungs = best_rungs(workload, flops, lambda rung: shaped(rung, 1e6))
    tokens = flops / workload.flops_per_token(shaped(rungs[0], 1e6))

    def descending(first: Rung) -> Iterator[RunConfig]:
        """The shape of a rung, then those of all smaller rungs in descending order: one of them can be timed."""
        for rung in (first, *(rung for rung in reversed(workload.ladder) if rung < first)):
            one = resolved(shaped(rung, tokens), config)
            yield replace(one, batch=one.batch.alike(one.batch.sequences, one.batch.micro_sequences))

    # the runtime: device, dtype, threads, compilation
    started = time.perf_counter()
    usual = usual_speed(device, "float32", peak)
    trial = None if workload.data is not None else first_trial(descending(rungs[0]), workload, usual)
    half_time = started + max(0.0, until - started) / 2
    first, calibration = choose_runtime(shaped(rungs[0], tokens), budget, peak, workload, asked, trial, half_time)
    usual = min(usual, calibration.flops_per_second or usual)
    config = replace(config, runtime=first.runtime)

    # the speed of each candidate
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
            say(f"steps reached {fastest / peak[dtype]:.1f} times this machine's measured peak, which is raised")
            surprised = fastest > SURPRISE * peak[dtype]
            peak = raised(device, peak, dtype, fastest)
            if surprised:
                return propose(budget, initial, workload, asked, say, keep, machines, known_peak=peak, laws=laws)
    if calibration.doubt:
        say(f"note: this machine was not left alone while it was timed ({calibration.doubt}); nothing of it is kept")

    if workload.text is not None:  # a budget that is too small is refused before the text is prepared
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
        laws=laws,
        law=law,
    )


def finalize(proposal: Proposal, facts: Facts, pilots: Pilots = NO_PILOTS) -> Advice:
    """Choose among the candidates now that the tokens are counted, and forecast the loss.

    Args:
        pilots: the pilots on this text.

    Raises:
        UserError: if the budget buys fewer than MIN_STEPS steps.
    """
    budget, workload, asked, keep = proposal.budget, proposal.workload, proposal.asked, proposal.keep
    law = law_of(proposal, facts)
    best = min(proposal.candidates, key=lambda candidate: score_of(candidate, proposal, facts.unique_tokens, law))

    # the candidate's configuration with the data's tokenizer
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
    epochs = workload.tokens(config) / max(1, facts.unique_tokens)
    if workload.text is not None and not keep.rates and law is None:  # the runs of a ladder have the usual decay
        config = with_decay(config, epochs, asked)

    # its cost and its forecast
    count, tokens = matmul_weights(config), workload.tokens(config)
    text = None if workload.text is None else predictability(facts.sample or workload.text.sample)
    differ: tuple[str, ...] = ()
    observed = observations(pilots.runs)
    if text is not None and not keep.model:
        differ = (*differences(config), *(decay_differs(config, epochs) if law is None else ()))
    forecast = None if keep.model else forecast_of(law, facts.unique_tokens, text, observed, differ)

    # the plan, with its reasons
    exports = destinations(config, facts.tokenizer_json)
    choices = [export_line(exports), *choices_of(proposal, facts, config, best, tokens)]
    choices += [law_choice(law, count, tokens)] if law is not None else []
    choices += [pilots_line(pilots)] if pilots.runs or pilots.note else []
    return Advice(
        config=config,
        budget=proposal.whole or budget,
        parameters=count,
        tokens=tokens,
        flops=float(tokens) * workload.flops_per_token(config),
        seconds=seconds or None,
        expected=forecast(count, tokens) if forecast else None,
        choices=tuple(choices),
        candidates=tuple(candidate_line(one, proposal, forecast, one is best) for one in proposal.candidates),
        calibration=proposal.calibration,
        peak=proposal.peak,
        text=text,
        unique_tokens=facts.unique_tokens,
        workload=workload,
        pilots=pilots.runs,
        differences=differ,
        proposal=proposal,
        law=law,
        exports=exports,
    )


def pilots_line(pilots: Pilots) -> Choice:
    """The line about pilots among the choices of a plan."""
    reached = [f"{run.layers} x {run.d_model}: {run.bits_per_byte:.3f}" for run in pilots.runs]
    took = f"{pilots.spent:.1f} s of the budget" if pilots.spent else "on record" if reached else ""
    if any(not run.reused for run in pilots.runs) and not pilots.spent:
        took = "their share of the budget"
    reason = "; ".join(filter(None, [took, pilots.note]))
    return Choice(name="pilots", value=", ".join(reached) or "none", reason=reason)


def choose_vocabulary(config: RunConfig, workload: Workload, flops: float, asked: Asked, keep: Keep) -> int:
    """The number of ids of the given tokenizer, or of the one to train."""
    if workload.vocab_size:
        return workload.vocab_size
    if keep.rates or asked.names("data.vocab_size"):
        return config.data.vocab_size
    return vocabulary_for(flops, workload.text.size if workload.text else math.inf)


def as_set(rung: Rung, config: RunConfig, asked: Asked) -> Rung:
    """A rung with the depth and the width that the user has set, so that what follows from them, as the number of
    heads, is that of the model that will run."""
    layers, d_model = rung
    return (
        config.model.layers if asked.names("model.layers") else layers,
        config.model.d_model if asked.names("model.d_model") else d_model,
    )


def resolved(config: RunConfig, like: RunConfig) -> RunConfig:
    """A configuration with the runtime of `like`, each "auto" of which is resolved for this machine."""
    return resolve_runtime(replace(config, runtime=like.runtime))


def in_passes(config: RunConfig, workload: Workload, machines: int) -> RunConfig:
    """A configuration with as many sequences per pass as fit in a GPU's memory, found by trying random tokens."""
    return config if workload.data is not None else throughput.fit_micro_batches(config, machines)


def candidate_line(candidate: Candidate, proposal: Proposal, forecast: Forecast | None, chosen: bool) -> CandidateShape:
    """The record of a candidate for plan.json, with its expected loss if there is a forecast."""
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
