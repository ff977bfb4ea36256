"""The training loop: begin.py builds the run, then one visible while loop trains it.

while step < end:  batch -> gradients -> judge -> update -> line -> hooks -> clock -> checkpoint -> signals
                                         └─> bad step: keep · skip · roll back · stop

Under torchrun every process runs this loop on its part of each batch. Loss and gradient norm are reduced over all
processes, so that all judge a step alike; rank 0's clock counts, and only rank 0 writes. What else they have to agree
on is in processes.py; which process holds what is in isoflop/parallel.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isoflop.config import convert
from isoflop.data.manifest import Data
from isoflop.errors import quoted
from isoflop.files import disk_errors
from isoflop.optim.build import clip_gradients
from isoflop.optim.schedules import Decision
from isoflop.parallel.mesh import ALONE, Group
from isoflop.parallel.watch import Watchdog
from isoflop.records import Lock, Plan, RunFolder, read_lines
from isoflop.runtime import describe_machine
from isoflop.trainer.begin import check_fits, make_run, write_first_files
from isoflop.trainer.config import RunConfig, resolve_runtime
from isoflop.trainer.guard import must_stop
from isoflop.trainer.hooks import Hook, overriding
from isoflop.trainer.log import TrainingLog
from isoflop.trainer.memory.preflight import dry_batch, require_memory
from isoflop.trainer.pace import Pace
from isoflop.trainer.processes import agree, check_world, seed_step
from isoflop.trainer.recovery import diverged, log_bad_step, record_failure, roll_back
from isoflop.trainer.result import RunResult, summarize
from isoflop.trainer.saver import NotSaved, Saver
from isoflop.trainer.signals import RESTART, Interrupted, Restarting, Signals
from isoflop.trainer.state import RunState
from isoflop.trainer.step import (
    Statistics,
    discard_step,
    find_inf,
    forward_backward,
    step_span,
    update,
    updates_ahead,
)
from isoflop.trainer.task import Task, make_task

ECHO = 2.0  # seconds in which one Ctrl-C reaches a process twice, from the terminal and from torchrun


def train(
    config: RunConfig,
    out: Path | str,
    *,
    hooks: Sequence[Hook] = (),
    prepared: Data | None = None,
    task: Task | None = None,
    plan: Plan | None = None,
    environment: dict[str, Any] | None = None,
    resume: bool = False,
    group: Group = ALONE,
    decided: Sequence[Decision] = (),
    saved: bool = True,
) -> RunResult:
    """Train `config` into the run folder `out`, or resume the run in it.

    Args:
        hooks: called at the moments of the run (hooks.py), in order.
        prepared: the data, if the caller has it open already; else `config.data` is prepared (or found prepared).
        task: what is learned, if not just what `config.task` and `config.loss` name.
        plan: kept in plan.json: what was expected of this run.
        environment: kept in environment.json next to the machine's description.
        resume: from the last checkpoint of `out` (from nothing if it has none yet).
        group: the processes that train it together; each calls this with the same arguments but for the hooks.
        decided: how the end moves on the way, of a run whose course is another one's; kept in decisions.jsonl.
        saved: write checkpoints; without them a run that is stopped is lost.

    Raises:
        UserError: the folder holds another run, the data does not match, a checkpoint is damaged.
        Restarting: a hook asked for another plan; the run is saved.
        Interrupted: a signal arrived; the run is saved, and `resume=True` continues it.
        Diverged: loss or gradient went wrong more often than config.guard allows.
    """
    folder = RunFolder(Path(out), is_writer=group.first)
    if not resume and group.first:
        folder.refuse_used()

    # every check that may refuse the run comes before anything is written
    config = resolve_runtime(config)
    check_world(config, group)
    task = task or make_task(config)
    prepared = prepared or task.prepare_data(config.data)
    check_fits(config, prepared)
    batches = task.batches(config, prepared)
    if config.guard.preflight:
        require_memory(config, task, batches, group)

    again = f"isoflop train --resume {quoted(folder.path)}"
    echo = 0.0 if group.alone else ECHO
    with disk_errors(f"the run folder {folder.path}", then=again), folder.locked() as lock, Signals(echo) as signals:
        if group.first and not (resume and folder.config.exists()):
            launched = {"launch": group.launch} if group.launch else {}
            about = {**describe_machine(config.runtime.device), **launched, **(environment or {})}
            write_first_files(config, folder, prepared, plan or Plan.nothing(), about, decided)
        folder.repair()
        state = make_run(config, folder, task, prepared, batches, resume, group)
        state.signals, state.budget = signals, seconds_held_to(state)

        saver = Saver(config.every, group) if saved else NotSaved(config.every, group)
        try:
            for hook in hooks:
                hook.started(state)
                for text in state.notices:
                    hook.noticed(state, text)
            watchdog = Watchdog(group, config.parallel.timeout, folder.path, state.step)
            with record_failure(folder, lock, lambda: state.step), watchdog:
                if config.guard.preflight and not state.done:
                    dry_batch(state)
                run_steps(state, hooks, signals, saver, lock, watchdog)
                saver.wait()
        finally:
            saver.finish()
            for hook in hooks:
                hook.ended(state)
        folder.event("trained", step=state.step, seconds=state.seconds)
    return summarize(state)


def run_steps(
    state: RunState, hooks: Sequence[Hook], signals: Signals, saver: Saver, lock: Lock, watchdog: Watchdog
) -> None:
    """The loop. On return all planned steps are done and the last checkpoint is written or being written."""
    config, group, runtime, optimizers = state.config, state.layout.group, state.runtime, state.optimizers
    with_gradients, with_update = overriding(hooks, "gradients_ready"), overriding(hooks, "updated")
    ahead = updates_ahead(runtime, config.guard, state.layout, optimizers)
    budget = state.budget
    beside = {name: getattr(config.every, name) for name in ("evaluate", "sample", "suite", "checkpoint")}
    pace = Pace(budget, beside) if budget and group.first else None
    log, statistics = TrainingLog(state), Statistics(state.model)
    saved = state.step if state.step else -1
    if saved < 0 and config.guard.may_roll_back:
        saved = saver.save(state)
    before = time.monotonic() - state.seconds
    state.model.train()
    batch = None

    while not state.done:
        saver.check()
        lock.check()
        if state.step == state.timetable.decay_step and saved != state.step:
            saved = saver.save(state)  # an extended run resumes from here

        with step_span():
            # ---- batch ----
            watchdog.at(state.step, "reading its batch")
            batch = runtime.send(state.batches.batch(state.step, group.rank, group.size)) if batch is None else batch

            # ---- forward and backward ----
            seed_step(group, config.seed, state.step)
            watchdog.at(state.step, "in the step")
            scale = state.timetable.scale(state.step)
            statistics.keep()
            micro = config.batch.micro_sequences or len(batch[0])
            device_loss = forward_backward(
                state.model, state.task, batch, micro=micro, runtime=runtime, layout=state.layout
            )
            for hook in with_gradients:
                hook.gradients_ready(state)
            device_norm = clip_gradients(state.model, config.optim.clip, state.layout.whole)
            numbers = runtime.fetch((device_loss, device_norm))
            if ahead:
                update(optimizers, scale, find_inf((device_loss, device_norm)))
            # read and send the next batch while the device computes
            batch = runtime.send(state.batches.batch(state.step + 1, group.rank, group.size))
            loss, norm = numbers()  # waits for the device

            # ---- judge and update ----
            trouble = state.watch.look(loss, norm)
            taken = trouble is None or trouble.action == "keep"
            if taken and not ahead:
                update(optimizers, scale)
            elif not taken:
                discard_step(optimizers, statistics)
            if trouble:
                log_bad_step(state, hooks, trouble, loss, norm)
                if why := must_stop(trouble, state.skips, config.guard):
                    saver.wait()
                    raise diverged(state, trouble, why)
                if trouble.action == "rollback":
                    saver.wait()
                    roll_back(state, hooks)
                    saved, batch, log = state.step, None, TrainingLog(state)
                    pace = Pace(budget, beside) if pace else None
                    continue
            state.step += 1
            state.seconds = time.monotonic() - before
            if taken:
                log.add(loss, norm, scale)

        # ---- hooks ----
        step_ended = time.monotonic()
        due = [name for name, every in beside.items() if state.due(every)]
        watchdog.at(state.step, "beside the steps")
        for hook in with_update if taken else ():
            hook.updated(state)
        for hook in hooks:
            hook.stepped(state)

        # ---- clock and signals, agreed on by all processes ----
        state.seconds = time.monotonic() - before
        aside = state.aside + time.monotonic() - step_ended
        decision = pace.look(state.step, state.seconds, state.timetable, aside) if pace else None
        signal, decision = agree(group, signals.received, decision)
        if decision:
            state.folder.append("decisions", decision.line(time.time()), durable=True)
            state.timetable = state.timetable.decide(decision)
            for hook in hooks:
                hook.decided(state, decision)

        # ---- checkpoint ----
        if (state.due(config.every.checkpoint) and taken) or state.done:
            saved = saver.save(state)
        state.aside += time.monotonic() - step_ended
        if pace and due:
            pace.spent(due, time.monotonic() - step_ended)
        state.seconds = time.monotonic() - before
        if signal is not None:  # also after the last step: the evaluation that follows may take long
            if saved != state.step:
                saver.save(state)
            saver.wait()
            if signal == RESTART:
                state.folder.event("abandoned", step=state.step, seconds=state.seconds)
                raise Restarting(state.step, state.seconds)
            state.folder.event("stopped", step=state.step, signal=signal)
            raise Interrupted(signal, state.step, state.folder.path)


def seconds_held_to(state: RunState) -> float:
    """The run's time limit in seconds: the configuration's, or that of its last extension; 0: none."""
    extended = [line["seconds"] for line in read_lines(state.folder.log("decisions")) if "seconds" in line]
    return float(convert(float, extended[-1], "decision.seconds")) if extended else state.config.seconds
