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
from isoflop.trainer.hooks import Hook
from isoflop.trainer.pace import Pace
from isoflop.trainer.portion import check_portion
from isoflop.trainer.preflight import check_memory, dry_batch, estimate, plainly_fits
from isoflop.trainer.saver import Saver
from isoflop.trainer.state import RunState
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
        state, optimizers = make_run(config, folder, task, prepared, batches, resume, group)
        state.signals = signals
        saver = Saver(config.every, group)
        try:
            for hook in hooks:
                hook.started(state)
                for text in state.notices:
                    hook.noticed(state, text)
            watchdog = Watchdog(group, config.parallel.timeout, folder.path, state.step)
            with put_down(folder, lock, lambda: state.step), watchdog:
                if config.guard.preflight and not state.done:
                    dry_batch(state, optimizers)
                run_steps(state, optimizers, list(hooks), signals, saver, lock, watchdog)
                saver.wait()
        finally:
            saver.finish()
            for hook in hooks:
                hook.ended(state)
        folder.event("trained", step=state.step, seconds=state.seconds)
    return summarize(state)


def run_steps(
    state: RunState,
    optimizers: list[torch.optim.Optimizer],
    hooks: list[Hook],
    signals: Signals,
    saver: Saver,
    lock: Lock,
    watchdog: Watchdog,
) -> None:
    """The loop. On return every planned step is done and the last checkpoint is written or being written."""
    config, group = state.config, state.layout.group
    held_to = seconds_held_to(state)
    ahead = updates_ahead(state, optimizers)
    pace = Pace(held_to) if held_to and group.first else None
    log = Log(state)
    statistics = Statistics(state.model)
    saved = state.step if state.step else -1
    if saved < 0 and config.guard.may_roll_back:
        saved = save(state, optimizers, saver)
    before = time.monotonic() - state.seconds
    state.model.train()
    batch = None
    while not state.done:
        saver.check()
        lock.check()
        if state.step == state.timetable.decay_step and saved != state.step:
            saved = save(state, optimizers, saver)  # an extended run goes on from here
        watchdog.at(state.step, "reading its batch")
        batch = state.runtime.send(state.batches.batch(state.step, group.rank, group.size)) if batch is None else batch
        seed_step(group, config.seed, state.step)
        watchdog.at(state.step, "in the step")
        scale = state.timetable.scale(state.step)
        statistics.keep()
        on_device = find_gradients(
            state.model,
            state.task,
            batch,
            micro=config.batch.micro_sequences or len(batch[0]),
            runtime=state.runtime,
            clip=config.optim.clip,
            layout=state.layout,
        )
        numbers = state.runtime.fetch(on_device)
        if ahead:
            update(optimizers, scale, spoilt_by(on_device))
        # read, and sent, while the device works
        batch = state.runtime.send(state.batches.batch(state.step + 1, group.rank, group.size))
        loss, norm = numbers()  # here they are waited for
        trouble = state.watch.look(loss, norm)
        taken = trouble is None or trouble.action == "keep"
        if taken and not ahead:
            update(optimizers, scale)
        elif not taken:
            leave_out(optimizers, statistics)
        if trouble:
            put_on_record(state, hooks, trouble, loss, norm)
            if why := must_stop(trouble, state.skips, config.guard):
                saver.wait()
                raise diverged(state, trouble, why)
            if trouble.action == "rollback":
                saver.wait()
                go_back(state, optimizers, hooks)
                saved, batch, log = state.step, None, Log(state)
                pace = Pace(held_to) if pace else None
                continue
        state.step += 1
        state.seconds = time.monotonic() - before
        if taken:
            log.add(loss, norm, scale)
        stepped_at = time.monotonic()
        watchdog.at(state.step, "beside the steps")
        for hook in hooks:
            hook.stepped(state)
        state.seconds = time.monotonic() - before
        decision = pace.look(state.step, state.seconds, state.timetable) if pace else None
        signal, decision = agree(group, signals.received, decision)
        if decision:
            state.folder.append("decisions", {**decision.to_dict(), "time": time.time()}, durable=True)
            state.timetable = state.timetable.decide(decision)
            for hook in hooks:
                hook.decided(state, decision)
        if (state.due(config.every.checkpoint) and taken) or state.done:
            saved = save(state, optimizers, saver)
        state.aside += time.monotonic() - stepped_at
        state.seconds = time.monotonic() - before
        if signal is not None:  # also after the last step: the measuring that comes then may take long
            if saved != state.step:
                save(state, optimizers, saver)
            saver.wait()
            state.folder.event("stopped", step=state.step, signal=signal)
            raise Interrupted(signal, state.step, state.folder.path)


