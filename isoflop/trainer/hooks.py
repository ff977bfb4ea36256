"""What may happen beside the steps of a run: measuring, sampling, telling somebody.

A hook is handed to `train` by whoever starts the run. It sees a `Live`, may add lines to the run folder, and must not
change the model, the generators or the schedule: a run with hooks has the same bits as one without. Where several
processes train one model, what measures and samples is a hook in each of them, and what talks in the first alone.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch

from isoflop.data.loader import Batches
from isoflop.data.prepared import Data
from isoflop.model.build import Model
from isoflop.optim.schedules import Decision, Timetable
from isoflop.parallel.mesh import CutShort
from isoflop.parallel.pause import stoppable
from isoflop.parallel.shard import Layout
from isoflop.records import RunFolder, read_lines
from isoflop.runtime import Runtime
from isoflop.trainer.config import GuardConfig, RunConfig
from isoflop.trainer.guard import Signals
from isoflop.trainer.task import Task
from isoflop.trainer.trouble import Watch


@dataclass
class Live:
    """A run while it runs.

    Attributes:
        step: optimiser steps done.
        seconds: of training so far, time spent down left out.
        aside: of these seconds, those spent beside the steps: on measuring, sampling, checkpoints.
        layout: how the model lies over the processes.
        flops: 6 N D so far, N as in model/count.py's "6n", with what the loss adds to the model.
        line: the newest training line; None before the first step, and a step left out has none.
        watch: what looks at each step's numbers.
        skips: what went wrong so far: the lines of skips.jsonl.
        heldout: (step, loss) of the held-out measurements so far.
        notices: what a person should know before the first step.
        signals: those that may cut measuring and sampling short; None: nothing may.
    """

    config: RunConfig
    folder: RunFolder
    model: Model
    task: Task
    prepared: Data
    batches: Batches
    runtime: Runtime
    timetable: Timetable
    flops_per_token: float
    layout: Layout
    step: int = 0
    seconds: float = 0.0
    aside: float = 0.0
    line: dict[str, Any] | None = None
    watch: Watch = field(default_factory=lambda: Watch(GuardConfig()))
    skips: list[dict[str, Any]] = field(default_factory=list)
    heldout: list[tuple[int, float]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    signals: Signals | None = None

    @property
    def tokens(self) -> int:
        return self.batches.tokens(self.step)

    @property
    def flops(self) -> float:
        return self.tokens * self.flops_per_token

    @property
    def done(self) -> bool:
        return self.step >= self.timetable.total_steps

    def may_be_cut_short(self, by_all: bool = True) -> contextlib.AbstractContextManager[None]:
        """For what a hook does at length and leaves nothing half done of: a signal raises CutShort, in one process at
        once (guard.Signals.cut_short), in several at the next pause between its parts (parallel/pause.py).

        Args:
            by_all: all processes enter this and do the same; else the first one does it alone.
        """
        signals, group = self.signals, self.layout.group
        if signals is None:
            return contextlib.nullcontext()
        if group.alone or not by_all:
            return signals.cut_short()
        return stoppable(group, lambda: signals.received is not None)

    def due(self, every: int) -> bool:
        """Whether something that happens every `every` steps (0: never) and at the end happens now."""
        return every > 0 and (self.step % every == 0 or self.done)


class Hook:
    """The moments of a run. Each does nothing unless a hook says otherwise."""

    def started(self, live: Live) -> None:
        """Before the first step of this process, after a checkpoint was loaded if there was one."""

    def stepped(self, live: Live) -> None:
        """After each step, taken or left out."""

    def troubled(self, live: Live, line: dict[str, Any]) -> None:
        """After a bad step was put on record (a line of skips.jsonl) and before anything is done about it."""

    def noticed(self, live: Live, text: str) -> None:
        """When there is something that a person should know: one line."""

    def decided(self, live: Live, decision: Decision) -> None:
        """After the clock moved the end of the run."""

    def measured(self, live: Live, line: dict[str, Any]) -> None:
        """After a held-out line was written."""

    def ended(self, live: Live) -> None:
        """After the last step, or when the run stops early, whatever the reason."""


class HeldOut(Hook):
    """Measures held-out loss every `config.every.evaluate` steps and tells the other hooks. The line also has what the
    model's parts say of the last held-out batch, such as a mixture's `load_entropy`. A measurement that a signal cut
    short is made when the run goes on."""

    def __init__(self, listeners: tuple[Hook, ...] = ()) -> None:
        self.listeners = listeners

    def started(self, live: Live) -> None:
        if live.step and all(step != live.step for step, _ in live.heldout):
            self.stepped(live)

    def stepped(self, live: Live) -> None:
        if not live.due(live.config.every.evaluate):
            return
        try:
            with live.may_be_cut_short():
                found = live.task.measure(
                    live.model, live.prepared, live.runtime, live.config.evaluate_tokens, live.layout.group
                )
        except CutShort:
            return
        line = {
            "step": live.step,
            "tokens": live.tokens,
            "seconds": round(live.seconds, 3),
            "flops": live.flops,
            "heldout_loss": found.nats_per_token,
            "heldout_bits_per_byte": found.bits_per_byte,
            **live.model.mean_readings(),
        }
        live.folder.append("metrics", line)
        live.heldout.append((live.step, found.nats_per_token))
        for listener in self.listeners:
            listener.measured(live, line)


class Samples(Hook):
    """Writes what the model says to the same prompts every `config.every.sample` steps.

    A task draws its samples from a generator of their own, so that the run's own generators do not notice. Samples that
    a signal cut short are drawn when the run goes on.
    """

    def started(self, live: Live) -> None:
        group, lines = live.layout.group, live.folder.log("samples")
        missing = group.first and all(line.get("step") != live.step for line in read_lines(lines))
        if live.step and group.broadcast(missing):
            self.stepped(live)

    def stepped(self, live: Live) -> None:
        if not live.due(live.config.every.sample):
            return
        lines, layout = [], live.layout
        try:
            with live.may_be_cut_short():
                pass  # a signal that came to another process
            if not (layout.together or live.folder.mine):
                return
            with live.may_be_cut_short(by_all=layout.together), torch.no_grad(), live.runtime.autocast():
                for line in live.task.samples(live.model, live.prepared, live.config):
                    lines.append(line)
                    layout.group.pause()
        except CutShort:
            return
        for line in lines:
            live.folder.append("samples", {"step": live.step, **line})
