"""Reopens an existing run: checks that it can continue, opens its data, and extends its budget if asked to."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from isoflop.job.attempts import switch_to_next_attempt
from isoflop.job.extend import extend
from isoflop.job.job import Job
from isoflop.job.listener import Listener, Phases
from isoflop.parallel.mesh import Group
from isoflop.records import DataAccount, Run, RunFolder, read_run
from isoflop.trainer import RunConfig
from isoflop.trainer.processes import check_world
from isoflop.trainer.task import make_task

RESUME = ("isoflop train --resume RUN", "SOURCE")
CHANGEABLE = ("parallel", "runtime", "suite")  # fields of RunConfig that may change when a run resumes


@dataclass(frozen=True)
class Moved:
    """The new places of a run's text, if it was moved after the run had started. It must be the same text.

    Attributes:
        sources, heldout: of the run's sources, and of the held-out text that was named; empty: not moved.
    """

    sources: Sequence[str] = ()
    heldout: Sequence[str] = ()

    @property
    def any(self) -> bool:
        return bool(self.sources or self.heldout)


NOT_MOVED = Moved()


def reopen(
    group: Group,
    folder: RunFolder,
    budget: str,
    assignments: Sequence[str],
    listener: Listener,
    moved: Moved = NOT_MOVED,
) -> Job:
    """The job of a run that continues; with a `budget` such as "+1h" it returns to before its decay.

    Args:
        moved: new places of the text; recorded once they are known to hold the same text.

    Raises:
        UserError: if there is no run, it cannot continue, or its data changed.
    """
    refuse_checkpoint(folder)
    if (folder.attempts / "next").is_dir():  # it was killed while it started its second attempt
        with disk_errors(f"the run folder {folder.path}"), folder.locked():
            switch_to_next_attempt(folder)
    run = read_run(folder.path)
    config = override(from_dict(RunConfig, run.config), check_changeable(assignments, run.folder.path))
    check_world(config, group)
    refuse_to_resume(run, budget)
    extra = parse_budget(budget) if budget else None

    phases = Phases(dict(run.result.phases or run.plan.phases or {}))
    with phases.time("prepare"):
        data = open_run_data(run, config, listener.progress, moved)
    plan = extend(run, config, extra, data.fingerprint, listener.say) if extra else run.plan
    if moved.any:
        with disk_errors(f"the run folder {folder.path}"):
            write_json(folder.data, moved_account(run, data, moved).to_dict())
    return Job(group, run.folder, config, data, plan, listener, phases, resumed=True, known_peak=run.environment.peak)


def refuse_checkpoint(folder: RunFolder) -> None:
    """Raise UserError if the folder is a checkpoint, which has a config.json too and would look like a run that has
    just started."""
    out = folder.path
    if (out / checkpoint.MANIFEST).is_file():
        raise UserError(
            f"{out} is a checkpoint and no run; resume its run: isoflop train --resume {quoted(run_folder_of(out))}, "
            f"or start a run from its weights: isoflop train SOURCE --init {quoted(out)}"
        )


def refuse_to_resume(run: Run, budget: str) -> None:
    """Raise UserError, with advice, if a run is being trained, was imported, or is finished and gets no budget."""
    out = run.folder.path
    if run.status == "running":
        raise UserError(f"{out} is being trained by another process")
    if run.status == "imported":
        raise UserError(
            f"{out} was imported and not trained here; start a run from its weights: isoflop train SOURCE --init "
            f"{quoted(out)}"
        )
    if run.status == "finished" and not budget:
        raise UserError(
            f"{out} is finished; to continue, add to its budget: isoflop train --resume {quoted(out)} --budget +10m"
        )


def check_changeable(assignments: Sequence[str], run: Path) -> Sequence[str]:
    """The assignments for resuming `run`, if all of them may change when a run resumes.

    Raises:
        UserError: naming one that may not.
    """
    for assignment in assignments:
        if assignment.partition(".")[0] not in CHANGEABLE:
            raise UserError(
                f"--set {assignment} does not go with --resume: a run resumes with its config.json, except for "
                f"{' and '.join(f'{name}.*' for name in CHANGEABLE)}; to repeat it with this change: "
                f"isoflop train --like {quoted(run)} --set {quoted(assignment)}"
            )
    return assignments


def open_run_data(
    run: Run,
    config: RunConfig,
    progress: Progress | None = None,
    moved: Moved = NOT_MOVED,
    command: tuple[str, str] = RESUME,
) -> Data:
    """The prepared data of a run: from the folder that it started with, if that still exists; otherwise prepared again.

    Args:
        moved: new places of the text.
        command: the command, and its argument, that names the new place, for the message if the text is not found; RUN
            stands for the run.

    Raises:
        UserError: if the text is not found, or the sources hold other text.
    """
    task, account, out = make_task(config), run.data, run.folder.path
    if not moved.any and account.folder and (Path(account.folder) / MANIFEST).is_file():
        prepared = task.open_data(Path(account.folder))
        if prepared.fingerprint == account.fingerprint:
            return prepared

    data, own_tokenizer = config.data, run.folder.tokenizer
    if moved.heldout and not data.heldout:
        raise UserError(f"{out} held out a share of its own text, and none was named for that; leave --heldout out")
    if find_kind(data.tokenizer) is None and own_tokenizer.is_file():  # the run's copy: the named file may be missing
        data = replace(data, tokenizer=str(own_tokenizer))
    if is_prepared(moved.sources):
        data = replace(data, path=str(Path(moved.sources[0]).resolve()), sources=(), heldout=())
    else:
        data = relocate(run, data, moved)
    try:
        prepared = task.prepare_data(data, progress)
    except UserError as error:
        if moved.any and not missing(data.sources) and not missing(data.heldout):
            raise
        raise UserError(
            f"{error}; if the text of {out} was moved, name its new place: {relocate_command(out, data, command)}"
        ) from None

    if moved.any and account.fingerprint and prepared.fingerprint != account.fingerprint:
        named = shlex.join([*moved.sources, *(["--heldout", *moved.heldout] if moved.heldout else [])])
        other = named if moved.sources else shlex.join([*data.sources, "--heldout", *moved.heldout])
        raise UserError(
            f"{named} is not the text that {out} was trained on ({prepared.fingerprint[:12]} in place of "
            f"{account.fingerprint[:12]}); name that text, or train on other text from the run's weights: "
            f"isoflop train {other} --init {quoted(out)}"
        )
    return prepared


def new_places(run: Run, data: DataConfig, moved: Moved) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The new places of a run's sources and held-out text: named now, or recorded earlier; empty where not moved.

    Args:
        data: the run's configured places.
    """
    recorded = run.data
    sources = relocated(run, data.sources, moved.sources) if moved.sources else recorded.moved_to
    heldout = relocated(run, data.heldout, moved.heldout) if moved.heldout else recorded.heldout_moved_to
    return sources or (), heldout or ()


