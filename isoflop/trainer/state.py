"""The state of a run: begin.py creates it, loop.py advances it step by step, and hooks read it."""

import contextlib
from dataclasses import dataclass, field

import torch

from isoflop.data.loader import Batches
from isoflop.data.manifest import Data
from isoflop.model.build import Model
from isoflop.optim.timetable import Timetable
from isoflop.parallel.pause import stoppable
from isoflop.parallel.shard import Layout
from isoflop.records import RunFolder, SkipLine, TrainingLine
from isoflop.runtime import Runtime
from isoflop.trainer.average import WeightAverage
from isoflop.trainer.config import GuardConfig, RunConfig
from isoflop.trainer.decay_probe import DecayProbe
from isoflop.trainer.guard import Watch
from isoflop.trainer.signals import Signals
from isoflop.trainer.task import Task


@dataclass
class RunState:
    """A run while it runs.

    Attributes:
        step: optimiser steps done.
        seconds: of training so far, without the time between an interruption and its resumption.
        budget: the limit of training seconds; 0: none.
        aside_seconds: the part of `seconds` not spent on steps but on evaluation, samples and checkpoints.
        layout: how the model is distributed over the processes.
        average: of the weights, if config.average asks for one.
        flops: 6 N D so far, N as in model/count.py's "6n", with the modules that the loss adds to the model.
        line: the newest training line; None before the first step. A step whose update was discarded has none.
        watch: judges each step's loss and gradient norm.
        skips: bad steps so far: the lines of skips.jsonl.
        heldout: (step, loss) of the held-out measurements so far.
        notices: lines for the user, before the first step.
        signals: interrupt evaluation and sampling; None: nothing does.
        probe: the average of the weights that running forecasts measure; None: there is none.
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
    average: WeightAverage
    step: int = 0
    seconds: float = 0.0
    budget: float = 0.0
    aside_seconds: float = 0.0
    line: TrainingLine | None = None
    watch: Watch = field(default_factory=lambda: Watch(GuardConfig()))
    skips: list[SkipLine] = field(default_factory=list)
    heldout: list[tuple[int, float]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    signals: Signals | None = None
    probe: DecayProbe | None = None

    @property
    def tokens(self) -> int:
        return self.batches.tokens(self.step)

    @property
    def flops(self) -> float:
        return self.tokens * self.flops_per_token

    @property
    def done(self) -> bool:
        return self.step >= self.timetable.total_steps

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the model has the weights that an evaluation is of: their average, if there is one. To be
        entered outside `may_be_cut_short`, which may end its work anywhere."""
        return self.average.applied(self.model)

    def may_be_cut_short(self, by_all: bool = True) -> contextlib.AbstractContextManager[None]:
        """A context for long work of a hook that can be abandoned without a trace: a signal raises CutShort, with one
        process at once (signals.Signals.cut_short), with several at the next pause in the work (parallel/pause.py).

        Args:
            by_all: all processes enter this context and do the same work; otherwise rank 0 does it alone.
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
