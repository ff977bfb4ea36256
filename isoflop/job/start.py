"""How a run begins: with a budget that plans it, with a configuration that is decided, or where it stopped."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from isoflop import checkpoint
from isoflop.budget import Budget, parse_budget
from isoflop.config import from_dict
from isoflop.data.config import DataConfig
from isoflop.data.corpus import parse_sources
from isoflop.data.manifest import Data
from isoflop.errors import UserError
from isoflop.files import disk_errors, home_note, try_folder
from isoflop.job.attempts import SecondThoughts, make_ready, switch
from isoflop.job.job import Job
from isoflop.job.ledger import put_on_record
from isoflop.job.listener import PILOTS, Listener, Phases, seconds_line
from isoflop.job.pilots import PilotMaker
from isoflop.job.reopen import reopen
from isoflop.job.together import again, together
from isoflop.model.config import ModelConfig
from isoflop.parallel.mesh import Group
from isoflop.plan import known
from isoflop.plan.advice import Advice, Keep
from isoflop.plan.asked import Asked
from isoflop.plan.destinations import destinations
from isoflop.plan.fewer import with_ids
from isoflop.plan.machine import forget_dtypes
from isoflop.plan.planner import plan
from isoflop.plan.second import allows
from isoflop.records import Expectation, Plan, RunFolder
from isoflop.trainer import RunConfig, RunResult
from isoflop.trainer.processes import check_world
from isoflop.trainer.signals import Restarting
from isoflop.trainer.suites import make_suites
from isoflop.trainer.task import make_task
from isoflop.trainer.trackers import make_trackers


@together
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
        base: a configuration whose model and rates are kept, and only its length chosen.
        assignments: "dotted.field=value" strings that overrule the plan.
        heldout: text to measure on, in place of a share of the sources.
        init: a run whose weights and tokenizer to go on from.
        strict: skipped files are errors.
        task: what is learned (trainer/task.py); "seq2seq" trains an encoder-decoder on pairs, one per line.
        dry_run: return the plan and train nothing.
        pilots: make tiny runs on the text first, within the budget, where they make the forecast better.

    Returns:
        What the run came to, or the plan with `dry_run`.

    Raises:
        UserError: for anything that cannot be used, before anything is written.
    """
    listener, phases = listener or Listener(), Phases()
    allowance = first_budget(budget)
    begin = with_sources(base or from_dict(RunConfig, {"task": task}), sources, heldout, strict)
    if task not in (RunConfig.task, begin.task):
        raise UserError(
            f"--task {task} does not go with a configuration whose task is {begin.task}; leave one of them out"
        )
    asked = Asked.of(assignments)
    config = asked.apply(start_from(begin, init) if init else begin)
    make_trackers(config.trackers)  # what is missing is said before anything is done
    make_suites(config)
    config.parallel.resolve(group.size, group.hosts)

    folder = folder_for(out, config.data, group)
    if not dry_run:
        if again(group, folder):
            return reopen(group, folder, "", (), listener).run()
        claim(folder)

    if note := home_note():
        listener.say(note)
    keep = Keep(model=base is not None or bool(init), rates=base is not None)
    maker = PilotMaker(listener.say)
    told = (asked, keep, group, listener.say, listener.progress, phases.time)
    advice, data = plan(allowance, config, *told, dry_run, maker if pilots else None)
    in_pilots = maker.found.spent if maker.found else 0.0
    if in_pilots:
        phases.seconds[PILOTS] = round(in_pilots, 2)
    if data is not None:
        listener.prepared(data.account())
    listener.planned(advice)
    listener.say(seconds_line(phases))
    if dry_run or data is None:
        return advice
    check_world(advice.config, group)
    job = Job(group, folder, advice.config, data, advice.plan(), listener, phases)
    if not allows(advice) or asked.names("model.layers") or asked.names("model.d_model"):
        return job.run()

    # what is planned in a bad moment may be planned once more
    thoughts = SecondThoughts(advice, listener.say, not asked.names("runtime.threads"))

    def anew(first: Job, left: Restarting) -> Job:
        known.forget(first.runtime.device)
        forget_dtypes()
        rest = Budget("seconds", allowance.amount - in_pilots - left.seconds)
        try:
            second, text = plan(rest, config, *told, False, maker.again if maker.found else None)
            check_world(second.config, group)
        except UserError as error:  # what is left is too little, or such a batch cannot be divided
            listener.say(f"note: the run goes on as it was planned first: {error}")
            phases.seconds.pop("abandoned", None)
            return replace(first, thoughts=(), anew=None, resumed=True, known_peak=first.peak)
        assert text is not None  # no dry run
        listener.prepared(text.account())
        listener.planned(second)
        record = second.plan().updated(budget=str(allowance), phases=dict(phases.seconds))
        about = text.account()
        record = put_on_record(folder, record, about, config.seed, listener.say, replaces=first.plan.forecast)
        with disk_errors(f"the run folder {folder.path}"), folder.locked():
            make_ready(folder, second.config, record, text, thoughts.reason, left.seconds)
            switch(folder)
        return Job(group, folder, second.config, text, record, listener, phases, resumed=True)

    return replace(job, thoughts=(thoughts,), anew=anew).run()


