"""Handling a step that guard.py judged bad: record it, roll back, or end the run."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence

from isoflop import checkpoint
from isoflop.errors import UserError
from isoflop.parallel.failures import Lost
from isoflop.records import Lock, RunFolder, SkipLine
from isoflop.trainer.begin import last_checkpoint, restore
from isoflop.trainer.guard import Trouble
from isoflop.trainer.hooks import Hook
from isoflop.trainer.state import RunState


class Diverged(Exception):
    """There were more bad steps than config.guard allows. The last checkpoint is from before them."""

    exit_code = 1


def log_bad_step(state: RunState, hooks: Sequence[Hook], trouble: Trouble, loss: float, norm: float) -> None:
    """Write a line of skips.jsonl, before any action on the step, and call the hooks."""
    steps = state.config.guard.pass_over if trouble.action == "rollback" else 1
    first, sequences = state.batches.span(state.step, steps) if trouble.action == "rollback" else (None, None)
    line = SkipLine(
        step=state.step + 1,
        kind=trouble.kind,
        action=trouble.action,
        reason=trouble.reason,
        loss=loss if math.isfinite(loss) else None,
        grad_norm=norm if math.isfinite(norm) else None,
        tokens=state.batches.tokens(state.step + steps) - state.batches.tokens(state.step),
        time=time.time(),
        first=first,
        sequences=sequences,
    )

    state.folder.append("skips", line, durable=True)
    state.skips.append(line)
    for hook in hooks:
        hook.troubled(state, line)


def roll_back(state: RunState, hooks: Sequence[Hook]) -> None:
    """Load the last checkpoint. Data recorded as skipped are not read again. The clock is not set back, since the time
    was spent."""
    from_step = state.step
    last, notices = last_checkpoint(state.folder, state.layout.group)
    restore(state, last)
    if state.probe is not None and not state.probe.restore(last):
        state.probe = None
    state.model.train()
    state.folder.event("rolled back", step=state.step, from_step=from_step)
    for hook in hooks:
        for text in notices:
            hook.noticed(state, text)


def diverged(state: RunState, trouble: Trouble, why: str) -> Diverged:
    """The error that ends a run. It names the last checkpoint, and the last one that a good step followed.

    Args:
        why: the rule of config.guard that stops the run (guard.must_stop).
    """
    steps = checkpoint.steps(state.folder.checkpoints)
    bad = {line.step for line in state.skips if line.action != "keep"}
    trusted = [step for step in steps if not bad.issuperset(range(step + 1, state.step + 2))]

    saved = "there is no checkpoint yet"
    if steps:
        saved = f"the last checkpoint, {checkpoint.at_step(state.folder.checkpoints, steps[-1])}, is from before that"
        if steps[-1:] != trusted[-1:]:
            saved += ", but no step after it was good, so its weights may be at fault"
            saved += f"; the one of step {trusted[-1]} was followed by a good step" if trusted else ""
    return Diverged(
        f"step {state.step + 1}: {trouble.reason}; {why}; {saved}: start again with a lower optim.lr and "
        "optim.matrix_lr"
    )


@contextlib.contextmanager
def record_failure(folder: RunFolder, lock: Lock, current_step: Callable[[], int]) -> Iterator[None]:
    """A context that records in events.jsonl why the run ends early, if its folder still exists. Signals and hanging
    processes are recorded where they are detected.

    Args:
        current_step: returns the run's current step.
    """
    try:
        yield
    except (Diverged, Lost, UserError, OSError) as error:
        event = {Diverged: "diverged", Lost: "lost"}.get(type(error), "failed")
        with contextlib.suppress(UserError, OSError):
            lock.check()
            folder.event(event, step=current_step(), reason=str(error))
        raise
