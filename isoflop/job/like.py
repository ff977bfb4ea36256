"""Repeats a run except for the settings that are given: one change, and everything else equal.

Shape, vocabulary, dtype, batch, data, seed and the learning rate of every step are those of the other run, even if the
clock had moved its end. Without a change it is the same run again, bit for bit on the same machine.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from isoflop.config import from_dict, override, to_dict
from isoflop.data.manifest import Data
from isoflop.errors import UserError
from isoflop.files import home_note
from isoflop.job.distributed import on_all_processes, was_restarted
from isoflop.job.job import Job
from isoflop.job.listener import Listener, Phases
from isoflop.job.reopen import Moved, is_prepared, open_run_data, relocate, reopen
from isoflop.job.start import claim, folder_for
from isoflop.model.count import parameters
from isoflop.optim.timetable import Decision
from isoflop.parallel.mesh import Group
from isoflop.plan.destinations import destinations
from isoflop.plan.unused import unused
from isoflop.records import Plan, Run, read_run
from isoflop.trainer import RunConfig, RunResult
from isoflop.trainer.begin import differing
from isoflop.trainer.processes import check_world
from isoflop.trainer.task import make_task
from isoflop.trainer.trackers import make_trackers

COMMAND = ("isoflop train --like RUN", "SOURCE")  # names the new place of the text, if it was moved
MOST_LISTED = 6  # settings that differ, listed one by one


@on_all_processes
def train_like(
    group: Group,
    run: Path | str,
    out: Path | str | None = None,
    *,
    sources: Sequence[str] = (),
    heldout: Sequence[str] = (),
    assignments: Sequence[str] = (),
    dry_run: bool = False,
    listener: Listener | None = None,
) -> RunResult | RunConfig:
    """Repeat a run, except for `assignments`.

    Args:
        out: the run folder, which must not hold a run; by default a new one in `runs/`.
        sources, heldout: the new places of the run's text, and of the held-out text that was named, if they were moved;
            it must be the same text.
        assignments: "dotted.field=value" strings: the settings that differ.
        dry_run: return the configuration and train nothing.

    Raises:
        UserError: if there is no such run, its end is not known yet, its text is not found or has changed, or an
            assignment cannot be used; nothing is written then.
    """
    listener, phases, moved = listener or Listener(), Phases(), Moved(sources, heldout)
    original = read_run(run)
    moves = end_moves(original)
    config = config_like(original, moved, assignments, moves)
    if dry_run:
        return config

    check_world(config, group)
    folder = folder_for(out, config.data, group)
    if was_restarted(group, folder):
        return reopen(group, folder, "", (), listener).run()
    claim(folder)
    make_trackers(config.trackers)
    if note := home_note():
        listener.say(note)

    with phases.time("prepare"):
        data = open_text(original, config, moved, assignments, listener)
        tokens = make_task(config).batches(config, data).tokens(total_steps(config, moves))
    for line in (*describe_differences(original, config), *unused(config, assignments)):
        listener.say(line)
    plan = plan_like(original, config, total_steps(config, moves), tokens)
    exports = destinations(config, data.tokenizer.to_json())
    if exports.words != (original.plan.exports and original.plan.exports.words):
        listener.say(f"exports to: {exports.words} ({exports.reason})")
    plan = plan.updated(exports=exports)
    return Job(group, folder, config, data, plan, listener, phases, decisions=moves).run()


def end_moves(run: Run) -> tuple[Decision, ...]:
    """How the clock, or an extension, moved the end of a run.

    Raises:
        UserError: if the run was not trained here, or its end may still move.
    """
    out = run.folder.path
    if run.status == "imported":
        raise UserError(f"--like {out}: it was imported and not trained here; name a run that was trained")
    if run.status == "running":
        raise UserError(f"--like {out}: it is being trained, and its end may still move; wait until it is finished")
    decisions = [Decision.from_dict(line.to_dict()) for line in run.decisions]
    return tuple(replace(decision, reason=inherited_reason(run, decision.reason)) for decision in decisions)


def inherited_reason(run: Run, reason: str) -> str:
    prefix = f"as in {run.name}"
    return reason if reason.startswith(prefix) else f"{prefix}: {reason}" if reason else prefix


def config_like(run: Run, moved: Moved, assignments: Sequence[str], moves: Sequence[Decision]) -> RunConfig:
    """The configuration of the other run, without a time limit and with the settings that differ.

    Raises:
        UserError: for an assignment that cannot be used, or a length that conflicts with the moves of the end.
    """
    config = from_dict(RunConfig, run.config)
    if not is_prepared(moved.sources):
        config = replace(config, data=relocate(run, config.data, moved))
    config = override(replace(config, seconds=0.0), assignments)

    out, length = run.folder.path, f"isoflop train --config {run.folder.config} --set seconds=0 steps={config.steps}"
    if config.seconds:
        raise UserError(
            f"--set seconds does not go with --like {out}: its steps are that run's, however long they take"
        )
    if moves and any(text.partition("=")[0].strip() == "steps" for text in assignments):
        raise UserError(
            f"--set steps={config.steps} does not go with --like {out}, whose end moved during training: the steps are "
            f"that run's; to train another length: {length}"
        )
    return config


def total_steps(config: RunConfig, moves: Sequence[Decision]) -> int:
    """Steps of the run, after all moves of its end."""
    return config.timetable(moves).total_steps


def open_text(run: Run, config: RunConfig, moved: Moved, assignments: Sequence[str], listener: Listener) -> Data:
    """The other run's prepared text; prepared again if an assignment changes the text or its preparation.

    Raises:
        UserError: if the text is not found, or has changed without an assignment.
    """
    if any(text.partition("=")[0].strip().partition(".")[0] == "data" for text in assignments):
        return make_task(config).prepare_data(config.data, listener.progress)
    data = open_run_data(run, from_dict(RunConfig, run.config), listener.progress, moved, COMMAND)
    expected = run.data.fingerprint
    if expected and data.fingerprint != expected:
        raise UserError(
            f"the text of {run.folder.path} is not what it was trained on ({data.fingerprint[:12]} in place of "
            f"{expected[:12]}); restore the old text and name its place: isoflop train --like {run.folder.path} SOURCE"
        )
    return data


def describe_differences(run: Run, config: RunConfig) -> list[str]:
    """One line per setting that differs from the other run, and one if the number of parameters differs."""
    original = from_dict(RunConfig, run.config)
    settings = [
        (name, old, new)
        for name, old, new in differing(to_dict(replace(original, seconds=0.0)), to_dict(config))
        if not name.startswith(("data.sources", "data.path", "data.heldout."))
    ]
    name = run.folder.path
    if not settings:
        return [f"like {name} in every setting: the same run again; for another one of its kind: --set seed=1"]
    lines = [f"like {name} except for {field} = {new} (there: {old})" for field, old, new in settings[:MOST_LISTED]]
    if len(settings) > MOST_LISTED:
        lines.append(f"and {len(settings) - MOST_LISTED} more settings; config.json has all")
    parameters_here, parameters_there = (parameters(c.model, c.task).total for c in (config, original))
    if parameters_here != parameters_there:
        counts = f"parameters: {parameters_here:,} (there: {parameters_there:,})"
        lines.append(f"{counts}; the steps are the same, so the FLOPs differ too")
    return lines


def plan_like(run: Run, config: RunConfig, steps: int, tokens: int) -> Plan:
    """plan.json, without an expected loss and with the path of the other run."""
    counts = parameters(config.model, config.task)
    return Plan.given(steps, tokens).updated(
        like=str(run.folder.path.resolve()),
        parameters=counts.matmul,
        total_parameters=counts.total,
    )
