"""The run itself: everything is made, then one visible while loop.

while step < end:  batch -> gradients -> look -> update -> line -> hooks -> clock -> checkpoint -> signals
                                        └─> trouble: keep · leave out · go back · stop

Under torchrun every process runs this loop on its part of each batch. Loss and gradient norm are those of all, so that
all find the same trouble; the first one's clock counts, and it alone writes. Where else they have to agree is in
together.py, who holds what in isoflop/parallel.
"""

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from isoflop import checkpoint
from isoflop.config import convert, to_dict
from isoflop.data.loader import Batches
from isoflop.data.prepared import Data
from isoflop.errors import UserError
from isoflop.files import disk_errors, write_json, write_text
from isoflop.model.build import build_model
from isoflop.optim.build import build
from isoflop.optim.schedules import Decision, Timetable
from isoflop.parallel.mesh import ALONE, Group
from isoflop.parallel.shard import lay_out
from isoflop.parallel.watch import Watchdog
from isoflop.parallel.wrap import recompute
from isoflop.records import Lock, RunFolder, read_lines
from isoflop.runtime import choose_device, cores, describe_machine, make_runtime, seed_everything
from isoflop.trainer.config import RunConfig
from isoflop.trainer.guard import Diverged, Interrupted, Signals
from isoflop.trainer.hooks import Hook, Live
from isoflop.trainer.pace import Pace
from isoflop.trainer.preflight import check_memory, dry_batch, estimate
from isoflop.trainer.saver import Saver
from isoflop.trainer.step import Statistics, find_gradients, leave_out, update
from isoflop.trainer.task import Task, make_task
from isoflop.trainer.together import agree, check_world, seed_step, world_of
from isoflop.trainer.trouble import Trouble, Watch, gaps, must_stop

ECHO = 2.0  # seconds in which one Ctrl-C reaches a process twice, from the terminal and from torchrun
RATE_LINES = 20  # training lines over which tokens per second are averaged


@dataclass(frozen=True)
class RunResult:
    """What a finished run came to.

    Attributes:
        folder: the run folder.
        step: optimiser steps done.
        loss: mean of what was trained on (config.loss, with auxiliary losses) over the last tenth of the steps logged,
            nats per token.
        heldout_loss: the last held-out loss along the way, nats per token; None if none was measured.
        seconds: of training, time spent down left out.
        aside: of these, those spent beside the steps: on measuring, sampling, checkpoints.
        tokens: read in training.
        flops: 6 N D.
    """

    folder: Path
    step: int
    loss: float
    heldout_loss: float | None
    seconds: float
    aside: float
    tokens: int
    flops: float


def train(
    config: RunConfig,
    out: Path | str,
    *,
    hooks: Sequence[Hook] = (),
    prepared: Data | None = None,
    task: Task | None = None,
    plan: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    resume: bool = False,
    group: Group = ALONE,
) -> RunResult:
    """Train `config` into the run folder `out`, or go on with the run that is there.

    Args:
        hooks: told of every step, in order.
        prepared: the data, if the caller has it open already; else `config.data` is prepared (or found prepared).
        task: what is learned, if not just what `config.task` and `config.loss` name.
        plan: kept in plan.json: what was expected of this run.
        environment: kept in environment.json beside the machine's description.
        resume: go on from the last checkpoint of `out` (from nothing if it has none yet).
        group: the processes that train it together; each calls this with the same arguments but for the hooks.

    Raises:
        UserError: the folder holds another run, the data does not match, a checkpoint is damaged.
        Interrupted: a signal came; the run is saved and `resume=True` goes on.
        Diverged: loss or gradient went wrong more often than config.guard allows.
    """
    folder = RunFolder(Path(out), mine=group.first)
    if not resume and group.first:
        folder.refuse_used()
    config = resolve_runtime(config)
    check_world(config, group)
    task = task or make_task(config)
    prepared = prepared or task.prepare_data(config.data)
    check_fits(config, prepared)
    batches = task.batches(config, prepared)  # text that is too short is refused before anything is written
    if config.guard.preflight and group.alone:
        runtime = make_runtime(config.runtime.device, config.runtime.dtype, config.runtime.threads)
        check_memory(config, estimate(config, task, batches, runtime), config.runtime.device)
    again = f"isoflop train --resume {folder.path}"
    echo = 0.0 if group.alone else ECHO
    with disk_errors(f"the run folder {folder.path}", then=again), folder.locked() as lock, Signals(echo) as signals:
        if group.first and not (resume and folder.config.exists()):
            about = {**describe_machine(config.runtime.device), **(environment or {})}
            write_first_files(config, folder, prepared, plan or {}, about)
        folder.mend()
        live, optimizers = make_run(config, folder, task, prepared, batches, resume, group)
        live.signals = signals
        saver = Saver(config.every, group)
        try:
            for hook in hooks:
                hook.started(live)
                for text in live.notices:
                    hook.noticed(live, text)
            with Watchdog(group, config.parallel.timeout, folder.path, live.step) as watchdog:
                if config.guard.preflight and not live.done:
                    dry_batch(live, optimizers)
                run_steps(live, optimizers, list(hooks), signals, saver, lock, watchdog)
                saver.wait()
        finally:
            saver.finish()
            for hook in hooks:
                hook.ended(live)
        folder.event("trained", step=live.step, seconds=live.seconds)
    return summarize(live)


