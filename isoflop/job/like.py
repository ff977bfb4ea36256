"""A run like another one but for what is set: one swap, and everything else equal.

Shape, vocabulary, dtype, batch, rates, data, seed and every step's learning rate are those of the other run, also where
its clock had moved its end: without anything set it is that run again, bit for bit on the same machine.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from isoflop.config import from_dict, override, to_dict
from isoflop.data.manifest import Data
from isoflop.errors import UserError
from isoflop.files import home_note
from isoflop.job.job import Job
from isoflop.job.listener import Listener, Phases
from isoflop.job.reopen import data_of, is_prepared, named_now, reopen
from isoflop.job.start import claim, folder_for
from isoflop.job.together import again, together
from isoflop.model.count import parameters
from isoflop.optim.schedules import Decision, Timetable
from isoflop.parallel.mesh import Group
from isoflop.records import Plan, Run, read_run
from isoflop.trainer import RunConfig, RunResult
from isoflop.trainer.begin import differing
from isoflop.trainer.processes import check_world
from isoflop.trainer.task import make_task
from isoflop.trainer.trackers import make_trackers

COMMAND = ("isoflop train --like RUN", "SOURCE")
TOLD = 6  # settings that are said to differ, one by one


@together
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
    """Train what `run` trained, as it trained it, but for `assignments`.

    Args:
        out: the run folder, which must not hold a run; by default a new one in `runs/`.
        sources, heldout: where the run's text is now, and the held-out text that was named, if they were moved; it has
            to be the same text.
        assignments: "dotted.field=value" strings: what is to differ.
        dry_run: return the configuration and train nothing.

    Raises:
        UserError: if there is no such run, its end is not known yet, its text is another one, or an assignment cannot
            be used; nothing is written then.
    """
    listener, phases = listener or Listener(), Phases()
    model = read_run(run)
    moves = moves_of(model)
    config = configuration(model, sources, heldout, assignments, moves)
    if dry_run:
        return config
    check_world(config, group)
    folder = folder_for(out, config.data, group)
    if again(group, folder):
        return reopen(group, folder, "", (), listener).run()
    claim(folder)
    make_trackers(config.trackers)
    if note := home_note():
        listener.say(note)

    with phases.time("prepare"):
        data = text_of(model, config, sources, heldout, assignments, listener)
        tokens = make_task(config).batches(config, data).tokens(end_of(config, moves))
    for line in told(model, config):
        listener.say(line)
    plan = plan_of(model, config, end_of(config, moves), tokens)
    return Job(group, folder, config, data, plan, listener, phases, decided=moves).run()


def moves_of(run: Run) -> tuple[Decision, ...]:
    """What the clock, or an extension, decided about the length of a run.

    Raises:
        UserError: if the run was not trained here, or its end may still move.
    """
    out = run.folder.path
    if run.status == "imported":
        raise UserError(f"--like {out}: it was imported and not trained here; name a run that was trained")
    if run.status == "running":
        raise UserError(f"--like {out}: it is being trained, and its end may still move; wait until it is finished")
    taken = [Decision.from_dict(line.to_dict()) for line in run.decisions]
    return tuple(replace(one, reason=as_in(run, one.reason)) for one in taken)


def as_in(run: Run, reason: str) -> str:
    said = f"as in {run.name}"
    return reason if reason.startswith(said) else f"{said}: {reason}" if reason else said


def configuration(
    run: Run,
    sources: Sequence[str],
    heldout: Sequence[str],
    assignments: Sequence[str],
    moves: Sequence[Decision],
) -> RunConfig:
    """The configuration of the other run, held to no seconds, with what is to differ.

    Raises:
        UserError: for an assignment that cannot be used, or a length that does not go with the moves of the end.
    """
    config = from_dict(RunConfig, run.config)
    data, account = config.data, run.data
    if not is_prepared(sources):
        if named := named_now(run, data.sources, sources) if sources else account.moved_to:
            data = replace(data, sources=tuple(named), path="")
        if named := named_now(run, data.heldout, heldout) if heldout else account.heldout_moved_to:
            data = replace(data, heldout=tuple(named))
        config = replace(config, data=data)
    config = override(replace(config, seconds=0.0), assignments)
    out, length = run.folder.path, f"isoflop train --config {run.folder.config} --set seconds=0 steps={config.steps}"
    if config.seconds:
        raise UserError(
            f"--set seconds does not go with --like {out}: its steps are that run's, however long they take"
        )
    if moves and any(text.partition("=")[0].strip() == "steps" for text in assignments):
        raise UserError(
            f"--set steps={config.steps} does not go with --like {out}, whose end moved on its way: the steps are that "
            f"run's; to train another length: {length}"
        )
    return config


def end_of(config: RunConfig, moves: Sequence[Decision]) -> int:
    return Timetable(config.schedule, config.steps, tuple(moves), read=config.batch.before).total_steps


def text_of(
    run: Run,
    config: RunConfig,
    sources: Sequence[str],
    heldout: Sequence[str],
    assignments: Sequence[str],
    listener: Listener,
) -> Data:
    """The other run's prepared text; prepared anew where it is the text, or its preparation, that is to differ.

    Raises:
        UserError: if the text is not there or is another one than it was, and nothing said that it should be.
    """
    if any(text.partition("=")[0].strip().partition(".")[0] == "data" for text in assignments):
        return make_task(config).prepare_data(config.data, listener.progress)
    found = data_of(run, from_dict(RunConfig, run.config), listener.progress, sources, heldout, COMMAND)
    known = run.data.fingerprint
    if known and found.fingerprint != known:
        raise UserError(
            f"the text of {run.folder.path} is not what it was trained on ({found.fingerprint[:12]} in place of "
            f"{known[:12]}); bring the old text back and name its place: isoflop train --like {run.folder.path} SOURCE"
        )
    return found


def told(run: Run, config: RunConfig) -> list[str]:
    """What differs from the other run, a line for each setting and one for the parameters where they do."""
    before = from_dict(RunConfig, run.config)
    settings = [
        (name, was, now)
        for name, was, now in differing(to_dict(replace(before, seconds=0.0)), to_dict(config))
        if not name.startswith(("data.sources", "data.path", "data.heldout."))
    ]
    name = run.folder.path
    if not settings:
        return [f"like {name} in every setting: the same run again; --set seed=1 draws another"]
    lines = [f"like {name} but for {field} = {now} (there: {was})" for field, was, now in settings[:TOLD]]
    if len(settings) > TOLD:
        lines.append(f"and {len(settings) - TOLD} more settings; config.json has all")
    here, there = (parameters(one.model, one.task).total for one in (config, before))
    if here != there:
        lines.append(f"parameters: {here:,} (there: {there:,}); the steps are the same, so the FLOPs differ too")
    return lines


def plan_of(run: Run, config: RunConfig, steps: int, tokens: int) -> Plan:
    """plan.json: nothing is expected beforehand, and the other run is on record."""
    counted = parameters(config.model, config.task)
    return Plan.given(steps, tokens).updated(
        like=str(run.folder.path.resolve()),
        parameters=counted.matmul,
        total_parameters=counted.total,
    )
