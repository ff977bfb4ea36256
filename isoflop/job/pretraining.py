"""From raw text and a budget to a trained GPT and its report; and on from where a run stopped."""

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from isoflop import checkpoint
from isoflop.budget import parse_budget
from isoflop.config import from_dict, override
from isoflop.data.config import DataConfig
from isoflop.data.corpus import parse_sources
from isoflop.data.prepared import Data
from isoflop.errors import UserError
from isoflop.files import disk_errors, try_folder
from isoflop.job.ceiling import is_peak, machine_peak
from isoflop.job.extend import extend
from isoflop.job.listener import Listener, Phases, seconds_line
from isoflop.job.outcome import add_to_ledger, measure_last, write_result
from isoflop.job.runs import data_of, run_folder_of
from isoflop.job.together import again, send, together
from isoflop.model.config import ModelConfig
from isoflop.parallel.mesh import Group
from isoflop.plan.advice import Advice, Facts, Keep
from isoflop.plan.asked import Asked
from isoflop.plan.far import far_off
from isoflop.plan.planner import finalize, propose
from isoflop.records import Expectation, Plan, RunFolder, read_run
from isoflop.runtime import choose_device
from isoflop.trainer import RunConfig, RunResult
from isoflop.trainer import train as train_steps
from isoflop.trainer.hooks import HeldOut as HeldOutHook
from isoflop.trainer.hooks import Hook, Samples
from isoflop.trainer.processes import check_world
from isoflop.trainer.task import make_task
from isoflop.trainer.trackers import make_trackers

