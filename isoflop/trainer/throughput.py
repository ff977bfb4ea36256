"""How fast a configuration trains here: real optimiser steps, timed."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from isoflop import processors
from isoflop.data.loader import Batches
from isoflop.model.build import build_model
from isoflop.optim.build import build, clip_gradients
from isoflop.parallel.shard import Layout
from isoflop.processors import Reading
from isoflop.runtime import free_memory, make_runtime, seed_everything
from isoflop.trainer.begin import wrap
from isoflop.trainer.config import BatchConfig, RunConfig
from isoflop.trainer.memory.estimate import guess
from isoflop.trainer.step import find_inf, forward_backward, update, updates_ahead
from isoflop.trainer.task import make_task
from isoflop.trainer.turns import Timing, take_turns

CYCLE = 16  # steps of pairs that are timed over and over: their lengths differ
SHARE = 0.9  # of a GPU's memory for what is tried: measuring and fragments need some beside the step
HALF = 0.5  # of the free memory for all that is held at once to be timed
SMALL = 1e-3  # of the peak learning rates: what random tokens teach does not matter


@dataclass(frozen=True)
class Throughput:
    """What was measured.

    Attributes:
        seconds_per_step: the upper quartile of the turns' speeds, as seconds of a step. (A run is as slow as its mean
            step, so single slow steps of a turn count; a turn in which the machine was busy with something else does
            not.)
        tokens_per_second: tokens of a step over that.
        steps: steps timed, after those that warm up.
        trouble: why that may be wrong, in words; empty: nothing speaks against it.
    """

    seconds_per_step: float
    tokens_per_second: float
    steps: int
    trouble: str = ""


def time_steps(config: RunConfig, seconds: float = 1.0) -> Throughput:
    """Time whole training steps of `config` on random tokens for about `seconds`."""
    return time_in_turns([config], seconds)[0]


def time_in_turns(
    configs: Sequence[RunConfig],
    seconds: float = 1.0,
    data: Sequence[Batches] = (),
    clock: Callable[[], float] = time.perf_counter,
    read: Callable[[], Reading] = processors.read,
    times: Sequence[float] = (),
    until: float = float("inf"),
) -> list[Throughput]:
    """Time whole training steps of several configurations on random tokens, or on what `data` has for each, in turns
    (turns.py), for about `seconds` each.

    Args:
        clock, read: see turns.take_turns, as is `until`.
        times: for each configuration, how many times its sequences a whole step has (see `cut`); by default once. The
            passes are taken so many times as long, and the update once.
    """
    batches: Sequence[Batches | None] = data or [None] * len(configs)
    scales = times or [1.0] * len(configs)
    if len(configs) > 1 and not fit_together(configs):
        found = []
        for i in range(len(configs)):
            ends = clock() + (until - clock()) / (len(configs) - i)
            found += time_in_turns([configs[i]], seconds, data[i : i + 1], clock, read, scales[i : i + 1], ends)
        return found

    steps = [make_step(*parts, clock) for parts in zip(configs, batches, scales, strict=True)]
    on_cpu = configs[0].runtime.device == "cpu"
    timings = take_turns(steps, seconds, clock, read, until, computing=on_cpu)
    return [
        throughput(config, some, scale, timing)
        for config, some, scale, timing in zip(configs, batches, scales, timings, strict=True)
    ]


def throughput(config: RunConfig, batches: Batches | None, scale: float, timing: Timing) -> Throughput:
    tokens = scale * (config.tokens_per_step if batches is None else batches.tokens(CYCLE) / CYCLE)
    return Throughput(timing.seconds, tokens / timing.seconds, timing.steps, timing.trouble)


def fit_together(configs: Sequence[RunConfig]) -> bool:
    """Whether the memory holds all of them at once, with room to spare. One after the other they are timed otherwise,
    and what happens to the machine meanwhile happens to some of them alone."""
    free = free_memory(configs[0].runtime.device)
    return free is None or sum(guess(config) for config in configs) < HALF * free


def cut(config: RunConfig, seconds_per_sequence: float, most: float) -> RunConfig | None:
    """The same with as few sequences in a step that one takes about `most` seconds, where it takes longer; or None if
    even a step of one sequence takes several times as long, or would not plainly fit in the free memory.

    Args:
        seconds_per_sequence: about how long one takes, by whatever is known before anything is timed.
    """
    if seconds_per_sequence > 4 * most:
        return None
    batch = config.batch
    sequences = max(1, min(batch.sequences, int(most / seconds_per_sequence)))
    if sequences < batch.sequences:
        config = replace(config, batch=BatchConfig(sequences=sequences))
    free = free_memory(config.runtime.device)
    while free is not None and guess(config) >= HALF * free:
        if config.batch.sequences == 1:
            return None
        config = replace(config, batch=BatchConfig(sequences=config.batch.sequences // 2))
    return config


def time_products(threads: int, seconds: float = 0.1, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of a small matrix product on the CPU with so many threads, measured for about `seconds`. It is small
    enough for a step to have hundreds like it, and large enough to be divided among threads."""
    torch.set_num_threads(threads)
    a, b = torch.randn(256, 128), torch.randn(128, 256)
    a @ b  # the team of threads is made
    started, taken = clock(), 0
    while not taken or clock() - started < seconds:
        a @ b
        taken += 1
    return (clock() - started) / taken


