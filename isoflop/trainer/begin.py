"""Builds a run from a configuration and its data: at its first step, or resumed from a checkpoint."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from isoflop import checkpoint
from isoflop.config import from_dict, load_json, to_dict
from isoflop.data.loader import Batches
from isoflop.data.manifest import Data
from isoflop.errors import UserError, quoted
from isoflop.files import write_json, write_text
from isoflop.kernels.compiled import why_not
from isoflop.model.build import Model, build_model
from isoflop.model.fused import fuse
from isoflop.optim.build import build
from isoflop.optim.timetable import Decision
from isoflop.parallel.config import DIVIDED
from isoflop.parallel.mesh import Group
from isoflop.parallel.shard import distribute
from isoflop.parallel.wrap import compile_units, recompute
from isoflop.records import DataAccount, EventLine, Plan, RunFolder, SkipLine, read_lines, read_object
from isoflop.records.lines import json_line
from isoflop.runtime import describe_machine, make_runtime, seed_everything
from isoflop.trainer.average import WeightAverage
from isoflop.trainer.config import RunConfig
from isoflop.trainer.guard import ACTIONS, Watch, gaps
from isoflop.trainer.processes import world_of
from isoflop.trainer.state import RunState
from isoflop.trainer.task import Task

LARGEST_COUNT = 1 << 53  # of steps, tokens or sequences in a log
NO_EFFECT_ON_LEARNING = (
    "runtime",
    "parallel",
    "every",
    "sample",
    "suite",
    "trackers",
)  # fields of RunConfig that do not affect what is learned


def check_fits(config: RunConfig, prepared: Data) -> None:
    """Check that the model has a row for every id of the tokenizer. More rows than ids are allowed (padding).

    Raises:
        UserError: if there are too few rows.
    """
    if config.model.vocab_size < prepared.vocab_size:
        raise UserError(
            f"model.vocab_size = {config.model.vocab_size} is less than the tokenizer's {prepared.vocab_size} ids; "
            f"use --set model.vocab_size={prepared.vocab_size}"
        )


def write_first_files(
    config: RunConfig,
    folder: RunFolder,
    prepared: Data,
    plan: Plan,
    environment: dict[str, Any],
    decisions: Sequence[Decision] = (),
) -> None:
    """Write the files of a run folder before the first step. config.json comes last: with it the folder is a run."""
    folder.log("decisions").unlink(missing_ok=True)  # of a run that was killed before it had a config.json
    if decisions:
        lines = [decision.line(time.time()).updated(replayed=True).to_dict() for decision in decisions]
        write_text(folder.log("decisions"), "".join(json_line(line) + "\n" for line in lines))
    write_json(folder.plan, plan.to_dict())
    write_json(folder.environment, environment)
    write_json(folder.data, prepared.account().to_dict())
    write_text(folder.tokenizer, prepared.tokenizer.to_json())
    write_json(folder.config, to_dict(config))


def make_run(
    config: RunConfig,
    folder: RunFolder,
    task: Task,
    prepared: Data,
    batches: Batches,
    resume: bool,
    group: Group,
) -> RunState:
    """Build model and optimisers, load the last checkpoint if the run is resumed, and record that it starts.

    Raises:
        UserError: if the checkpoints or the logs do not fit the run.
    """
    requested = config.runtime
    runtime = make_runtime(group.device(requested.device), requested.dtype, group.threads(requested.threads))
    seed_everything(config.seed)
    sharded = config.parallel.resolve(group.size, group.hosts)[0] in DIVIDED
    with torch.device("meta") if sharded else runtime.device:
        model = build_model(config.task, config.model)

    # initial weights: the run's last checkpoint, another run's weights, or random
    last, notices = last_checkpoint(folder, group) if resume else (None, [])
    changes = [*changed_settings(last, config), *changed_machine(folder, config)] if resume else []
    notices = [*notices, *changes]
    weights = None
    if config.init and last is None:
        weights, warnings = initial_weights(config, prepared, model, sharded)
        notices = [*notices, *warnings]

    # modules that only training needs, and the distribution of the model over the processes
    task.prepare(model)
    wrap(config, model, task, sharded)
    if config.runtime.kernels == "compiled" and (why := why_not()):
        notices = [*notices, f"note: runtime.kernels = compiled cannot be used, so torch's operations are: {why}"]
    layout = distribute(model, task.loss, group, config.parallel, runtime.device.type, weights)
    optimizers = build(model, config.optim, runtime.dtype, layout.matrices)
    timetable = config.timetable()
    state = RunState(
        config=config,
        folder=folder,
        model=model,
        optimizers=optimizers,
        task=task,
        prepared=prepared,
        batches=batches,
        runtime=runtime,
        timetable=timetable,
        flops_per_token=task.flops_per_token(config, prepared),
        layout=layout,
        average=WeightAverage(config.average),
        notices=notices,
    )

    # set the run to its first step, or to the one after the checkpoint
    last_logged_step = require_own_records(state, last, resume)
    progress = restore(state, last)
    state.seconds, state.aside_seconds = progress.get("seconds", 0.0), progress.get("aside", 0.0)

    details: dict[str, Any] = {"step": state.step, **world_of(config, group)}
    if last_logged_step > state.step:
        details["taken_again"] = last_logged_step - state.step
    if changes:
        details["changed"] = changes
    folder.event("resumed" if resume else "started", **details)
    return state


def require_own_records(state: RunState, last: Path | None, resume: bool) -> int:
    """Check that the checkpoint and the logs in the folder belong to this run and to the same data.

    Args:
        last: the checkpoint to resume from, if there is one.

    Returns:
        The last step in the logs.

    Raises:
        UserError: if they do not.
    """
    folder, prepared = state.folder, state.prepared
    if last is not None:
        checkpoint.require_same_data(last, prepared.fingerprint, prepared.tokenizer.to_json())
    elif resume:
        require_same_start(folder, prepared.fingerprint)
    last_logged_step = check_logs(folder)
    if last is None:
        require_unsaved(folder, state.config, last_logged_step)
    return last_logged_step


def initial_weights(
    config: RunConfig, prepared: Data, model: Model, sharded: bool
) -> tuple[dict[str, torch.Tensor] | None, list[str]]:
    """Start from the weights of another run, `config.init`.

    Returns:
        The weights, checked, if the model is to be sharded; None if they were loaded into the model. And warnings.
    """
    start = checkpoint.read(Path(config.init))
    warnings = []
    if start.tokenizer != prepared.tokenizer.to_json():
        warnings = [f"warning: init = {config.init} was trained with another tokenizer: its ids stand for other text"]
    if sharded:
        checkpoint.check_weights(model, start.weights)
        return start.weights, warnings
    checkpoint.load_weights(model, start.weights)
    return None, warnings


def wrap(config: RunConfig, model: Model, task: Task, sharded: bool = False) -> None:
    """Apply runtime.kernels, runtime.recompute and runtime.compile to a model and to its task's loss.

    Args:
        sharded: the weights are divided among processes, which the fused blocks do not know.
    """
    batch, units = config.batch, list(model.units())
    if uses_kernels(config) and not sharded:
        fuse(model)
        use_kernels = getattr(task, "use_kernels", None)  # a task of the user's own need not have it
        if use_kernels is not None:
            use_kernels()
    if config.runtime.recompute:
        recompute(model, units)
    if config.runtime.compile:
        grows = (batch.ramp_from and not batch.micro_sequences) or batch.context_from
        fixed = task.static_shapes and not grows
        compile_units(units, fixed)
        task.compile()


def uses_kernels(config: RunConfig) -> bool:
    """Whether a run uses the compiled kernels: on a CPU, if it asks for them and this machine has them. Blocks that
    torch.compile handles are left to it."""
    runtime = config.runtime
    return runtime.kernels == "compiled" and runtime.device == "cpu" and not runtime.compile and not why_not()


def require_same_start(folder: RunFolder, fingerprint: str) -> None:
    """Raise UserError unless a run that has no checkpoint yet was started on the data with this fingerprint."""
    started_on = DataAccount.read(read_object(folder.data)).fingerprint or fingerprint
    if started_on != fingerprint:
        raise UserError(
            f"the data of this run changed: it started on {started_on[:12]}, the sources are now {fingerprint[:12]}; "
            f"restore the old text, or start again: isoflop train --config {quoted(folder.config)} --out NEW"
        )


def require_unsaved(folder: RunFolder, config: RunConfig, last_logged_step: int) -> None:
    """Raise UserError if a run without a checkpoint must have had one."""
    if saved_step := saved_up_to(folder, config, last_logged_step):
        raise UserError(
            f"{folder.checkpoints} holds no checkpoint, but the run was saved up to step {saved_step:,}: restore it "
            f"(is a disk not mounted?), or start again: isoflop train --config {quoted(folder.config)} --out NEW"
        )


def saved_up_to(folder: RunFolder, config: RunConfig, last_logged_step: int) -> int:
    """A step that must have had a checkpoint, according to the logs; 0 if there may have been none. A checkpoint is
    taken only after the previous one is written."""
    saving_events = ("stopped", "resumed", "trained", "extended")
    steps = [event.step for event in folder.lines("events", EventLine) if event.event in saving_events]
    interval = config.every.checkpoint
    if interval and last_logged_step > 2 * interval and not read_lines(folder.log("skips")):
        steps.append((last_logged_step - 1) // interval * interval - interval)
    return max((step for step in steps if step is not None), default=0)


def changed_settings(last: Path | None, config: RunConfig) -> list[str]:
    """Notices of settings that differ from the checkpoint's because config.json was edited."""
    if last is None:
        return []
    trained_with = to_dict(from_dict(RunConfig, load_json(last / "config.json")))
    differences = [
        f"{name} = {new!r} (was {old!r})"
        for name, old, new in differing(trained_with, to_dict(config))
        if name.partition(".")[0] not in NO_EFFECT_ON_LEARNING
    ]
    warning = "warning: config.json is no longer what the checkpoint was trained with"
    return [f"{warning}: {', '.join(differences)}"] if differences else []