def make_run(
    config: RunConfig,
    folder: RunFolder,
    task: Task,
    prepared: Data,
    batches: Batches,
    resume: bool,
    group: Group,
) -> tuple[Live, list[torch.optim.Optimizer]]:
    """Build model and optimisers, and load the last checkpoint if the run goes on."""
    asked = config.runtime
    runtime = make_runtime(group.device(asked.device), asked.dtype, group.threads(asked.threads))
    seed_everything(config.seed)
    with runtime.device:
        model = build_model(config.task, config.model)
    last, said = last_checkpoint(folder, group) if resume else (None, [])
    if config.init and last is None:
        start = checkpoint.read(Path(config.init))
        if start.tokenizer != prepared.tokenizer.to_json():
            warned = f"warning: init = {config.init} was trained with another tokenizer: its ids mean other text here"
            said = [*said, warned]
        checkpoint.load_weights(model, start.weights)
    task.prepare(model)
    if config.runtime.recompute:
        recompute(model, list(model.units()))
    if config.runtime.compile:
        for unit in model.units():
            unit.compile()
    layout = lay_out(model, task.loss, group, config.parallel, runtime.device.type)
    optimizers = build(model, config.optim, runtime.dtype, layout.matrices)
    timetable = Timetable(config.schedule, config.steps, read=config.batch.before)
    flops = task.flops_per_token(config, prepared)
    live = Live(config, folder, model, task, prepared, batches, runtime, timetable, flops, layout, notices=said)
    if last is not None:
        checkpoint.require_same_data(last, prepared.fingerprint, prepared.tokenizer.to_json())
    progress = put_back(live, optimizers, last)
    live.seconds, live.aside = progress.get("seconds", 0.0), progress.get("aside", 0.0)
    folder.event("resumed" if resume else "started", step=live.step, **world_of(config, group))
    return live, optimizers


def last_checkpoint(folder: RunFolder, group: Group) -> tuple[Path | None, list[str]]:
    """The last checkpoint that is whole, None if there is none yet; and what is to be said: newer ones that are damaged
    are set aside. The first process looks, and all go by what it found.

    Raises:
        UserError: if there are some and not one is whole; they are left where they are.
    """
    if not group.first:
        found = group.broadcast()
        return (Path(found) if found else None), []
    last, broken = checkpoint.last_whole(folder.checkpoints)
    if last is None and broken:
        raise UserError(
            f"no checkpoint of {folder.path} is whole, of {len(broken)}: {broken[0][1]}; bring one back, or begin "
            f"again: isoflop train --config {folder.config} --out NEW"
        )
    said = []
    for path, reason in broken:
        aside = checkpoint.set_aside(path)
        folder.event("checkpoint set aside", step=checkpoint.step_of(path), reason=reason, kept_as=aside.name)
        said.append(f"warning: {reason}: set aside as {aside.name}, and the one before it is used")
    group.broadcast(str(last or ""))
    return last, said


def put_back(live: Live, optimizers: list[torch.optim.Optimizer], last: Path | None) -> dict[str, Any]:
    """Set a run to where it was at a checkpoint that was found whole, or to its start without one: weights, optimisers,
    generators, step, what is compared with, and the logs that are replayed.

    Returns:
        What else the checkpoint says of the run's progress.
    """
    progress = {} if last is None else checkpoint.load(last, live.model, optimizers, verified=True)
    live.step = progress.get("step", 0)
    live.folder.forget_after(live.step)
    live.layout.group.barrier()  # the logs are what the first process left of them
    live.watch = Watch(live.config.guard, progress.get("recent", ()))
    live.skips = read_lines(live.folder.log("skips"))
    live.batches = live.task.batches(live.config, live.prepared, gaps(live.skips))
    decisions = tuple(Decision.from_dict(line) for line in read_lines(live.folder.log("decisions")))
    live.timetable = replace(live.timetable, decisions=decisions)
    lines = read_lines(live.folder.log("metrics"))
    live.heldout = [(line["step"], line["heldout_loss"]) for line in lines if "heldout_loss" in line]
    return progress