MOVABLE = ("parallel", "runtime")  # the fields of RunConfig that may change while a run is on its way


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

    Returns:
        What the run came to, or the plan with `dry_run`.

    Raises:
        UserError: for anything that cannot be used, before anything is written.
    """
    listener = listener or Listener()
    allowance = parse_budget(budget)
    if allowance.more:
        raise UserError(f"budget {budget!r} is more of something: it goes with --resume RUN")
    phases = Phases()
    if base is not None and task not in (RunConfig.task, base.task):
        raise UserError(
            f"--task {task} does not go with a configuration whose task is {base.task}; leave one of them out"
        )
    start = with_sources(base or from_dict(RunConfig, {"task": task}), sources, heldout, strict)
    if init:
        start = start_from(start, init)
    asked = override(start, assignments)
    make_trackers(asked.trackers)  # a missing one is said before anything is done
    data = asked.data
    asked.parallel.resolve(group.size, group.hosts)
    folder = RunFolder(Path(out) if out else new_folder_name(data, group))
    if not dry_run and again(group, folder):
        return go_on(group, folder, "", (), listener)
    if not dry_run:
        folder.refuse_used()
        try_folder(folder.path, f"--out {folder.path}")
    kind = make_task(asked)
    with phases.time("prepare"):
        workload = kind.workload(asked, listener.progress)
    with phases.time("calibrate"):
        proposal = propose(
            allowance,
            start,
            workload,
            Asked.of(assignments),
            listener.say,
            Keep(model=base is not None or bool(init), rates=base is not None),
            machines=group.machines(choose_device(asked.runtime.device)),
        )
    with phases.time("prepare"):
        prepared = workload.data or kind.prepare_data(proposal.data, listener.progress)
        facts = Facts.of(prepared)
    advice = finalize(proposal, facts)
    listener.planned(advice)
    listener.say(seconds_line(phases))
    if dry_run:
        return advice
    return carry_out(group, advice.config, folder, prepared, listener, phases, plan=advice.plan())


@together
def train(
    group: Group,
    config: RunConfig,
    out: Path | str | None = None,
    *,
    listener: Listener | None = None,
    expected: Expectation | None = None,
) -> RunResult:
    """Train a configuration as it is: a recipe, or a run's config.json.

    Raises:
        UserError: for anything that cannot be used, before anything is written.
    """
    listener = listener or Listener()
    phases = Phases()
    task = make_task(config)
    check_world(config, group)
    folder = RunFolder(Path(out) if out else new_folder_name(config.data, group))
    if again(group, folder):
        return go_on(group, folder, "", (), listener)
    folder.refuse_used()
    try_folder(folder.path, f"--out {folder.path}")
    make_trackers(config.trackers)
    with phases.time("prepare"):
        prepared = task.prepare_data(config.data, listener.progress)
        tokens = task.batches(config, prepared).tokens(config.steps)
    plan = Plan.given(config.steps, tokens, expected)
    return carry_out(group, config, folder, prepared, listener, phases, plan=plan)


@together
def resume(
    group: Group,
    out: Path | str,
    budget: str = "",
    *,
    assignments: Sequence[str] = (),
    listener: Listener | None = None,
) -> RunResult:
    """Go on with a run from its last checkpoint; with a budget such as "+1h", from before its decay.

    Args:
        assignments: "parallel.mode=fsdp" and the like: where and by how many processes a run computes may change on its
            way, as nothing that it learns depends on it. They hold until the next `resume`.

    Raises:
        UserError: if there is no run, it is finished and no budget is added, or its data changed.
    """
    return go_on(group, RunFolder(Path(out)), budget, assignments, listener or Listener())


def go_on(group: Group, folder: RunFolder, budget: str, assignments: Sequence[str], listener: Listener) -> RunResult:
    out = folder.path
    if (out / checkpoint.MANIFEST).is_file():  # it has a config.json too, and would be taken for a run that just began
        raise UserError(
            f"{out} is a checkpoint and no run; go on with the run that it is of, as in --resume {run_folder_of(out)}, "
            f"or train on from its weights: isoflop train SOURCE --init {out}"
        )
    run = read_run(out)
    config = override(from_dict(RunConfig, run.config), movable(assignments))
    check_world(config, group)
    phases = Phases(dict(run.result.phases or run.plan.phases or {}))
    if run.status == "running":
        raise UserError(f"{out} is being trained by another process")
    if run.status == "imported":
        raise UserError(f"{out} was imported and not trained here; train on from it: isoflop train SOURCE --init {out}")
    if run.status == "finished" and not budget:
        raise UserError(
            f"{out} is finished; to train on, add to its budget: isoflop train --resume {out} --budget +10m"
        )
    more = parse_budget(budget) if budget else None
    with phases.time("prepare"):
        prepared = data_of(run.folder, config, listener.progress)
    if more:
        extend(run.folder, config, more, prepared.fingerprint)
    return carry_out(group, config, run.folder, prepared, listener, phases, plan=read_run(out).plan, resume=True)


def movable(assignments: Sequence[str]) -> Sequence[str]:
    """Assignments that may be made to a run on its way.

    Raises:
        UserError: naming one that may not.
    """
    for assignment in assignments:
        if assignment.partition(".")[0] not in MOVABLE:
            raise UserError(
                f"--set {assignment} does not go with --resume: a run goes on as its config.json says, but for "
                f"{' and '.join(f'{name}.*' for name in MOVABLE)}"
            )
    return assignments


def carry_out(
    group: Group,
    config: RunConfig,
    folder: RunFolder,
    prepared: Data,
    listener: Listener,
    phases: Phases,
    *,
    plan: Plan,
    resume: bool = False,
) -> RunResult:
    """Train, measure, write result and report, add a line to the ledger."""
    peak = read_run(folder.path).environment.peak if resume else {}
    if not is_peak(peak):
        with phases.time("calibrate"):
            device = config.runtime.device if config.runtime.device != "auto" else "cpu"
            peak = plan.peak if is_peak(plan.peak) else machine_peak(device)
    hooks: list[Hook] = [*make_trackers(config.trackers), *listener.hooks]
    dtype = config.runtime.dtype if config.runtime.dtype != "auto" else "float32"
    if not resume:
        for line in far_off(config):
            listener.say(line)
    listener.peak(peak.get(dtype, 0.0) * group.machines(choose_device(config.runtime.device)))
    check_world(config, group)
    send(group, config, folder, prepared, resume)
    result = train_steps(
        config,
        folder.path,
        hooks=[HeldOutHook(tuple(hooks)), Samples(), *hooks],
        prepared=prepared,
        plan=plan.updated(phases=dict(phases.seconds)),
        environment={"peak": peak},
        resume=resume,
        group=group,
    )
    phases.seconds["train"] = round(result.seconds, 2)
    with phases.time("evaluate"):
        reached = measure_last(folder, prepared, config, group)
    with disk_errors(f"the run folder {folder.path}"):
        write_result(folder, config, prepared, result, reached, peak, plan, phases, group)
        folder.event("finished", step=result.step)
        started = time.monotonic()
        from isoflop.report.page import write_report  # noqa: PLC0415 - its matplotlib takes as long to load as a start

        write_report([folder.path])
        phases.seconds["report"] = round(time.monotonic() - started, 2)
        write_result(folder, config, prepared, result, reached, peak, plan, phases, group)
    add_to_ledger(folder)
    return result


def start_from(base: RunConfig, init: Path | str) -> RunConfig:
    """`base` with the model and tokenizer of the run `init`."""
    source = Path(init)
    if not source.exists():
        raise UserError(f"--init {init} does not exist; name a run folder")
    snapshot = checkpoint.read(source)
    model = from_dict(ModelConfig, snapshot.config["model"], "model")
    # the checkpoint and not its run: what the run's last one is may change
    data = replace(base.data, tokenizer=str((snapshot.path / "tokenizer.json").resolve()))
    return replace(base, model=model, data=data, init=str(snapshot.path.resolve()))


def with_sources(config: RunConfig, sources: Sequence[str], heldout: Sequence[str], strict: bool) -> RunConfig:
    """A configuration on the text that is named, where any is; else as it is."""
    data = config.data
    if sources:
        data = replace(data, sources=tuple(sources), path="")
    data = replace(data, heldout=tuple(heldout) or data.heldout, strict=strict or data.strict)
    return replace(config, data=data)


def new_folder_name(data: DataConfig, group: Group) -> Path:
    """runs/<first source>-<number>, the first that is free; or the one that these processes were at before they were
    started again."""
    name = "data" if data.path else parse_sources(data.sources)[0].name
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "run"
    number = 1
    while (folder := Path("runs") / f"{stem}-{number}").exists() and not again(group, RunFolder(folder)):
        number += 1
    return folder