def differing(one: Any, other: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, first value, second value) of the differences between two JSON values."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*one, *other])
        inner = [(f"{name}.{key}".lstrip("."), one.get(key), other.get(key)) for key in keys]
        return [difference for key, a, b in inner for difference in differing(a, b, key)]
    return [] if one == other else [(name, one, other)]


def changed_machine(folder: RunFolder, config: RunConfig) -> list[str]:
    """Notices of a machine or versions that differ from those that the run started with."""
    at_start, now = read_object(folder.environment), describe_machine(config.runtime.device)
    differences = [
        f"{name} {now.get(name)} (was {at_start[name]})"
        for name in ("processor", "gpu", "torch", "cuda")
        if name in at_start and at_start[name] != now.get(name)
    ]
    return [f"note: what follows may differ in its last bits: {', '.join(differences)}"] if differences else []


def check_logs(folder: RunFolder) -> int:
    """Check the fields of the logs that a resumed run reads; the files may be untrusted.

    Returns:
        The last step on record.

    Raises:
        UserError: naming the line and the field that is missing or invalid.
    """
    last_step = 0
    for name in ("metrics", "skips"):
        for number, line in enumerate(read_lines(folder.log(name)), 1):
            required = ["step"]
            if name == "skips":
                required += ["tokens", *(("first", "sequences") if line.get("action") == "rollback" else ())]
            invalid = [
                field for field in required if type(line.get(field)) is not int or not 0 <= line[field] < LARGEST_COUNT
            ]
            if name == "skips" and line.get("action") not in ACTIONS:
                invalid.append("action")
            if type(line.get("heldout_loss", 0.0)) not in (int, float):
                invalid.append("heldout_loss")

            if invalid:
                raise UserError(f"{folder.log(name)} record {number}: {invalid[0]} is missing or invalid")
            last_step = max(last_step, line["step"])
    return last_step