def run_steps(
    live: Live,
    optimizers: list[torch.optim.Optimizer],
    hooks: list[Hook],
    signals: Signals,
    saver: Saver,
    lock: Lock,
    watchdog: Watchdog,
) -> None:
    """The loop. On return every planned step is done and the last checkpoint is written or being written."""
    config, group = live.config, live.layout.group
    held_to = seconds_held_to(live)
    pace = Pace(held_to) if held_to and group.first else None
    log = Log(live)
    statistics = Statistics(live.model)
    saved = live.step if live.step else -1
    if saved < 0 and config.guard.may_roll_back:
        saved = save(live, optimizers, saver)
    before = time.monotonic() - live.seconds
    live.model.train()
    batch = None
    while not live.done:
        saver.check()
        lock.check()
        if live.step == live.timetable.decay_step and saved != live.step:
            saved = save(live, optimizers, saver)  # an extended run goes on from here
        watchdog.at(live.step, "reading its batch")
        batch = live.batches.batch(live.step, group.rank, group.size) if batch is None else batch
        seed_step(group, config.seed, live.step)
        watchdog.at(live.step, "in the step")
        scale = live.timetable.scale(live.step)
        statistics.keep()
        on_device = find_gradients(
            live.model,
            live.task,
            [tensor.to(live.runtime.device) for tensor in batch],
            micro=config.batch.micro_sequences or len(batch[0]),
            runtime=live.runtime,
            clip=config.optim.clip,
            layout=live.layout,
        )
        batch = live.batches.batch(live.step + 1, group.rank, group.size)  # read while the device works
        loss, norm = (float(number) for number in on_device)  # here it is waited for
        trouble = live.watch.look(loss, norm)
        taken = trouble is None or trouble.action == "keep"
        if taken:
            update(optimizers, scale)
        else:
            leave_out(optimizers, statistics)
        if trouble:
            put_on_record(live, hooks, trouble, loss, norm)
            if why := must_stop(trouble, live.skips, config.guard):
                saver.wait()
                raise diverged(live, trouble, why)
            if trouble.action == "rollback":
                saver.wait()
                go_back(live, optimizers, hooks)
                saved, batch, log = live.step, None, Log(live)
                pace = Pace(held_to) if pace else None
                continue
        live.step += 1
        live.seconds = time.monotonic() - before
        if taken:
            log.add(loss, norm, scale)
        stepped_at = time.monotonic()
        watchdog.at(live.step, "beside the steps")
        for hook in hooks:
            hook.stepped(live)
        live.seconds = time.monotonic() - before
        decision = pace.look(live.step, live.seconds, live.timetable) if pace else None
        signal, decision = agree(group, signals.received, decision)
        if decision:
            live.folder.append("decisions", {**decision.to_dict(), "time": time.time()}, durable=True)
            live.timetable = live.timetable.decide(decision)
            for hook in hooks:
                hook.decided(live, decision)
        if (live.due(config.every.checkpoint) and taken) or live.done:
            saved = save(live, optimizers, saver)
        live.aside += time.monotonic() - stepped_at
        live.seconds = time.monotonic() - before
        if signal is not None and not live.done:
            if saved != live.step:
                save(live, optimizers, saver)
            saver.wait()
            live.folder.event("stopped", step=live.step, signal=signal)
            raise Interrupted(signal, live.step, live.folder.path)


def put_on_record(live: Live, hooks: Sequence[Hook], trouble: Trouble, loss: float, norm: float) -> None:
    """Write a bad step down, before anything is done about it, and tell everybody."""
    steps = live.config.guard.pass_over if trouble.action == "rollback" else 1
    line: dict[str, Any] = {
        "step": live.step + 1,
        "kind": trouble.kind,
        "action": trouble.action,
        "reason": trouble.reason,
        "loss": loss if math.isfinite(loss) else None,
        "grad_norm": norm if math.isfinite(norm) else None,
        "tokens": live.batches.tokens(live.step + steps) - live.batches.tokens(live.step),
        "time": time.time(),
    }
    if trouble.action == "rollback":
        line["first"], line["sequences"] = live.batches.span(live.step, steps)
    live.folder.append("skips", line, durable=True)
    live.skips.append(line)
    for hook in hooks:
        hook.troubled(live, line)


def diverged(live: Live, trouble: Trouble, why: str) -> Diverged:
    good = checkpoint.latest(live.folder.checkpoints)
    there = f"the last checkpoint, {good}, is from before that" if good else "there is no checkpoint yet"
    return Diverged(
        f"step {live.step + 1}: {trouble.reason}; {why}; {there}: start again with a lower optim.lr and optim.matrix_lr"
    )


