"""The training loop: begin.py builds the run, then one while loop trains it.

while step < end:  batch -> gradients -> judge -> update -> log line -> hooks -> clock -> checkpoint -> signals
                                         └─> bad step: keep · skip · roll back · stop

Under torchrun every process runs this loop on its part of each batch. Loss and gradient norm are reduced over all
processes, so all judge a step alike; rank 0's clock counts, and only rank 0 writes. The other agreements between
processes are in processes.py; the distribution of the model is in isoflop/parallel.
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
from isoflop.optim.timetable import Decision
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
from isoflop.trainer.saver import NoSaver, Saver
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
from isoflop.trainer.suites import with_absolute_paths
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
    decisions: Sequence[Decision] = (),
    saved: bool = True,
) -> RunResult:
    """Train `config` into the run folder `out`, or resume the run in it.

    Args:
        hooks: called at the moments of the run (hooks.py), in order.
        prepared: the data, if the caller has opened them; otherwise `config.data` is prepared, or found prepared.
        task: overrides the task and loss that `config.task` and `config.loss` name.
        plan: written to plan.json.
        environment: written to environment.json next to the machine's description.
        resume: resume from the last checkpoint in `out`, or from the start if there is none yet.
        group: the processes that train together; each calls this with the same arguments except for the hooks.
        decisions: known moves of the run's end, for a run that repeats another one's; written to decisions.jsonl.
        saved: write checkpoints; without them a run that is stopped is lost.

    Raises:
        UserError: the folder holds another run, the data do not match, or a checkpoint is damaged.
        Restarting: a hook asked for another plan; the run is saved.
        Interrupted: a signal arrived; the run is saved, and `resume=True` continues it.
        Diverged: there were more bad steps than config.guard allows.
    """
    folder = RunFolder(Path(out), is_writer=group.first)
    if not resume and group.first:
        folder.refuse_used()

    # all checks that may refuse the run come before anything is written
    config = with_absolute_paths(resolve_runtime(config))
    check_world(config, group)
    task = task or make_task(config)
    prepared = prepared or task.prepare_data(config.data)
    check_fits(config, prepared)
    batches = task.batches(config, prepared)
    if config.guard.preflight:
        require_memory(config, task, batches, group)

    resume_command = f"isoflop train --resume {quoted(folder.path)}"
    echo = 0.0 if group.alone else ECHO
    with (
        disk_errors(f"the run folder {folder.path}", then=resume_command),
        folder.locked() as lock,
        Signals(echo) as signals,
    ):
        if group.first and not (resume and folder.config.exists()):
            launch = {"launch": group.launch} if group.launch else {}
            machine = {**describe_machine(config.runtime.device), **launch, **(environment or {})}
            write_first_files(config, folder, prepared, plan or Plan.blank(), machine, decisions)
        folder.repair()
        state = make_run(config, folder, task, prepared, batches, resume, group)
        state.signals, state.budget = signals, time_limit(state)

        saver = Saver(config.every, group) if saved else NoSaver(config.every, group)
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
    """The loop. On return all planned steps are done, and the last checkpoint is written or being written."""
    config, group, runtime, optimizers = state.config, state.layout.group, state.runtime, state.optimizers
    with_gradients, with_update = overriding(hooks, "gradients_ready"), overriding(hooks, "updated")
    update_early = updates_ahead(runtime, config.guard, state.layout, optimizers)
    budget = state.budget
    intervals = {name: getattr(config.every, name) for name in ("evaluate", "sample", "suite", "checkpoint")}
    pace = Pace(budget, intervals, config.sizes) if budget and group.first else None
    log, statistics = TrainingLog(state), Statistics(state.model)

    saved_step = state.step if state.step else -1
    if saved_step < 0 and config.guard.may_roll_back:
        saved_step = saver.save(state)
    started = time.monotonic() - state.seconds  # of the run, if it had not been interrupted
    state.model.train()
    batch = None

    while not state.done:
        lock.check()  # first: a folder that disappeared is why a checkpoint cannot be written
        saver.check()
        if state.step == state.timetable.decay_step and saved_step != state.step:
            saved_step = saver.save(state)  # an extended run resumes from here

        with step_span():
            # ---- batch ----
            watchdog.at(state.step, "reading its batch")
            batch = runtime.send(state.batches.batch(state.step, group.rank, group.size)) if batch is None else batch

            # ---- forward and backward ----
            seed_step(group, config.seed, state.step)
            watchdog.at(state.step, "in the step")
            scale, progress = state.timetable.scale(state.step), state.timetable.progress(state.step)
            statistics.save()
            micro = config.batch.micro_sequences * config.sizes.windows_per_sequence(state.step) or len(batch[0])
            device_loss = forward_backward(
                state.model, state.task, batch, micro=micro, runtime=runtime, layout=state.layout
            )
            for hook in with_gradients:
                hook.gradients_ready(state)
            device_norm = clip_gradients(state.model, config.optim.clip, state.layout.global_norm)
            numbers = runtime.fetch((device_loss, device_norm))
            if update_early:
                bad = find_inf((device_loss, device_norm))
                update(optimizers, scale, bad, step=state.step, progress=progress)
            # read and send the next batch while the device computes
            batch = runtime.send(state.batches.batch(state.step + 1, group.rank, group.size))
            loss, norm = numbers()  # waits for the device

            # ---- judge and update ----
            trouble = state.watch.judge(loss, norm)
            update_taken = trouble is None or trouble.action == "keep"
            if update_taken and not update_early:
                update(optimizers, scale, step=state.step, progress=progress)
            elif not update_taken:
                discard_step(optimizers, statistics)
            if trouble:
                log_bad_step(state, hooks, trouble, loss, norm)
                if why := must_stop(trouble, state.skips, config.guard):
                    saver.wait()
                    raise diverged(state, trouble, why)
                if trouble.action == "rollback":
                    saver.wait()
                    roll_back(state, hooks)
                    saved_step, batch, log = state.step, None, TrainingLog(state)
                    pace = Pace(budget, intervals, config.sizes) if pace else None
                    continue
            state.step += 1
            state.seconds = time.monotonic() - started
            if update_taken:
                state.average.update(state.model, state.step, state.timetable.progress(state.step), state.done)
                log.add(loss, norm, scale)

        # ---- hooks ----
        step_end = time.monotonic()
        due_now = [name for name, every in intervals.items() if state.due(every)]
        watchdog.at(state.step, "between steps")
        for hook in with_update if update_taken else ():
            hook.updated(state)
        for hook in hooks:
            hook.stepped(state)

        # ---- clock and signals, agreed on by all processes ----
        state.seconds = time.monotonic() - started
        aside_seconds = state.aside_seconds + time.monotonic() - step_end
        decision = pace.check(state.step, state.seconds, state.timetable, aside_seconds) if pace else None
        signal, decision = agree(group, signals.received, decision)
        if decision:
            state.folder.append("decisions", decision.line(time.time()), durable=True)
            state.timetable = state.timetable.decide(decision)
            for hook in hooks:
                hook.decided(state, decision)

        # ---- checkpoint ----
        if (state.due(config.every.checkpoint) and update_taken) or state.done:
            saved_step = saver.save(state)
        state.aside_seconds += time.monotonic() - step_end
        if pace and due_now:
            pace.record_cost(due_now, time.monotonic() - step_end)
        state.seconds = time.monotonic() - started
        if signal is not None:  # also after the last step: the evaluation that follows may take long
            if saved_step != state.step:
                saver.save(state)
            saver.wait()
            raise stopped(state, signal)


def stopped(state: RunState, signal: int) -> Restarting | Interrupted:
    """Record that a saved run stops because of a signal, or of a request to restart it. Returns what to raise."""
    if signal == RESTART:
        state.folder.event("abandoned", step=state.step, seconds=state.seconds)
        return Restarting(state.step, state.seconds)
    state.folder.event("stopped", step=state.step, signal=signal)
    return Interrupted(signal, state.step, state.folder.path)


def time_limit(state: RunState) -> float:
    """The run's limit of training seconds: the configuration's, or that of its last extension; 0: none."""
    limits = [line["seconds"] for line in read_lines(state.folder.log("decisions")) if "seconds" in line]
    return float(convert(float, limits[-1], "decision.seconds")) if limits else state.config.seconds
