"""The state of a run: what begin.py makes, loop.py moves on step by step, and hooks see."""

import contextlib
from dataclasses import dataclass, field

import torch

from isoflop.data.loader import Batches
from isoflop.data.manifest import Data
from isoflop.model.build import Model
from isoflop.optim.schedules import Timetable
from isoflop.parallel.pause import stoppable
from isoflop.parallel.shard import Layout
from isoflop.records import RunFolder, SkipLine, TrainingLine
from isoflop.runtime import Runtime
from isoflop.trainer.config import GuardConfig, RunConfig
from isoflop.trainer.guard import Watch
from isoflop.trainer.signals import Signals
from isoflop.trainer.task import Task


@dataclass
class RunState:
    """A run while it runs.

    Attributes:
        step: optimiser steps done.
        seconds: of training so far, without the time between an interruption and its resumption.
        budget: seconds of training that the run is held to; 0: none.
        aside: of these seconds, those not spent on steps: on measuring, sampling, checkpoints.
        layout: how the model lies over the processes.
        flops: 6 N D so far, N as in model/count.py's "6n", with what the loss adds to the model.
        line: the newest training line; None before the first step, and a step whose update was skipped has none.
        watch: judges each step's loss and gradient norm.
        skips: bad steps so far: the lines of skips.jsonl.
        heldout: (step, loss) of the held-out measurements so far.
        notices: lines for the user, before the first step.
        signals: that cut measuring and sampling short; None: nothing does.
    """

    config: RunConfig
    folder: RunFolder
    model: Model
    optimizers: list[torch.optim.Optimizer]
    task: Task
    prepared: Data
    batches: Batches
    runtime: Runtime
    timetable: Timetable
    flops_per_token: float
    layout: Layout
    step: int = 0
    seconds: float = 0.0
    budget: float = 0.0
    aside: float = 0.0
    line: TrainingLine | None = None
    watch: Watch = field(default_factory=lambda: Watch(GuardConfig()))
    skips: list[SkipLine] = field(default_factory=list)
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
        once (signals.Signals.cut_short), in several at the next pause between its parts (parallel/pause.py).

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