def go_back(live: Live, optimizers: list[torch.optim.Optimizer], hooks: Sequence[Hook]) -> None:
    """Back to the last checkpoint; what is on record to be passed over is not read again. The clock runs on: the time
    was spent."""
    at = live.step
    last, said = last_checkpoint(live.folder, live.layout.group)
    put_back(live, optimizers, last)
    live.model.train()
    live.folder.event("rolled back", step=live.step, from_step=at)
    for hook in hooks:
        for text in said:
            hook.noticed(live, text)


def seconds_held_to(live: Live) -> float:
    """The seconds that the run must keep to: the configuration's, or those of its last extension; 0: none."""
    extended = [line["seconds"] for line in read_lines(live.folder.log("decisions")) if "seconds" in line]
    return float(convert(float, extended[-1], "decision.seconds")) if extended else live.config.seconds


class Log:
    """Training lines, of the steps that were taken. Their `loss` is what is trained on, auxiliary losses and smoothing
    and all; held-out lines have plain cross-entropy."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.marks: deque[tuple[int, float]] = deque([(live.tokens, live.seconds - live.aside)], maxlen=RATE_LINES)

    def add(self, loss: float, norm: float, scale: float) -> None:
        live = self.live
        self.marks.append((live.tokens, live.seconds - live.aside))
        live.line = {
            "step": live.step,
            "loss": loss,
            "grad_norm": norm,
            "lr": live.config.optim.lr * scale,
            "tokens": live.tokens,
            "seconds": round(live.seconds, 4),
            "flops": live.flops,
            "tokens_per_second": round(self.rate(), 1),
        }
        if live.step % live.config.every.log == 0 or live.done:
            live.folder.append("metrics", live.line)

    def rate(self) -> float:
        """Tokens per second of the steps over the last RATE_LINES lines, what is done beside them left out; 0 before
        there are two."""
        (tokens, seconds), (last_tokens, last_seconds) = self.marks[0], self.marks[-1]
        return (last_tokens - tokens) / (last_seconds - seconds) if last_seconds > seconds else 0.0


def save(live: Live, optimizers: list[torch.optim.Optimizer], saver: Saver) -> int:
    """Have a checkpoint written, and those dropped that are no longer wanted.

    After a step that was left out nothing is dropped: the weights may be what is wrong, and the older ones good."""
    pending = checkpoint.take(
        live.folder.checkpoints,
        step=live.step,
        model=live.model,
        optimizers=optimizers,
        config=to_dict(live.config),
        tokenizer=live.prepared.tokenizer.to_json(),
        fingerprint=live.prepared.fingerprint,
        progress={
            "seconds": live.seconds,
            "aside": live.aside,
            "tokens": live.tokens,
            "recent": live.watch.state(),
        },
        copied=saver.background,
    )
    decay = live.timetable.decay_step
    doubtful = any(line["step"] == live.step and line["action"] != "keep" for line in live.skips)
    also = checkpoint.steps(live.folder.checkpoints) if doubtful else [] if decay is None else [decay]
    saver.save(pending, live.heldout, also)
    return live.step


def resolve_runtime(config: RunConfig) -> RunConfig:
    """Replace "auto" and 0 by what this machine has, so that config.json says what ran."""
    device = choose_device(config.runtime.device)
    dtype = config.runtime.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    threads = config.runtime.threads or cores()
    return replace(config, runtime=replace(config.runtime, device=device, dtype=dtype, threads=threads))


def check_fits(config: RunConfig, prepared: Data) -> None:
    """The model must know every id of the tokenizer; more rows than ids is allowed (padding)."""
    if config.model.vocab_size < prepared.vocab_size:
        raise UserError(
            f"model.vocab_size = {config.model.vocab_size} is less than the tokenizer's {prepared.vocab_size} ids; "
            f"use --set model.vocab_size={prepared.vocab_size}"
        )


def write_first_files(
    config: RunConfig, folder: RunFolder, prepared: Data, plan: dict[str, Any], environment: dict[str, Any]
) -> None:
    """What a run folder holds before the first step. config.json comes last: with it the folder is a run."""
    write_json(folder.plan, plan)
    write_json(folder.environment, environment)
    write_json(folder.data, prepared.account())
    write_text(folder.tokenizer, prepared.tokenizer.to_json())
    write_json(folder.config, to_dict(config))


def summarize(live: Live) -> RunResult:
    lines = read_lines(live.folder.log("metrics"))
    losses = [line["loss"] for line in lines if "loss" in line]
    heldout = [line["heldout_loss"] for line in lines if "heldout_loss" in line]
    tail = losses[-max(1, len(losses) // 10) :]
    return RunResult(
        folder=live.folder.path,
        step=live.step,
        loss=sum(tail) / len(tail) if tail else float("nan"),
        heldout_loss=heldout[-1] if heldout else None,
        seconds=live.seconds,
        aside=live.aside,
        tokens=live.tokens,
        flops=live.flops,
    )