def relocate(run: Run, data: DataConfig, moved: Moved) -> DataConfig:
    """A run's data configuration with the new places of its text."""
    sources, heldout = new_places(run, data, moved)
    if sources:
        data = replace(data, sources=sources, path="")
    return replace(data, heldout=heldout) if heldout else data


def relocate_command(out: Path, data: DataConfig, command: tuple[str, str]) -> str:
    """The command that names the new places of missing sources."""
    sources_missing, heldout_missing = (missing(sources) for sources in (data.sources, data.heldout))
    parts = [command[0].replace("RUN", quoted(out))]
    parts += [command[1]] if sources_missing or not heldout_missing else []
    parts += ["--heldout PATH"] if heldout_missing else []
    return " ".join(parts)


def missing(sources: Sequence[str]) -> bool:
    """Whether some source does not exist."""
    return any(not exists(source.pattern) for source in parse_sources(sources)) if sources else False


def is_prepared(sources: Sequence[str]) -> bool:
    """Whether the only source is a folder of prepared data."""
    return len(sources) == 1 and (Path(sources[0]) / MANIFEST).is_file()


def moved_account(run: Run, data: Data, moved: Moved) -> DataAccount:
    """data.json of a run whose text was moved."""
    account = data.account()
    if is_prepared(moved.sources):  # the account names the folder already
        return account
    sources, heldout = new_places(run, from_dict(RunConfig, run.config).data, moved)
    return account.updated(
        **{"moved_to": sources} if sources else {}, **{"heldout_moved_to": heldout} if heldout else {}
    )


def relocated(run: Run, texts: Sequence[str], sources: Sequence[str]) -> tuple[str, ...]:
    """The new places of a run's sources, with the names, columns and weights that identify its text. Paths are made
    absolute, so that the run can be resumed from any folder.

    Args:
        texts: the sources in the run's configuration.
        sources: their new places, in the same order or with their names.

    Raises:
        UserError: for another number of sources.
    """
    old_sources = parse_sources(texts)
    new_sources = parse_sources(sources)
    if len(old_sources) != len(new_sources):
        raise UserError(
            f"{run.folder.path} was trained on {len(old_sources)} sources and {len(new_sources)} are named; name each, "
            f"in the order in which the run had them: {', '.join(source.name for source in old_sources)}"
        )

    by_name = {source.name: source for source in new_sources}
    ordered = (
        [by_name[old.name] for old in old_sources] if {old.name for old in old_sources} == set(by_name) else new_sources
    )
    named = []
    for index, (old, new) in enumerate(zip(old_sources, ordered, strict=True)):
        pattern = new.pattern if new.pattern in (STDIN, STDLIB) else str(Path(expand(new.pattern)).absolute())
        column = f"@{new.column or old.column}" if new.column or old.column else ""
        weight = f":{texts[index].rpartition(':')[2]}" if old.weight is not None else ""  # as it was written
        named.append(f"{old.name}={pattern}{column}{weight}")
    return tuple(named)


def run_folder_of(path: Path) -> Path:
    """The run folder of a path that is a run's folder or one of its checkpoints."""
    return path.parent.parent if path.parent.name == "checkpoints" else path
