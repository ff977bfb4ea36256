"""Starts runs: `pretrain` plans and trains, `train` trains a given configuration, `resume` continues a run."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from isoflop import checkpoint
from isoflop.budget import Budget, parse_budget
from isoflop.config import from_dict
from isoflop.data.config import DataConfig
from isoflop.data.corpus import parse_sources
from isoflop.data.manifest import Data
from isoflop.errors import UserError
from isoflop.files import disk_errors, home_note, try_folder
from isoflop.job.attempts import SpeedCheck, switch_to_next_attempt, write_next_attempt
from isoflop.job.distributed import on_all_processes, was_restarted
from isoflop.job.job import Job
from isoflop.job.ledger import record_forecast
from isoflop.job.listener import PILOTS, Listener, Phases, phases_line
from isoflop.job.pilots import PilotMaker
from isoflop.job.reopen import Moved, reopen
from isoflop.model.config import ModelConfig
from isoflop.parallel.mesh import Group
from isoflop.plan import known
from isoflop.plan.advice import Advice, Keep
from isoflop.plan.asked import Asked
from isoflop.plan.destinations import destinations
from isoflop.plan.fewer_ids import with_ids
from isoflop.plan.machine import forget_dtypes
from isoflop.plan.pilot import Pilots
from isoflop.plan.planner import plan
from isoflop.plan.replan import may_replan
from isoflop.plan.unused import unused
from isoflop.records import Expectation, Plan, RunFolder
from isoflop.trainer import RunConfig, RunResult
from isoflop.trainer.processes import check_world
from isoflop.trainer.signals import Restarting
from isoflop.trainer.suites import make_suites
from isoflop.trainer.task import make_task
from isoflop.trainer.trackers import make_trackers


@on_all_processes
def pretrain(
    group: Group,
    sources: Sequence[str] = (),
    budget: str = "3m",
    out: Path | str | None = None,
    *,
    base: RunConfig | None = None,
    assignments: Sequence[str] = (),
    heldout: Sequence[str] = (),
    init: Path | str = "",
    strict: bool = False,
    task: str = RunConfig.task,
    dry_run: bool = False,
    pilots: bool = True,
    listener: Listener | None = None,
) -> RunResult | Advice:
    """Pretrain the best GPT that `budget` buys on `sources`.

    Args:
        sources: files, folders, globs or "-", each as [NAME=]PATH[@COLUMN][:WEIGHT]; none: the running Python's
            standard library.
        budget: "90s", "3m", "2h", "1e15" (FLOPs), "5e6tok", "2000steps": see isoflop/budget.py.
        out: the run folder, which must not hold a run; by default a new one in `runs/`.
        base: a configuration whose model and learning rates are kept; only its length is planned.
        assignments: "dotted.field=value" strings that overrule the plan.
        heldout: held-out text, in place of a share of the sources.
        init: a run whose weights and tokenizer to start from.
        strict: treat files that would be skipped as errors.
        task: what is learned (trainer/task.py); "seq2seq" trains an encoder-decoder on pairs, one per line.
        dry_run: return the plan and train nothing.
        pilots: first make tiny runs on the text, within the budget, if they improve the forecast.

    Returns:
        The run's result, or the plan with `dry_run`.

    Raises:
        UserError: for anything that cannot be used, before anything is written.
    """
    listener, phases = listener or Listener(), Phases()
    total_budget = new_budget(budget)
    config = with_sources(base or from_dict(RunConfig, {"task": task}), sources, heldout, strict)
    if task not in (RunConfig.task, config.task):
        raise UserError(
            f"--task {task} does not go with a configuration whose task is {config.task}; leave one of them out"
        )
    asked = Asked.of(assignments)
    config = asked.apply(start_from(config, init) if init else config)

    # refuse what cannot be used before anything is written
    make_trackers(config.trackers)
    make_suites(config)
    config.parallel.resolve(group.size, group.hosts)
    folder = folder_for(out, config.data, group)
    if not dry_run:
        if was_restarted(group, folder):
            return reopen(group, folder, "", (), listener).run()
        claim(folder)
    if note := home_note():
        listener.say(note)

    # plan
    keep = Keep(model=base is not None or bool(init), rates=base is not None)
    planning = Planning(config, total_budget, asked, keep, group, listener, phases)
    maker = PilotMaker(listener.say)
    advice, data = planning.plan(total_budget, dry_run, maker if pilots else None)
    if maker.seconds:
        phases.seconds[PILOTS] = round(maker.seconds, 2)
    if data is not None:
        listener.prepared(data.account())
    listener.planned(advice)
    for line in unused(advice.config, assignments):
        listener.say(line)
    listener.say(phases_line(phases))
    if dry_run or data is None:
        return advice

    # train; a run that is much faster or slower than planned may be planned once more
    check_world(advice.config, group)
    job = Job(group, folder, advice.config, data, advice.plan(), listener, phases)
    if not may_replan(advice) or asked.names("model.layers") or asked.names("model.d_model"):
        return job.run()
    check = SpeedCheck(advice, listener.say, not asked.names("runtime.threads"))
    return replace(job, replan_hooks=(check,), next_attempt=SecondAttempt(planning, maker, check)).run()


@dataclass(frozen=True)
class Planning:
    """What all plans of one run have in common.

    Attributes:
        config: the configuration to be planned, with what the user has set.
        budget: of the whole run.
        asked: the user's assignments.
        keep: what of the configuration the planner must not change.
    """

    config: RunConfig
    budget: Budget
    asked: Asked
    keep: Keep
    group: Group
    listener: Listener
    phases: Phases

    def plan(
        self, budget: Budget, dry_run: bool = False, make_pilots: Callable[[Advice, Data], Pilots] | None = None
    ) -> tuple[Advice, Data | None]:
        """Plan within a budget, see plan.planner. The data are None only for a dry run."""
        say, progress = self.listener.say, self.listener.progress
        common = (self.asked, self.keep, self.group, say, progress, self.phases.time)
        return plan(budget, self.config, *common, dry_run, make_pilots)


@dataclass(frozen=True)
class SecondAttempt:
    """Plans again after a run was abandoned for its speed; for Job.next_attempt."""

    planning: Planning
    maker: PilotMaker
    check: SpeedCheck

    def __call__(self, first: Job, restart: Restarting) -> Job:
        """The job that follows: a run by the new plan or, if there is no room for one, the first run resumed."""
        planning, folder, listener = self.planning, first.folder, first.listener
        known.forget(first.runtime.device)
        forget_dtypes()
        remaining = Budget("seconds", planning.budget.amount - self.maker.seconds - restart.seconds)
        try:
            advice, data = planning.plan(remaining, make_pilots=self.maker.reuse if self.maker.pilots else None)
            check_world(advice.config, first.group)
        except UserError as error:  # the remaining budget is too small, or the batch cannot be divided
            listener.say(f"note: the run continues with its first plan: {error}")
            first.phases.seconds.pop("abandoned", None)
            return replace(first, replan_hooks=(), next_attempt=None, resumed=True, known_peak=first.peak)

        assert data is not None  # no dry run
        listener.prepared(data.account())
        listener.planned(advice)
        record = advice.plan().updated(budget=str(planning.budget), phases=dict(first.phases.seconds))
        seed, replaces = planning.config.seed, first.plan.forecast
        record = record_forecast(folder, record, data.account(), seed, listener.say, replaces=replaces)
        with disk_errors(f"the run folder {folder.path}"), folder.locked():
            write_next_attempt(folder, advice.config, record, data, self.check.reason, restart.seconds)
            switch_to_next_attempt(folder)
        return Job(first.group, folder, advice.config, data, record, listener, first.phases, resumed=True)


@on_all_processes
def train(
    group: Group,
    config: RunConfig,
    out: Path | str | None = None,
    *,
    listener: Listener | None = None,
    expected: Expectation | None = None,
) -> RunResult:
    """Train a given configuration: a recipe, or a run's config.json. Only its vocabulary may shrink, if the text has
    too little variety for a tokenizer of the configured size.

    Args:
        out: the run folder, which must not hold a run; by default a new one in `runs/`.
        expected: the loss to compare with afterwards.

    Raises:
        UserError: for anything that cannot be used, before anything is written.
    """
    listener, phases = listener or Listener(), Phases()
    task = make_task(config)
    check_world(config, group)
    folder = folder_for(out, config.data, group)
    if was_restarted(group, folder):
        return reopen(group, folder, "", (), listener).run()
    claim(folder)
    make_trackers(config.trackers)
    make_suites(config)
    if note := home_note():
        listener.say(note)

    with phases.time("prepare"):
        data = task.prepare_data(config.data, listener.progress)
        config = for_tokenizer(config, data, listener)
        tokens = task.batches(config, data).tokens(config.steps)
    listener.prepared(data.account())
    exports = destinations(config, data.tokenizer.to_json())
    listener.say(f"exports to: {exports.words} ({exports.reason})")
    return Job(group, folder, config, data, Plan.given(config.steps, tokens, expected, exports), listener, phases).run()


def for_tokenizer(config: RunConfig, data: Data, listener: Listener) -> RunConfig:
    """A given configuration with as many rows in the embedding as its trained tokenizer has ids."""
    fitted = with_ids(config, data.vocab_size, keep=Keep(model=True, rates=True))
    if fitted != config:
        listener.say(
            f"the text has too little variety for {config.model.vocab_size:,} ids: tokenizer and model have "
            f"{data.vocab_size:,}"
        )
    return fitted


@on_all_processes
def resume(
    group: Group,
    out: Path | str,
    budget: str = "",
    *,
    sources: Sequence[str] = (),
    heldout: Sequence[str] = (),
    assignments: Sequence[str] = (),
    listener: Listener | None = None,
) -> RunResult:
    """Resume a run from its last checkpoint; with a budget such as "+1h", from before its decay.

    Args:
        sources: the new place of the run's text, if it was moved; it must be the same text.
        heldout: the new place of the held-out text that was named, if it was moved.
        assignments: such as "parallel.mode=fsdp": settings of where and by how many processes the run computes, which
            do not affect what is learned. They hold until the next `resume`.

    Raises:
        UserError: if there is no run, it is finished and no budget is added, or its data changed.
    """
    moved = Moved(sources, heldout)
    return reopen(group, RunFolder(Path(out)), budget, assignments, listener or Listener(), moved).run()


def new_budget(text: str) -> Budget:
    """The budget of a new run.

    Raises:
        UserError: for a budget that adds to another one, such as "+1h".
    """
    budget = parse_budget(text)
    if budget.more:
        raise UserError(f"budget {text!r} adds to that of an existing run: name it with --resume RUN")
    return budget


def with_sources(config: RunConfig, sources: Sequence[str], heldout: Sequence[str], strict: bool) -> RunConfig:
    """The configuration with the sources and held-out text that are named, if any are."""
    data = config.data
    if sources:
        data = replace(data, sources=tuple(sources), path="")
    data = replace(data, heldout=tuple(heldout) or data.heldout, strict=strict or data.strict)
    return replace(config, data=data)


def start_from(base: RunConfig, init: Path | str) -> RunConfig:
    """`base` with the model, the task and the tokenizer of the run `init`.

    Raises:
        UserError: if there is no such run, or it has another task than `base` names.
    """
    source = Path(init)
    if not source.exists():
        raise UserError(f"--init {init} does not exist; name a run folder")
    snapshot = checkpoint.read(source)
    if snapshot.task != base.task:
        if base.task != RunConfig.task:
            raise UserError(
                f"--init {init} is a run of --task {snapshot.task} and not of --task {base.task}; leave --task out"
            )
        base = replace(base, task=snapshot.task)
    model = from_dict(ModelConfig, snapshot.config["model"], "model")
    # the checkpoint, not its run, whose last checkpoint may change
    data = replace(base.data, tokenizer=str((snapshot.path / "tokenizer.json").resolve()))
    return replace(base, model=model, data=data, init=str(snapshot.path.resolve()))


def folder_for(out: Path | str | None, data: DataConfig, group: Group) -> RunFolder:
    """The folder that is named; otherwise the first free runs/<first source>-<number>, or the one that these processes
    were training in before torchrun restarted them."""
    if out:
        return RunFolder(Path(out))
    name = "data" if data.path else parse_sources(data.sources)[0].name
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "run"
    number = 1
    while (folder := Path("runs") / f"{stem}-{number}").exists() and not was_restarted(group, RunFolder(folder)):
        number += 1
    return RunFolder(folder)


def claim(folder: RunFolder) -> None:
    """Check that a new run can begin in a folder.

    Raises:
        UserError: if it holds a run, or cannot be written to.
    """
    folder.refuse_used()
    try_folder(folder.path, f"--out {folder.path}")