@together
def train(
    group: Group,
    config: RunConfig,
    out: Path | str | None = None,
    *,
    listener: Listener | None = None,
    expected: Expectation | None = None,
) -> RunResult:
    """Train a configuration as it is: a recipe, or a run's config.json. Only rows of the model for ids that its
    tokenizer comes out without, since the text gives no more, are dropped.

    Raises:
        UserError: for anything that cannot be used, before anything is written.
    """
    listener, phases = listener or Listener(), Phases()
    task = make_task(config)
    check_world(config, group)
    folder = folder_for(out, config.data, group)
    if again(group, folder):
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
    listener.say("can be exported to: {} ({})".format(*destinations(config, data.tokenizer.to_json())))
    return Job(group, folder, config, data, Plan.given(config.steps, tokens, expected), listener, phases).run()


def for_tokenizer(config: RunConfig, data: Data, listener: Listener) -> RunConfig:
    """A configuration that is given, without rows for ids that its tokenizer came out without."""
    fitted = with_ids(config, data.vocab_size, keep=Keep(model=True, rates=True))
    if fitted != config:
        listener.say(
            f"the text gives {data.vocab_size:,} ids of {config.model.vocab_size:,} in the configuration: the model "
            f"has {data.vocab_size:,} rows"
        )
    return fitted


@together
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
        sources: where the run's text is now, if it was moved; it has to be the same text.
        heldout: where the held-out text is now that was named, if it was moved.
        assignments: "parallel.mode=fsdp" and the like: where and by how many processes a run computes may change on its
            way, as nothing that it learns depends on it. They hold until the next `resume`.

    Raises:
        UserError: if there is no run, it is finished and no budget is added, or its data changed.
    """
    return reopen(group, RunFolder(Path(out)), budget, assignments, listener or Listener(), sources, heldout).run()


def first_budget(text: str) -> Budget:
    """The budget of a run that begins.

    Raises:
        UserError: for one that is more of something.
    """
    budget = parse_budget(text)
    if budget.more:
        raise UserError(f"budget {text!r} is more of something: it goes with --resume RUN")
    return budget


def with_sources(config: RunConfig, sources: Sequence[str], heldout: Sequence[str], strict: bool) -> RunConfig:
    """A configuration on the text that is named, where any is; else as it is."""
    data = config.data
    if sources:
        data = replace(data, sources=tuple(sources), path="")
    data = replace(data, heldout=tuple(heldout) or data.heldout, strict=strict or data.strict)
    return replace(config, data=data)


def start_from(base: RunConfig, init: Path | str) -> RunConfig:
    """`base` with the model, the task and the tokenizer of the run `init`.

    Raises:
        UserError: if there is no such run, or it is one of another task than the one asked for.
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
    # the checkpoint and not its run: what the run's last one is may change
    data = replace(base.data, tokenizer=str((snapshot.path / "tokenizer.json").resolve()))
    return replace(base, model=model, data=data, init=str(snapshot.path.resolve()))


def folder_for(out: Path | str | None, data: DataConfig, group: Group) -> RunFolder:
    """The folder that is named; else runs/<first source>-<number>, the first that is free, or the one that these
    processes were at before they were started again."""
    if out:
        return RunFolder(Path(out))
    name = "data" if data.path else parse_sources(data.sources)[0].name
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "run"
    number = 1
    while (folder := Path("runs") / f"{stem}-{number}").exists() and not again(group, RunFolder(folder)):
        number += 1
    return RunFolder(folder)


def claim(folder: RunFolder) -> None:
    """Raises UserError if a new run cannot begin in a folder: it holds one, or cannot be written to."""
    folder.refuse_used()
    try_folder(folder.path, f"--out {folder.path}")
