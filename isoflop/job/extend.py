"""Extends a run with more budget: back to before its decay, with a later end."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from isoflop import checkpoint
from isoflop.budget import Budget, parse_budget
from isoflop.errors import UserError
from isoflop.files import disk_errors, write_json, write_text
from isoflop.job.ledger import record_forecast
from isoflop.optim.timetable import MOST_STEPS, Decision, Timetable
from isoflop.plan.fitted import of_key
from isoflop.plan.pilot import observations
from isoflop.plan.predictability import Predictability
from isoflop.plan.prior import expect
from isoflop.plan.recipe import decay_differs
from isoflop.records import Plan, Run, RunFolder, TrainingLine
from isoflop.trainer import RunConfig
from isoflop.untrusted import foreign


def extend(
    run: Run, config: RunConfig, extra: Budget, fingerprint: str, say: Callable[[str], None] = lambda line: None
) -> Plan:
    """Return a run to before its decay, with a later end: it becomes the run that the larger budget would have made
    (but for weight decay, which grows with the epochs of a plan).

    The last checkpoint, the plan and the results so far are kept in `ended/` in the run folder.

    Args:
        fingerprint: of the data that the run would continue with.
        say: called with one line that says from which step the run continues.

    Returns:
        The plan of the longer run, as written to plan.json.

    Raises:
        UserError: if the schedule has no stage to return to, or that checkpoint is missing, damaged or of other data;
            nothing is changed then.
    """
    if not extra.more:
        raise UserError(f"budget {str(extra)!r} with --resume is added to that of the run: write +{extra}")
    folder = run.folder
    decisions = tuple(Decision.from_dict(line.to_dict()) for line in run.decisions)
    timetable = config.timetable(decisions)
    steps = checkpoint.steps(folder.checkpoints)
    resume_step = step_before_decay(folder, config, timetable, steps)

    checkpoint.verify(checkpoint.at_step(folder.checkpoints, resume_step))
    checkpoint.require_same_data(checkpoint.at_step(folder.checkpoints, resume_step), fingerprint)
    with foreign(f"the records of {folder.path} do not allow extending it"):
        seconds, total = extended_length(run, config, timetable, extra)
        if total > MOST_STEPS:
            raise UserError(
                f"budget {str(extra)!r} is too large: with it {folder.path} has {total:.2g} steps, and a run "
                f"has at most {MOST_STEPS:.0e}; give it less"
            )
        plan = extended_plan(run.plan, extra, seconds, total, config)

    end = max(resume_step + 1, total)
    progress = min(timetable.read(resume_step) / timetable.read(end), 0.999)
    reason = f"extended by {extra}: continues from step {resume_step}, before the decay"
    decision = Decision(at_step=resume_step, steps=end, progress=progress, reason=reason)
    with disk_errors(f"the run folder {folder.path}"), folder.locked():
        ended = set_end_aside(run, steps, resume_step)
        folder.drop_lines_after(resume_step, drop_skips=True)
        folder.append("decisions", decision.line(time.time(), seconds), durable=True)
        plan = record_forecast(folder, plan, run.data, run.settings.seed, say, replaces=run.plan.forecast)
        write_json(folder.plan, plan.to_dict())
        folder.event("extended", step=resume_step, budget=str(extra), steps=total)

    if resume_step < steps[-1]:
        say(
            f"extended by {extra}: returns to step {resume_step:,}, before the decay of the learning rate, and "
            f"continues to step {end:,}; the checkpoint of step {steps[-1]:,} is kept in {ended}"
        )
    else:
        say(f"extended by {extra}: continues from step {resume_step:,}, before any decay, to step {end:,}")
    return plan


def step_before_decay(folder: RunFolder, config: RunConfig, timetable: Timetable, steps: Sequence[int]) -> int:
    """The step of the checkpoint to return to: the one before the decay, or the last one if no decay has begun.

    Args:
        steps: of the checkpoints that exist.

    Raises:
        UserError: if there is none, or the schedule has no constant stage.
    """
    decay_step = timetable.decay_step
    if not steps:
        raise UserError(f"{folder.path} has no checkpoint to continue from; resume it without --budget first")
    if decay_step is None:
        raise UserError(
            f"{folder.path} cannot be extended: its schedule {config.schedule.name!r} has no stage at the full rate"
        )
    step = decay_step if steps[-1] >= decay_step else steps[-1]
    if step not in steps:
        raise UserError(f"{folder.path} has no checkpoint of step {step}, from before its decay; it cannot be extended")
    return step


def set_end_aside(run: Run, steps: Sequence[int], resume_step: int) -> Path:
    """Move the last checkpoint and the results to `ended/`, with copies of plan and metrics; delete other checkpoints
    after `resume_step`. Returns the folder."""
    folder = run.folder
    ended = folder.path / "ended" / f"step-{steps[-1]:08d}"
    ended.mkdir(parents=True, exist_ok=True)
    for step in steps:
        if step > resume_step:
            source = checkpoint.at_step(folder.checkpoints, step)
            if step == steps[-1]:
                if (ended / source.name).exists():  # from an extension that was killed
                    checkpoint.remove(ended / source.name)
                source.replace(ended / source.name)
            else:
                checkpoint.remove(source)
    for path in (folder.result, folder.pieces, folder.report):
        if path.exists():
            path.replace(ended / path.name)
    write_json(ended / folder.plan.name, run.plan.to_dict())
    write_text(ended / "metrics.jsonl", folder.log("metrics").read_text(encoding="utf-8"))
    return ended


def extended_plan(plan: Plan, extra: Budget, seconds: float, steps: int, config: RunConfig | None = None) -> Plan:
    """The plan of a run with `extra` budget, which has `steps` steps in total.

    Args:
        config: of the run, which keeps its weight decay: a run of so many epochs may have been planned with more, and
            its forecast is then that of another recipe. None: that is not looked at.
    """
    if not plan.steps:
        return plan
    factor = steps / plan.steps
    tokens, flops = (round(value * factor) if value else None for value in (plan.tokens, plan.flops))
    new = plan.updated(steps=steps, tokens=tokens, flops=flops, seconds=seconds or None)
    if plan.budget:
        before = parse_budget(plan.budget)
        same = before.kind == extra.kind
        budget = Budget(extra.kind, before.amount + extra.amount) if same else Budget("steps", steps)
        new = new.updated(budget=str(budget))

    for field, value in (("steps", steps), ("tokens", tokens)):
        if value:
            new = new.shown(field, f"{value:,}", f"extended by {extra}; {{}} before")

    # the expected loss, from what the first expectation was based on
    law = of_key(plan.ladder.key) if plan.ladder else None
    if law and plan.expected and tokens and plan.parameters and plan.unique_tokens:
        return new.updated(expected=law.expect(plan.parameters, tokens, plan.unique_tokens))
    measured = plan.predictability
    if measured and measured.ngram and measured.lzma and plan.expected and tokens:
        text = Predictability(measured.ngram, measured.lzma, measured.doubt or 0.0)
        pilots = observations(plan.pilots or ())
        if plan.parameters and plan.unique_tokens:
            other = bool(plan.recipe or (config and decay_differs(config, tokens / plan.unique_tokens)))
            expected = expect(plan.parameters, tokens, plan.unique_tokens, text, pilots, other_recipe=other)
            new = new.updated(expected=expected)
    return new


def extended_length(run: Run, config: RunConfig, timetable: Timetable, extra: Budget) -> tuple[float, int]:
    """The limit of training seconds (0: none) and the total steps of a run with `extra` budget."""
    last = run.training[-1] if run.training else TrainingLine()
    seconds_so_far, done = last.seconds or 0.0, last.step or 0
    per_step = seconds_so_far / done if done else 0.0
    limit = next((line.seconds for line in reversed(run.decisions) if line.seconds), config.seconds)

    match extra.kind:
        case "seconds":
            if not per_step:
                raise UserError(f"{run.folder.path} has no timed step yet; extend it by steps instead")
            seconds = (limit or per_step * timetable.total_steps) + extra.amount
            if config.batch.ramp_from:  # early steps were smaller
                return seconds, config.sizes.steps_for(seconds / seconds_so_far * timetable.read(done))
            return seconds, round(seconds / per_step)
        case "tokens" | "flops":
            total = last.tokens if extra.kind == "tokens" else last.flops
            if not total or not last.step:
                raise UserError(f"{run.folder.path} has no recorded step yet; extend it by steps instead")
            added = extra.amount / (total / last.step)
        case _:
            added = extra.amount
    return 0.0, timetable.total_steps + max(1, round(added))
