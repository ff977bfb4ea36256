"""The run itself: everything is made (begin.py), then one visible while loop.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isoflop import checkpoint
from isoflop.config import convert, to_dict
from isoflop.data.prepared import Data
from isoflop.files import disk_errors
from isoflop.parallel.mesh import ALONE, Group
from isoflop.parallel.watch import Watchdog
from isoflop.records import Lock, RunFolder, read_lines
from isoflop.runtime import describe_machine, make_runtime
from isoflop.trainer.begin import check_fits, last_checkpoint, make_run, put_back, resolve_runtime, write_first_files
from isoflop.trainer.config import RunConfig
from isoflop.trainer.guard import Diverged, Interrupted, Signals, put_down
from isoflop.trainer.hooks import Hook, Live
from isoflop.trainer.pace import Pace
from isoflop.trainer.portion import check_portion
from isoflop.trainer.preflight import check_memory, dry_batch, estimate, plainly_fits
from isoflop.trainer.saver import Saver
from isoflop.trainer.step import Statistics, find_gradients, heed, leave_out, spoilt_by, update
from isoflop.trainer.task import Task, make_task
from isoflop.trainer.together import agree, check_world, seed_step
from isoflop.trainer.trouble import Trouble, must_stop

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
    if config.guard.preflight and not group.alone:
        check_portion(config, task, batches, group)
    elif config.guard.preflight and not plainly_fits(config):
        runtime = make_runtime(config.runtime.device, config.runtime.dtype, config.runtime.threads)
        check_memory(config, estimate(config, task, batches, runtime), config.runtime.device)
    again = f"isoflop train --resume {folder.path}"
    echo = 0.0 if group.alone else ECHO
    with disk_errors(f"the run folder {folder.path}", then=again), folder.locked() as lock, Signals(echo) as signals:
        if group.first and not (resume and folder.config.exists()):
            launched = {"launch": group.launch} if group.launch else {}
            about = {**describe_machine(config.runtime.device), **launched, **(environment or {})}
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
            watchdog = Watchdog(group, config.parallel.timeout, folder.path, live.step)
            with put_down(folder, lock, lambda: live.step), watchdog:
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
    ahead = updates_ahead(live, optimizers)
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
        batch = live.runtime.send(live.batches.batch(live.step, group.rank, group.size)) if batch is None else batch
        seed_step(group, config.seed, live.step)
        watchdog.at(live.step, "in the step")
        scale = live.timetable.scale(live.step)
        statistics.keep()
        on_device = find_gradients(
            live.model,
            live.task,
            batch,
            micro=config.batch.micro_sequences or len(batch[0]),
            runtime=live.runtime,
            clip=config.optim.clip,
            layout=live.layout,
        )
        numbers = live.runtime.fetch(on_device)
        if ahead:
            update(optimizers, scale, spoilt_by(on_device))
        # read, and sent, while the device works
        batch = live.runtime.send(live.batches.batch(live.step + 1, group.rank, group.size))
        loss, norm = numbers()  # here they are waited for
        trouble = live.watch.look(loss, norm)
        taken = trouble is None or trouble.action == "keep"
        if taken and not ahead:
            update(optimizers, scale)
        elif not taken:
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
        if signal is not None:  # also after the last step: the measuring that comes then may take long
            if saved != live.step:
                save(live, optimizers, saver)
            saver.wait()
            live.folder.event("stopped", step=live.step, signal=signal)
            raise Interrupted(signal, live.step, live.folder.path)


def updates_ahead(live: Live, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """Whether the update is launched before the host has seen the step's numbers, so that a GPU need not wait for it:
    the device itself leaves a step out that is not finite. Spikes only the host can judge, and where weights are
    divided (FSDP) no optimiser is told by the device."""
    config, device = live.config, live.runtime.device.type
    return device == "cuda" and config.guard.spike == "keep" and not live.layout.together and heed(optimizers)


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
    steps = checkpoint.steps(live.folder.checkpoints)
    bad = {line["step"] for line in live.skips if line["action"] != "keep"}
    proven = [step for step in steps if not bad.issuperset(range(step + 1, live.step + 2))]
    there = "there is no checkpoint yet"
    if steps:
        there = f"the last checkpoint, {checkpoint.at_step(live.folder.checkpoints, steps[-1])}, is from before that"
        if steps[-1:] != proven[-1:]:
            there += ", but no step from it on was good and it may be what is wrong"
            there += f"; one from that of step {proven[-1]} on was" if proven else ""
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
    if doubtful:
        saver.wait()  # one that is still being written counts too
    also = checkpoint.steps(live.folder.checkpoints) if doubtful else [] if decay is None else [decay]
    saver.save(pending, live.heldout, also)
    return live.step


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