def updates_ahead(state: RunState, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """Whether the update is launched before the host has seen the step's numbers, so that a GPU need not wait for it:
    the device itself leaves a step out that is not finite. Spikes only the host can judge, and where weights are
    divided (FSDP) no optimiser is told by the device."""
    config, device = state.config, state.runtime.device.type
    return device == "cuda" and config.guard.spike == "keep" and not state.layout.together and heed(optimizers)


def put_on_record(state: RunState, hooks: Sequence[Hook], trouble: Trouble, loss: float, norm: float) -> None:
    """Write a bad step down, before anything is done about it, and tell everybody."""
    steps = state.config.guard.pass_over if trouble.action == "rollback" else 1
    line: dict[str, Any] = {
        "step": state.step + 1,
        "kind": trouble.kind,
        "action": trouble.action,
        "reason": trouble.reason,
        "loss": loss if math.isfinite(loss) else None,
        "grad_norm": norm if math.isfinite(norm) else None,
        "tokens": state.batches.tokens(state.step + steps) - state.batches.tokens(state.step),
        "time": time.time(),
    }
    if trouble.action == "rollback":
        line["first"], line["sequences"] = state.batches.span(state.step, steps)
    state.folder.append("skips", line, durable=True)
    state.skips.append(line)
    for hook in hooks:
        hook.troubled(state, line)


def diverged(state: RunState, trouble: Trouble, why: str) -> Diverged:
    steps = checkpoint.steps(state.folder.checkpoints)
    bad = {line["step"] for line in state.skips if line["action"] != "keep"}
    proven = [step for step in steps if not bad.issuperset(range(step + 1, state.step + 2))]
    there = "there is no checkpoint yet"
    if steps:
        there = f"the last checkpoint, {checkpoint.at_step(state.folder.checkpoints, steps[-1])}, is from before that"
        if steps[-1:] != proven[-1:]:
            there += ", but no step from it on was good and it may be what is wrong"
            there += f"; one from that of step {proven[-1]} on was" if proven else ""
    return Diverged(
        f"step {state.step + 1}: {trouble.reason}; {why}; {there}: start again with a lower optim.lr and "
        "optim.matrix_lr"
    )


def go_back(state: RunState, optimizers: list[torch.optim.Optimizer], hooks: Sequence[Hook]) -> None:
    """Back to the last checkpoint; what is on record to be passed over is not read again. The clock runs on: the time
    was spent."""
    at = state.step
    last, said = last_checkpoint(state.folder, state.layout.group)
    put_back(state, optimizers, last)
    state.model.train()
    state.folder.event("rolled back", step=state.step, from_step=at)
    for hook in hooks:
        for text in said:
            hook.noticed(state, text)


def seconds_held_to(state: RunState) -> float:
    """The seconds that the run must keep to: the configuration's, or those of its last extension; 0: none."""
    extended = [line["seconds"] for line in read_lines(state.folder.log("decisions")) if "seconds" in line]
    return float(convert(float, extended[-1], "decision.seconds")) if extended else state.config.seconds


class Log:
    """Training lines, of the steps that were taken. Their `loss` is what is trained on, auxiliary losses and smoothing
    and all; held-out lines have plain cross-entropy."""

    def __init__(self, state: RunState) -> None:
        self.state = state
        self.marks: deque[tuple[int, float]] = deque([(state.tokens, state.seconds - state.aside)], maxlen=RATE_LINES)

    def add(self, loss: float, norm: float, scale: float) -> None:
        state = self.state
        self.marks.append((state.tokens, state.seconds - state.aside))
        state.line = {
            "step": state.step,
            "loss": loss,
            "grad_norm": norm,
            "lr": state.config.optim.lr * scale,
            "tokens": state.tokens,
            "seconds": round(state.seconds, 4),
            "flops": state.flops,
            "tokens_per_second": round(self.rate(), 1),
        }
        if state.step % state.config.every.log == 0 or state.done:
            state.folder.append("metrics", state.line)

    def rate(self) -> float:
        """Tokens per second of the steps over the last RATE_LINES lines, what is done beside them left out; 0 before
        there are two."""
        (tokens, seconds), (last_tokens, last_seconds) = self.marks[0], self.marks[-1]
        return (last_tokens - tokens) / (last_seconds - seconds) if last_seconds > seconds else 0.0


def save(state: RunState, optimizers: list[torch.optim.Optimizer], saver: Saver) -> int:
    """Have a checkpoint written, and those dropped that are no longer wanted.

    After a step that was left out nothing is dropped: the weights may be what is wrong, and the older ones good."""
    pending = checkpoint.take(
        state.folder.checkpoints,
        step=state.step,
        model=state.model,
        optimizers=optimizers,
        config=to_dict(state.config),
        tokenizer=state.prepared.tokenizer.to_json(),
        fingerprint=state.prepared.fingerprint,
        progress={
            "seconds": state.seconds,
            "aside": state.aside,
            "tokens": state.tokens,
            "recent": state.watch.state(),
        },
        copied=saver.background,
    )
    decay = state.timetable.decay_step
    doubtful = any(line["step"] == state.step and line["action"] != "keep" for line in state.skips)
    if doubtful:
        saver.wait()  # one that is still being written counts too
    also = checkpoint.steps(state.folder.checkpoints) if doubtful else [] if decay is None else [decay]
    saver.save(pending, state.heldout, also)
    return state.step


def summarize(state: RunState) -> RunResult:
    lines = read_lines(state.folder.log("metrics"))
    losses = [line["loss"] for line in lines if "loss" in line]
    heldout = [line["heldout_loss"] for line in lines if "heldout_loss" in line]
    tail = losses[-max(1, len(losses) // 10) :]
    return RunResult(
        folder=state.folder.path,
        step=state.step,
        loss=sum(tail) / len(tail) if tail else float("nan"),
        heldout_loss=heldout[-1] if heldout else None,
        seconds=state.seconds,
        aside=state.aside,
        tokens=state.tokens,
        flops=state.flops,
    )
