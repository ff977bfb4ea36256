"""More budget for a run that has one: back to before its decay, with a later end."""

import time
from collections.abc import Callable

from isoflop import checkpoint
from isoflop.budget import Budget, parse_budget
from isoflop.errors import UserError
from isoflop.files import disk_errors, write_json, write_text
from isoflop.job.ledger import put_on_record
from isoflop.optim.schedules import Decision, Timetable
from isoflop.plan.pilot import seen_of
from isoflop.plan.predictability import Predictability
from isoflop.plan.prior import expect
from isoflop.records import Plan, Run, TrainingLine
from isoflop.trainer import RunConfig
from isoflop.untrusted import foreign


def extend(
    run: Run, config: RunConfig, more: Budget, fingerprint: str, say: Callable[[str], None] = lambda line: None
) -> Plan:
    """Set a run back to before its decay, with a later end: the run that the larger budget would have made.

    The decayed end stays beside the run, in `ended/`, with its plan: the larger budget has one of its own.

    Args:
        fingerprint: of the data that the run would go on with.
        say: told what becomes of the steps that were taken since.

    Returns:
        The plan of the longer run, as it is written.

    Raises:
        UserError: if the schedule has no stage to go back to, or that checkpoint is gone, damaged or of other data;
            nothing is changed then.
    """
    if not more.more:
        raise UserError(f"budget {str(more)!r} with --resume is on top of what the run had: write +{more}")
    folder = run.folder
    taken = tuple(Decision.from_dict(line.to_dict()) for line in run.decisions)
    timetable = Timetable(config.schedule, config.steps, taken, read=config.batch.before)
    back_to = timetable.decay_step
    steps = checkpoint.steps(folder.checkpoints)
    if not steps:
        raise UserError(f"{folder.path} has no checkpoint to go on from; go on without --budget first")
    if back_to is None:
        raise UserError(
            f"{folder.path} cannot be extended: its schedule {config.schedule.name!r} has no stage at the full rate"
        )
    at = back_to if steps[-1] >= back_to else steps[-1]
    if at not in steps:
        raise UserError(f"{folder.path} has no checkpoint of step {at}, from before its decay; it cannot be extended")
    checkpoint.verify(checkpoint.at_step(folder.checkpoints, at))
    checkpoint.require_same_data(checkpoint.at_step(folder.checkpoints, at), fingerprint)
    with foreign(f"what is on record of {folder.path} cannot be extended"):
        seconds, total = extended_length(run, config, timetable, more)
        longer = extended_plan(run.plan, more, seconds, total)
    with disk_errors(f"the run folder {folder.path}"), folder.locked():
        ended = folder.path / "ended" / f"step-{steps[-1]:08d}"
        ended.mkdir(parents=True, exist_ok=True)
        for step in steps:
            if step > at:
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
        folder.drop_lines_after(at, drop_skips=True)
        reason = f"extended by {more}: goes on from step {at}, before the decay"
        end = max(at + 1, total)
        progress = min(config.batch.before(at) / config.batch.before(end), 0.999)
        decision = Decision(at_step=at, steps=end, progress=progress, reason=reason)
        folder.append("decisions", decision.line(time.time(), seconds), durable=True)
        longer = put_on_record(folder, longer, run.data, run.settings.seed, say, replaces=run.plan.forecast)
        write_json(folder.plan, longer.to_dict())
        folder.event("extended", step=at, budget=str(more), steps=total)
    if at < steps[-1]:
        say(
            f"extended by {more}: goes back to step {at:,}, before the decay of the learning rate, and on to step "
            f"{end:,}; what step {steps[-1]:,} had reached is kept in {ended}"
        )
    else:
        say(f"extended by {more}: on from step {at:,}, where no decay has begun, to step {end:,}")
    return longer


def extended_plan(plan: Plan, more: Budget, seconds: float, steps: int) -> Plan:
    """What is expected of the run with `more` on top, which is `steps` long in all."""
    if not plan.steps:
        return plan
    longer = steps / plan.steps
    tokens, flops = (round(value * longer) if value else None for value in (plan.tokens, plan.flops))
    new = plan.updated(steps=steps, tokens=tokens, flops=flops, seconds=seconds or None)
    if plan.budget:
        before = parse_budget(plan.budget)
        same = before.kind == more.kind
        budget = Budget(more.kind, before.amount + more.amount) if same else Budget("steps", steps)
        new = new.updated(budget=str(budget))

    for field, value in (("steps", steps), ("tokens", tokens)):
        if value:
            new = new.shown(field, f"{value:,}", f"with {more} on top; {{}} before")

    seen = plan.predictability
    if plan.expected and tokens and plan.parameters and plan.unique_tokens and seen and seen.ngram and seen.lzma:
        text = Predictability(seen.ngram, seen.lzma, seen.doubt or 0.0)
        pilots = seen_of(plan.pilots or ())
        found = expect(plan.parameters, tokens, plan.unique_tokens, text, pilots, strange=bool(plan.recipe))
        new = new.updated(expected=found)
    return new


def extended_length(run: Run, config: RunConfig, timetable: Timetable, more: Budget) -> tuple[float, int]:
    """The seconds (0: not held to any) and steps of a run with `more` on top."""
    last = run.training[-1] if run.training else TrainingLine()
    per_step = last.seconds / last.step if last.seconds and last.step else 0.0
    held_to = next((line.seconds for line in reversed(run.decisions) if line.seconds), config.seconds)
    match more.kind:
        case "seconds":
            if not per_step:
                raise UserError(f"{run.folder.path} has no timed step yet; extend it by steps instead")
            spent = held_to or per_step * timetable.total_steps
            return spent + more.amount, round((spent + more.amount) / per_step)
        case "tokens" | "flops":
            read = last.tokens if more.kind == "tokens" else last.flops
            if not read or not last.step:
                raise UserError(f"{run.folder.path} has no step on record yet; extend it by steps instead")
            added = more.amount / (read / last.step)
        case _:
            added = more.amount
    return 0.0, timetable.total_steps + max(1, round(added))