def last_checkpoint(folder: RunFolder, group: Group) -> tuple[Path | None, list[str]]:
    """The last complete checkpoint, None if there is none yet; and notices of newer ones that are damaged, which are
    set aside. Rank 0 looks, and all processes use its result.

    Raises:
        UserError: if there are checkpoints and none is complete; they are left in place.
    """
    if not group.first:
        path = group.broadcast()
        return (Path(path) if path else None), []
    last, broken = checkpoint.last_intact(folder.checkpoints)
    if last is None and broken:
        raise UserError(
            f"none of the {len(broken)} checkpoints of {folder.path} is complete: {broken[0][1]}; restore one, or "
            f"start again: isoflop train --config {quoted(folder.config)} --out NEW"
        )

    notices = []
    for path, error in broken:
        reason = error.partition("; delete that folder")[0]  # it need not be deleted
        moved_to = checkpoint.set_aside(path)
        folder.event("checkpoint set aside", step=checkpoint.step_of(path), reason=reason, kept_as=moved_to.name)
        notices.append(f"warning: {reason}: set aside as {moved_to.name}, and the previous one is used")
    group.broadcast(str(last or ""))
    return last, notices


def restore(state: RunState, last: Path | None) -> dict[str, Any]:
    """Restore a run from a verified checkpoint, or to its start without one: weights, their average, optimisers, random
    generators, step, the statistics that steps are judged by, and the logs that are replayed.

    Returns:
        All progress entries of the checkpoint.
    """
    progress = {} if last is None else checkpoint.load(last, state.model, state.optimizers, verified=True)
    state.average.restore(state.model, last, progress.get("averaged", 0))
    state.step = progress.get("step", 0)
    state.folder.drop_lines_after(state.step)
    state.watch = Watch(state.config.guard, progress.get("recent", ()))

    group = state.layout.group
    logs = group.broadcast(replayed(state.folder) if group.first else None)
    state.skips = [SkipLine.read(line) for line in logs["skips"]]
    state.batches = state.task.batches(state.config, state.prepared, gaps(state.skips))
    decisions = tuple(Decision.from_dict(line) for line in logs["decisions"])
    state.timetable = replace(state.timetable, decisions=decisions)
    state.heldout = [(step, loss) for step, loss in logs["heldout"]]
    return progress


def replayed(folder: RunFolder) -> dict[str, Any]:
    """The log entries that affect the rest of the run. Rank 0 reads them for all processes: on a network file system
    another one could see an older file."""
    measured = [line for line in read_lines(folder.log("metrics")) if "heldout_loss" in line]
    return {
        "skips": read_lines(folder.log("skips")),
        "decisions": read_lines(folder.log("decisions")),
        "heldout": [(line["step"], line["heldout_loss"]) for line in measured],
    }
