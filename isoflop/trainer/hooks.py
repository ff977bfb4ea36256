"""Hooks: work between the steps of a run, such as evaluation, sampling and reporting.

Hooks are passed to `train`. A hook reads the run's state (state.py), may add lines to the run folder, and must not
change the model, the random generators or the schedule: a run with hooks has the same bits as one without. If several
processes train one model, a hook that evaluates or samples runs on all of them, and one that prints on rank 0 only.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from isoflop import checkpoint
from isoflop.measure import HeldOut as Measured
from isoflop.optim.timetable import Decision
from isoflop.parallel.failures import CutShort
from isoflop.records import ForecastLine, HeldOutLine, SkipLine, read_lines
from isoflop.runtime import free_memory
from isoflop.trainer.decay_probe import ADDITIONS, DecayProbe
from isoflop.trainer.state import RunState

SAMPLES_SHARE = 0.03  # of a run's time limit, for each set of samples


class Hook:
    """The moments of a run. Each does nothing unless a hook overrides it.

    In a step they come in the order `gradients_ready`, `troubled` (of a bad step), `updated` (unless it was discarded),
    `stepped`.
    """

    def started(self, state: RunState) -> None:
        """Before the first step of this process, after a checkpoint was loaded if there was one."""

    def gradients_ready(self, state: RunState) -> None:
        """After the backward pass, before the gradients are clipped and before the guard has judged the step, which is
        number `state.step + 1`: its gradients may be non-finite, and after a rollback the same number occurs again.

        `parameter.grad` is the gradient of the whole step's loss, over all passes and all processes:

            none, ddp     whole, in every process
            fsdp, hsdp    a DTensor: this process's shard of the sum

        `torch.nn.utils.get_total_norm` takes both; `state.layout.global_norm` makes its result the norm over all
        processes, with the same bits in each. That may communicate, as any operation on a DTensor may: such a hook must
        be on every process of the group and do the same on each. On a GPU the backward pass may still be running:
        reading a number here waits for it. The time counts as the step's.
        """

    def updated(self, state: RunState) -> None:
        """After the optimiser's step, when the gradients are freed and `state.step` has counted it; not after a
        discarded step. Parameters are sharded like their gradients."""

    def stepped(self, state: RunState) -> None:
        """After each step, whether its update was taken or discarded."""

    def troubled(self, state: RunState, line: SkipLine) -> None:
        """After a bad step was recorded (a line of skips.jsonl), before it is handled."""

    def noticed(self, state: RunState, text: str) -> None:
        """A one-line notice for the user."""

    def decided(self, state: RunState, decision: Decision) -> None:
        """After the clock moved the end of the run."""

    def measured(self, state: RunState, line: HeldOutLine) -> None:
        """After a held-out line was written."""

    def forecast(self, state: RunState, line: ForecastLine) -> None:
        """After a line with a running forecast was written."""

    def ended(self, state: RunState) -> None:
        """After the last step, or when the run stops early for any reason."""


def overriding(hooks: Iterable[Hook], moment: str) -> list[Hook]:
    """The hooks that override a method, determined once so that a call within a step costs nothing if no hook needs
    it."""
    default = getattr(Hook, moment)
    return [hook for hook in hooks if getattr(getattr(hook, moment), "__func__", None) is not default]


WIDE_FROM = 0.125  # progress after which the one measurement on more text is made
# Its tokens: a share of the run's (a forward pass is a third of a step, so this is a quarter of a percent of its time),
# or this many times those of the other measurements, whichever is more.
WIDE_SHARE = 1 / 128
WIDE_TIMES = 4


PROBE_SHARE = 0.01  # of the run's time, for measuring the average of the weights
MOST_APART = 4  # one of at most so many held-out measurements measures it too
COPIES = 3  # of the weights in main memory: the average, the weights that it replaces, and a checkpoint's copy


class HeldOut(Hook):
    """Measures held-out loss every `config.every.evaluate` steps and notifies the other hooks. The line also has the
    readings of the model's modules on the last held-out batch, such as the `load_entropy` of a mixture of experts. A
    measurement that a signal interrupted is made when the run resumes.

    These measurements read a small part of the held-out text, always the same. Once per run, at the first of them from
    WIDE_FROM on, a larger part is read as well: the difference between the two changes little during training.

    Args:
        probe: also measure, before the decay of the learning rate, the average of the weights (decay_probe.py).
    """

    def __init__(self, listeners: tuple[Hook, ...] = (), probe: bool = False) -> None:
        self.listeners, self.probe = listeners, probe

    def started(self, state: RunState) -> None:
        state.probe = make_probe(state) if self.probe else None
        if state.step and all(step != state.step for step, _ in state.heldout):
            self.measure_if_due(state)

    def stepped(self, state: RunState) -> None:
        if state.probe is not None:
            state.probe.follow(state.step, is_stable(state))
        self.measure_if_due(state)

    def measure_if_due(self, state: RunState) -> None:
        if not state.due(state.config.every.evaluate):
            return

        more_tokens = wide_tokens(state)
        try:
            with state.averaged(), state.may_be_cut_short():
                heldout = self.measure(state, state.config.evaluate_tokens)
                readings = state.model.mean_readings()
                wide = self.measure(state, more_tokens) if more_tokens else None
            averaged = self.measure_average(state)
        except CutShort:
            return

        line = HeldOutLine(
            step=state.step,
            tokens=state.tokens,
            seconds=round(state.seconds, 3),
            flops=state.flops,
            heldout_loss=heldout.nats_per_token,
            heldout_bits_per_byte=heldout.bits_per_byte,
            wide_loss=wide.nats_per_token if wide else None,
            wide_bits_per_byte=wide.bits_per_byte if wide else None,
            wide_tokens=wide.tokens if wide else None,
            averaged_loss=averaged.nats_per_token if averaged else None,
            others=readings,
        )
        state.folder.append("metrics", line)
        state.heldout.append((state.step, heldout.nats_per_token))
        for listener in self.listeners:
            listener.measured(state, line)

    def measure_average(self, state: RunState) -> Measured | None:
        """The measurement of the average of the weights, if it is due."""
        probe, number = state.probe, state.step // state.config.every.evaluate
        if probe is None or not probe.ready or not is_stable(state) or number % probe.each:
            return None
        with probe.in_place(), state.may_be_cut_short():  # a signal cuts the measurement, not the exchange
            return self.measure(state, state.config.evaluate_tokens)

    @staticmethod
    def measure(state: RunState, tokens: int) -> Measured:
        return state.task.measure(state.model, state.prepared, state.runtime, tokens, state.layout.group)


def wide_tokens(state: RunState) -> int:
    """Held-out tokens of the one measurement on more text, if it is due after `state.step`; else 0.

    A function of the step and of the decisions before it, so that all processes and a resumed run agree.
    """
    config, timetable, step = state.config, state.timetable, state.step
    previous = (step - 1) // config.every.evaluate * config.every.evaluate
    if not timetable.progress(previous) < WIDE_FROM <= timetable.progress(step) < 1.0:
        return 0
    available = state.prepared.account().heldout.tokens or 0
    target = max(WIDE_SHARE * state.batches.tokens(timetable.total_steps), WIDE_TIMES * config.evaluate_tokens)
    count = min(available, int(target))
    return count if 0 < config.evaluate_tokens < count else 0


def is_stable(state: RunState) -> bool:
    """Whether all steps after the warm-up so far had the full learning rate."""
    decay = state.timetable.decay_step
    return decay is None or state.step <= decay


def make_probe(state: RunState) -> DecayProbe | None:
    """The average of the weights that is measured before the decay, as of the checkpoint that the run resumes from.

    None if the schedule has no stable phase with a decay after it, or if the held-out losses are those of an average
    anyway; if the measurements would take more than PROBE_SHARE of the run's time; with several processes, on another
    device than the CPU and with running statistics, which the average would not have; if main memory is short; and if
    the checkpoint is from a run without one.
    """
    config, runs_alone = state.config, state.layout.group.alone and state.runtime.device.type == "cpu"
    decay = replace(state.timetable, decisions=()).decay_step  # as planned, so that a resumed run decides alike
    statistics = any(getattr(module, "keeps_statistics", False) for module in state.model.modules())
    if not runs_alone or decay is None or not config.every.evaluate or statistics or config.average.entry.on:
        return None

    # a forward pass is a third of a step
    measured = config.evaluate_tokens or state.prepared.account().heldout.tokens or 0
    share = decay // config.every.evaluate * measured / 3 / state.batches.tokens(config.steps)
    each = max(1, math.ceil(share / PROBE_SHARE))
    weights = sum(tensor.numel() * tensor.element_size() for tensor in state.model.parameters())
    free = free_memory("cpu")
    if each > MOST_APART or (free is not None and COPIES * weights > free / 2):
        return None

    probe = DecayProbe(state.model, max(1, config.steps // ADDITIONS), each)
    folder = checkpoint.at_step(state.folder.checkpoints, state.step) if state.step else None
    return probe if probe.restore(folder) else None


class SampleTimeLimit:
    """Limits the time that generating samples may take in a run with a time limit.

    Args:
        seconds: for all samples; 0: no limit.
        samples: number of samples that share it.
        agree: broadcasts rank 0's answer to all processes.
    """

    def __init__(self, seconds: float, samples: int, agree: Callable[[bool], bool]) -> None:
        self.seconds, self.samples, self.agree = seconds, max(1, samples), agree
        self.sample, self.started, self.expired = 0, time.monotonic(), False

    def __call__(self) -> bool:
        """Whether the sample that is being generated has to end."""
        end = self.started + self.seconds * (self.sample + 1) / self.samples
        over = bool(self.seconds) and self.agree(time.monotonic() > end)
        self.expired |= over
        return over

    def next(self) -> bool:
        """Begin the next sample. Returns whether the previous one was ended early."""
        ended, self.expired = self.expired, False
        self.sample = min(self.sample + 1, self.samples - 1)
        return ended


class Samples(Hook):
    """Writes samples for the same prompts every `config.every.sample` steps.

    A task uses a random generator of its own for its samples, so the run's generators are not affected. Samples that a
    signal interrupted are generated when the run resumes. In a run with a time limit they take at most SAMPLES_SHARE of
    it each time, since their cost is unknown before the first.
    """

    def __init__(self, listeners: tuple[Hook, ...] = ()) -> None:
        self.listeners = listeners
        self.noticed_early_end = False

    def started(self, state: RunState) -> None:
        group, lines = state.layout.group, state.folder.log("samples")
        missing = group.first and all(line.get("step") != state.step for line in read_lines(lines))
        if state.step and group.broadcast(missing):
            self.stepped(state)

    def stepped(self, state: RunState) -> None:
        if not state.due(state.config.every.sample):
            return

        lines, layout = [], state.layout
        agree = layout.group.broadcast if layout.forward_is_collective else bool
        time_limit = SampleTimeLimit(SAMPLES_SHARE * state.budget, len(state.config.sample.prompts), agree)
        try:
            with state.may_be_cut_short():
                pass  # raises CutShort in all processes if another one received a signal
            if not (layout.forward_is_collective or state.folder.is_writer):
                return
            cut_short = state.may_be_cut_short(by_all=layout.forward_is_collective)
            with state.averaged(), cut_short, torch.no_grad(), state.runtime.autocast():
                for line in state.task.samples(state.model, state.prepared, state.config, time_limit):
                    cut_mark = {"cut": True} if time_limit.next() else {}
                    lines.append(line.updated(step=state.step, **cut_mark))
                    layout.group.pause()
        except CutShort:
            return

        for line in lines:
            state.folder.append("samples", line)
        if any(line.cut for line in lines) and not self.noticed_early_end:
            self.noticed_early_end = True
            for listener in self.listeners:
                listener.noticed(
                    state,
                    f"step {state.step:,}: samples are ended early, since they may take {SAMPLES_SHARE:.0%} of the "
                    f"{state.budget:.0f} s each time; shorten them (--set sample.tokens=40) or raise every.sample",
                )
