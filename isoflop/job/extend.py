"""More budget for a run that has one: back to before its decay, with a later end."""

import time
from typing import Any

from isoflop import checkpoint
from isoflop.budget import Budget, parse_budget
from isoflop.config import from_dict
from isoflop.errors import UserError
from isoflop.files import disk_errors, write_json, write_text
from isoflop.optim.schedules import Decision, Timetable
from isoflop.plan.predictability import Predictability
from isoflop.plan.prior import expect
from isoflop.records import RunFolder, read_lines, read_run
from isoflop.trainer import RunConfig
from isoflop.untrusted import foreign


def extend(folder: RunFolder, config: RunConfig, more: Budget, fingerprint: str) -> None:
    """Set a run back to before its decay, with a later end: the run that the larger budget would have made.

    The decayed end stays beside the run, in `ended/`, with its plan: the larger budget has one of its own.

    Args:
        fingerprint: of the data that the run would go on with.

    Raises:
        UserError: if the schedule has no stage to go back to, or that checkpoint is gone, damaged or of other data;
            nothing is changed then.
    """
    if not more.more:
        raise UserError(f"budget {str(more)!r} with --resume is on top of what the run had: write +{more}")
    decisions = read_lines(folder.log("decisions"))
    taken = tuple(Decision.from_dict(line) for line in decisions)
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
    plan = read_run(folder.path).plan
    with foreign(f"what is on record of {folder.path} cannot be extended"):
        seconds, total = extended_length(folder, config, timetable, decisions, more)
        longer = extended_plan(plan, more, seconds, total)
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
        for path in (folder.result, folder.report):
            if path.exists():
                path.replace(ended / path.name)
        write_json(ended / folder.plan.name, plan)
        write_text(ended / "metrics.jsonl", folder.log("metrics").read_text(encoding="utf-8"))
        folder.forget_after(at, skips=True)
        reason = f"extended by {more}: goes on from step {at}, before the decay"
        end = max(at + 1, total)
        progress = min(config.batch.before(at) / config.batch.before(end), 0.999)
        decision = Decision(at_step=at, steps=end, progress=progress, reason=reason)
        folder.append("decisions", {**decision.to_dict(), "seconds": seconds, "time": time.time()}, durable=True)
        write_json(folder.plan, longer)
        folder.event("extended", step=at, budget=str(more), steps=total)


def extended_plan(plan: dict[str, Any], more: Budget, seconds: float, steps: int) -> dict[str, Any]:
    """What is expected of the run with `more` on top, which is `steps` long in all."""
    if not plan.get("steps"):
        return plan
    longer = steps / plan["steps"]
    tokens, flops = (round(plan[name] * longer) if plan.get(name) else None for name in ("tokens", "flops"))
    new = {**plan, "steps": steps, "tokens": tokens, "flops": flops, "seconds": seconds or None}
    if plan.get("budget"):
        before = parse_budget(plan["budget"])
        same = before.kind == more.kind
        new["budget"] = str(Budget(more.kind, before.amount + more.amount) if same else Budget("steps", steps))
    new["choices"] = [
        {**choice, "value": f"{value:,}", "reason": f"with {more} on top; {choice['value']} before"}
        if (value := {"steps": steps, "tokens D": tokens}.get(choice["name"]))
        else choice
        for choice in plan.get("choices", [])
    ]
    if plan.get("expected") and tokens and {"parameters", "unique_tokens", "predictability"} <= plan.keys():
        text = from_dict(Predictability, plan["predictability"], "predictability")
        expected = expect(plan["parameters"], tokens, plan["unique_tokens"], text)
        new["expected"] = expected.to_dict()
    return new


def extended_length(
    folder: RunFolder, config: RunConfig, timetable: Timetable, decisions: list[dict[str, Any]], more: Budget
) -> tuple[float, int]:
    """The seconds (0: not held to any) and steps of a run with `more` on top."""
    training = read_run(folder.path).training
    per_step = training[-1]["seconds"] / training[-1]["step"] if training else 0.0
    held_to = next((line["seconds"] for line in reversed(decisions) if line.get("seconds")), config.seconds)
    match more.kind:
        case "seconds":
            if not per_step:
                raise UserError(f"{folder.path} has no timed step yet; extend it by steps instead")
            spent = held_to or per_step * timetable.total_steps
            return spent + more.amount, round((spent + more.amount) / per_step)
        case "tokens" | "flops":
            if not training:
                raise UserError(f"{folder.path} has no step on record yet; extend it by steps instead")
            added = more.amount / (training[-1][more.kind] / training[-1]["step"])
        case _:
            added = more.amount
    return 0.0, timetable.total_steps + max(1, round(added))
