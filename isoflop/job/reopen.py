"""Prepares an existing run to continue: reads it, refuses what cannot continue, opens its data, extends its budget."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from isoflop import checkpoint
from isoflop.budget import parse_budget
from isoflop.config import from_dict, override
from isoflop.data.config import DataConfig
from isoflop.data.corpus import STDIN, STDLIB, exists, expand, parse_sources
from isoflop.data.kinds import find_kind
from isoflop.data.manifest import MANIFEST, Data
from isoflop.data.prepare import Progress
from isoflop.errors import UserError, quoted
from isoflop.files import disk_errors, write_json
from isoflop.job.attempts import switch
from isoflop.job.extend import extend
from isoflop.job.job import Job
from isoflop.job.listener import Listener, Phases
from isoflop.parallel.mesh import Group
from isoflop.records import DataAccount, Run, RunFolder, read_run
from isoflop.trainer import RunConfig
from isoflop.trainer.processes import check_world
from isoflop.trainer.task import make_task

RESUME = ("isoflop train --resume RUN", "SOURCE")
MOVABLE = ("parallel", "runtime", "suite")  # the fields of RunConfig that may change when a run resumes


def reopen(
    group: Group,
    folder: RunFolder,
    budget: str,
    assignments: Sequence[str],
    listener: Listener,
    sources: Sequence[str] = (),
    heldout: Sequence[str] = (),
) -> Job:
    """The job of a run that continues; with a `budget` such as "+1h" it restarts from before its decay.

    Args:
        sources, heldout: the new places of the run's text, and of named held-out text, if they were moved; stored once
            they are known to be the same.

    Raises:
        UserError: if there is no run, it cannot continue, or its data changed.
    """
    refuse_checkpoint(folder)
    if (folder.attempts / "next").is_dir():  # it was killed while it restarted with another plan
        with disk_errors(f"the run folder {folder.path}"), folder.locked():
            switch(folder)
    run = read_run(folder.path)
    config = override(from_dict(RunConfig, run.config), movable(assignments))
    check_world(config, group)
    refuse_to_go_on(run, budget)
    more = parse_budget(budget) if budget else None

    phases = Phases(dict(run.result.phases or run.plan.phases or {}))
    with phases.time("prepare"):
        data = data_of(run, config, listener.progress, sources, heldout)
    plan = extend(run, config, more, data.fingerprint, listener.say) if more else run.plan
    if sources or heldout:
        with disk_errors(f"the run folder {folder.path}"):
            write_json(folder.data, moved_account(run, data, sources, heldout).to_dict())
    return Job(group, run.folder, config, data, plan, listener, phases, resumed=True, known_peak=run.environment.peak)


def refuse_checkpoint(folder: RunFolder) -> None:
    """Raise UserError if the folder is a checkpoint, which has a config.json too and would look like a run that has
    just started."""
    out = folder.path
    if (out / checkpoint.MANIFEST).is_file():
        raise UserError(
            f"{out} is a checkpoint and no run; resume the run that it is of: isoflop train --resume "
            f"{quoted(run_folder_of(out))}, or train on from its weights: isoflop train SOURCE --init {quoted(out)}"
        )


def refuse_to_go_on(run: Run, budget: str) -> None:
    """Raise UserError, with advice, if a run is being trained, was imported, or is finished and gets no more budget."""
    out = run.folder.path
    if run.status == "running":
        raise UserError(f"{out} is being trained by another process")
    if run.status == "imported":
        raise UserError(
            f"{out} was imported and not trained here; train on from it: isoflop train SOURCE --init {quoted(out)}"
        )
    if run.status == "finished" and not budget:
        raise UserError(
            f"{out} is finished; to train on, add to its budget: isoflop train --resume {quoted(out)} --budget +10m"
        )


def movable(assignments: Sequence[str]) -> Sequence[str]:
    """The assignments, if all of them may change when a run resumes.

    Raises:
        UserError: naming one that may not.
    """
    for assignment in assignments:
        if assignment.partition(".")[0] not in MOVABLE:
            raise UserError(
                f"--set {assignment} does not go with --resume: a run resumes as its config.json says, but for "
                f"{' and '.join(f'{name}.*' for name in MOVABLE)}"
            )
    return assignments


def data_of(
    run: Run,
    config: RunConfig,
    progress: Progress | None = None,
    sources: Sequence[str] = (),
    heldout: Sequence[str] = (),
    command: tuple[str, str] = RESUME,
) -> Data:
    """The prepared data of a run: from the folder that it started with, if that still exists, else prepared again.

    Args:
        sources, heldout: the new places of the text, and of named held-out text, if they were moved.
        command: the command, and its argument, that names the new place, for the message if the text is not found; RUN
            stands for the run.

    Raises:
        UserError: if the text is not found, or the sources hold other text.
    """
    task, account, out = make_task(config), run.data, run.folder.path
    named = bool(sources or heldout)
    if not named and account.folder and (Path(account.folder) / MANIFEST).is_file():
        prepared = task.open_data(Path(account.folder))
        if prepared.fingerprint == account.fingerprint:
            return prepared

    data, copy = config.data, run.folder.tokenizer
    if heldout and not data.heldout:
        raise UserError(f"{out} held out a share of its own text, and none was named for that; leave --heldout out")
    if find_kind(data.tokenizer) is None and copy.is_file():  # the run's copy: the named file may be gone
        data = replace(data, tokenizer=str(copy))
    if is_prepared(sources):
        data = replace(data, path=str(Path(sources[0]).resolve()), sources=(), heldout=())
    else:
        if now := named_now(run, data.sources, sources) if sources else account.moved_to:
            data = replace(data, sources=tuple(now), path="")
        if now := named_now(run, data.heldout, heldout) if heldout else account.heldout_moved_to:
            data = replace(data, heldout=tuple(now))
    try:
        prepared = task.prepare_data(data, progress)
    except UserError as error:
        if named and not missing(data.sources) and not missing(data.heldout):
            raise
        raise UserError(
            f"{error}; if the text of {out} was moved, name its new place: {way(out, data, command)}"
        ) from None
    if named and account.fingerprint and prepared.fingerprint != account.fingerprint:
        given = shlex.join([*sources, *(["--heldout", *heldout] if heldout else [])])
        other = given if sources else shlex.join([*data.sources, "--heldout", *heldout])
        raise UserError(
            f"{given} is not the text that {out} was trained on ({prepared.fingerprint[:12]} in place of "
            f"{account.fingerprint[:12]}); name that text, or train on other text from the run's weights: "
            f"isoflop train {other} --init {quoted(out)}"
        )
    return prepared


def way(out: Path, data: DataConfig, command: tuple[str, str]) -> str:
    """The command that names the new places of missing sources."""
    lost, lost_heldout = (missing(sources) for sources in (data.sources, data.heldout))
    parts = [command[0].replace("RUN", quoted(out))]
    parts += [command[1]] if lost or not lost_heldout else []
    parts += ["--heldout PATH"] if lost_heldout else []
    return " ".join(parts)


def missing(sources: Sequence[str]) -> bool:
    return any(not exists(source.pattern) for source in parse_sources(sources)) if sources else False


def is_prepared(sources: Sequence[str]) -> bool:
    """Whether the only source is a folder of prepared data."""
    return len(sources) == 1 and (Path(sources[0]) / MANIFEST).is_file()


def moved_account(run: Run, data: Data, sources: Sequence[str], heldout: Sequence[str]) -> DataAccount:
    """data.json of a run whose text was moved."""
    account, asked = data.account(), from_dict(RunConfig, run.config).data
    if is_prepared(sources):  # the account names it already
        return account
    now = named_now(run, asked.sources, sources) if sources else run.data.moved_to
    held = named_now(run, asked.heldout, heldout) if heldout else run.data.heldout_moved_to
    return account.updated(**{"moved_to": now} if now else {}, **{"heldout_moved_to": held} if held else {})


def named_now(run: Run, texts: Sequence[str], sources: Sequence[str]) -> tuple[str, ...]:
    """The moved sources with the names, columns and weights that they had, by which a run identifies its text. Paths
    are made absolute, so that the run can be resumed from any folder.

    Args:
        texts: the sources in the run's configuration.
    """
    before = parse_sources(texts)
    given = parse_sources(sources)
    if len(before) != len(given):
        raise UserError(
            f"{run.folder.path} was trained on {len(before)} sources and {len(given)} are named; name each, in the "
            f"order in which the run had them: {', '.join(source.name for source in before)}"
        )
    by_name = {source.name: source for source in given}
    ordered = [by_name[old.name] for old in before] if {old.name for old in before} == set(by_name) else given
    named = []
    for index, (old, new) in enumerate(zip(before, ordered, strict=True)):
        pattern = new.pattern if new.pattern in (STDIN, STDLIB) else str(Path(expand(new.pattern)).absolute())
        column = f"@{new.column or old.column}" if new.column or old.column else ""
        weight = f":{texts[index].rpartition(':')[2]}" if old.weight is not None else ""  # as it was written
        named.append(f"{old.name}={pattern}{column}{weight}")
    return tuple(named)


def run_folder_of(path: Path) -> Path:
    """The run folder of a path that is a run's folder or one of its checkpoints."""
    return path.parent.parent if path.parent.name == "checkpoints" else path