def fitting(config: RunConfig, processes: int = 1) -> RunConfig:
    """The same with passes that a GPU's memory holds: where the sequences of a step are too many for one pass and
    nobody has said how many go at once, the most of which a step of a fresh model could be taken. On a CPU as it is.

    Tried without compiling, which needs more memory, in SHARE of what there is. `processes` share the step.
    """
    batch = config.batch
    if not config.runtime.device.startswith("cuda") or batch.micro_sequences:
        return config
    rows = max(1, batch.sequences // processes)
    divisors = [n for n in range(rows, 0, -1) if rows % n == 0 and (batch.ramp_from or n) % n == 0]
    most = next((n for n in divisors if holds(config, n)), 1)  # if not even that: the run's preflight says what to do
    return config if most == rows else replace(config, batch=replace(batch, micro_sequences=most))


def holds(config: RunConfig, sequences: int) -> bool:
    """Whether the device's memory holds a step whose one pass has so many sequences."""
    trial = replace(
        config,
        batch=BatchConfig(sequences=sequences),
        runtime=replace(config.runtime, compile=False),
    )
    free, device = free_memory(config.runtime.device), torch.device(config.runtime.device).index
    if free is not None and guess(trial, fixed=True) > free:  # so that nothing of it need be made
        return False
    torch.cuda.set_per_process_memory_fraction(SHARE, device)
    try:
        step = make_step(trial)
        step()
        step.wait()
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    return True


class TimedStep:
    """A whole training step of a fresh model as the loop takes it: its batch sent from the host, the update launched
    before or after the host has read the step's numbers. It implements turns.Step.

    Args:
        batches: what is trained on, the first CYCLE steps of it in turn; None: random tokens.
        times: how many times these sequences a whole step has.
        clock: in seconds.
    """

    def __init__(
        self,
        config: RunConfig,
        batches: Batches | None = None,
        times: float = 1.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config, self.times, self.clock = config, times, clock
        seed_everything(config.seed)
        self.threads = config.runtime.threads
        self.runtime = make_runtime(config.runtime.device, config.runtime.dtype, self.threads)
        with self.runtime.device:
            self.model = build_model(config.task, config.model)
        self.task = make_task(config)
        self.task.prepare(self.model)
        wrap(config, self.model, self.task)
        self.layout = Layout(self.model, self.task.loss)
        self.optimizers = build(self.model, config.optim, self.runtime.dtype)
        self.ahead = updates_ahead(self.runtime, config.guard, self.layout, self.optimizers)

        shape = (config.batch.sequences, config.model.context + 1)
        tokens = torch.randint(config.model.vocab_size, shape)
        numbers = itertools.cycle(range(CYCLE))
        self.read: Callable[[], Sequence[torch.Tensor]] = lambda: (tokens[:, :-1], tokens[:, 1:])
        if batches is not None:
            self.read = lambda: batches.batch(next(numbers))
        self.batch = self.runtime.send(self.read())
        self.updating = 0.0

    def begin(self) -> None:
        self.updating = 0.0
        if self.threads and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
            self()  # a new team of threads starts slowly
            self.updating = 0.0

    def __call__(self) -> None:
        loss = forward_backward(
            self.model,
            self.task,
            self.batch,
            micro=self.config.batch.micro,
            runtime=self.runtime,
            layout=self.layout,
        )
        started = self.now()
        norm = clip_gradients(self.model, self.config.optim.clip, self.layout.whole)
        numbers = self.runtime.fetch((loss, norm))
        if self.ahead:
            update(self.optimizers, SMALL, find_inf((loss, norm)))
        ended = self.now()
        self.batch = self.runtime.send(self.read())
        numbers()  # waits for the device
        late = self.now()
        if not self.ahead:
            update(self.optimizers, SMALL)
        self.updating += ended - started + self.now() - late

    def now(self) -> float:
        """The time when all that was launched is done, where the parts of a step are told apart; else nobody waits."""
        if self.times == 1.0:
            return 0.0
        self.wait()
        return self.clock()

    def wait(self) -> None:
        self.runtime.synchronize()

    def whole(self, seconds: float) -> float:
        """What whole steps would have taken: the passes `times` as long, the update once."""
        return (seconds - self.updating) * self.times + self.updating


def make_step(
    config: RunConfig,
    batches: Batches | None = None,
    times: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> TimedStep:
    """A whole training step of a fresh model, see TimedStep."""
    return TimedStep(config, batches, times, clock)
