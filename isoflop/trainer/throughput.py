"""Measures how fast a configuration trains on this machine, with real optimiser steps."""

import itertools
import math
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
from isoflop.trainer.config import RunConfig
from isoflop.trainer.memory.estimate import upper_bound_bytes
from isoflop.trainer.step import find_inf, forward_backward, update, updates_ahead
from isoflop.trainer.task import make_task
from isoflop.trainer.turns import Timing, take_turns

CYCLE = 16  # steps of pairs that are timed in turn, since their lengths differ
GPU_SHARE = 0.9  # share of a GPU's memory for a trial: evaluation and fragmentation need the rest
FREE_SHARE = 0.5  # share of the free memory for all models that are timed together
LR_SCALE = 1e-3  # times the peak learning rates; what the models learn from random tokens does not matter


@dataclass(frozen=True)
class Throughput:
    """A measured training speed.

    Attributes:
        seconds_per_step: by the upper quartile of the turns' speeds. (A run is as fast as its mean step, so slow steps
            within a turn count; turns in which the machine was busy with something else do not.) Where steps grow, the
            mean over all steps of the run.
        tokens_per_second: tokens of a step over that.
        steps: steps timed, after the warm-up.
        trouble: why it may be wrong, in words; "" if there is no reason.
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
    """Time whole training steps of several configurations in turns (turns.py), for about `seconds` each.

    Args:
        data: what each is trained on; empty: random tokens.
        clock, read, until: see turns.take_turns.
        times: for each configuration, how many times as many sequences a whole step has (see `limit_step`); by default
            1. The time of the passes is multiplied by this number, that of the update is not.
    """
    if not data and any(config.batch.grows for config in configs):
        return time_growing(configs, seconds, clock, read, times, until)
    batches: Sequence[Batches | None] = data or [None] * len(configs)
    scales = times or [1.0] * len(configs)
    if len(configs) > 1 and not fit_together(configs):
        results = []
        for i in range(len(configs)):
            deadline = clock() + (until - clock()) / (len(configs) - i)
            results += time_in_turns([configs[i]], seconds, data[i : i + 1], clock, read, scales[i : i + 1], deadline)
        return results

    steps = [make_step(*parts, clock) for parts in zip(configs, batches, scales, strict=True)]
    on_cpu = configs[0].runtime.device == "cpu"
    timings = take_turns(steps, seconds, clock, read, until, computing=on_cpu)
    return [
        throughput(config, source, scale, timing)
        for config, source, scale, timing in zip(configs, batches, scales, timings, strict=True)
    ]


def time_growing(
    configs: Sequence[RunConfig],
    seconds: float,
    clock: Callable[[], float],
    read: Callable[[], Reading],
    times: Sequence[float],
    until: float,
) -> list[Throughput]:
    """`time_in_turns` for configurations of which some grow: steps of a few of their sizes are timed, each like the
    steps of another configuration, and count by their share of the run."""
    parts = [sizes_to_time(config) for config in configs]
    alike = [one for part in parts for one, _ in part]
    scales = [scale for part, scale in zip(parts, times or [1.0] * len(configs), strict=True) for _ in part]
    timed = iter(time_in_turns(alike, seconds, (), clock, read, scales, until))
    found = []
    for part in parts:
        each = [(share, next(timed)) for _, share in part]
        per_step = math.fsum(share * one.seconds_per_step for share, one in each)
        tokens = math.fsum(share * one.seconds_per_step * one.tokens_per_second for share, one in each)
        trouble = next((one.trouble for _, one in each if one.trouble), "")
        found.append(Throughput(per_step, tokens / per_step, sum(one.steps for _, one in each), trouble))
    return found


def sizes_to_time(config: RunConfig) -> list[tuple[RunConfig, float]]:
    """Configurations whose steps are alike, each with its share of the run's steps: for every context, steps of the
    smallest and of the largest batch of the ramp. The time of a batch between these lies on the line between theirs, so
    that such a step counts as a part of either. Steps of a shorter context are those of a model that has no longer one,
    with as many more sequences."""
    batch, context = config.batch, config.model.context
    least, most = batch.ramp_from or batch.sequences, batch.sequences
    found: dict[tuple[int, int], float] = {}
    for (sequences, length), share in config.sizes.shares(config.steps).items():
        as_most = (sequences - least) / (most - least) if most > least else 1.0
        for size, part in ((least, 1 - as_most), (most, as_most)):
            if part:
                found[size, length] = found.get((size, length), 0.0) + share * part
    return [
        (
            replace(
                config,
                batch=batch.alike(size * (context // length), batch.micro_sequences * (context // length)),
                model=replace(config.model, context=length),
            ),
            share,
        )
        for (size, length), share in found.items()
    ]


def throughput(config: RunConfig, batches: Batches | None, scale: float, timing: Timing) -> Throughput:
    tokens = scale * (config.tokens_per_step if batches is None else batches.tokens(CYCLE) / CYCLE)
    return Throughput(timing.seconds, tokens / timing.seconds, timing.steps, timing.trouble)


def fit_together(configs: Sequence[RunConfig]) -> bool:
    """Whether memory holds all of them at once, with a margin. Otherwise they are timed one after the other, and a
    disturbance of the machine affects only some of them."""
    free = free_memory(configs[0].runtime.device)
    return free is None or sum(upper_bound_bytes(config) for config in configs) < FREE_SHARE * free


def limit_step(config: RunConfig, seconds_per_sequence: float, max_seconds: float) -> RunConfig | None:
    """The configuration with fewer sequences per step, if needed, so that a step takes about `max_seconds` and surely
    fits in the free memory. None if even a step of one sequence takes several times as long, or does not fit.

    Args:
        seconds_per_sequence: an estimate, made before anything is timed.
    """
    if seconds_per_sequence > 4 * max_seconds:
        return None

    batch = config.batch
    sequences = max(1, min(batch.sequences, int(max_seconds / seconds_per_sequence)))
    if sequences < batch.sequences:
        config = replace(config, batch=batch.alike(sequences))

    free = free_memory(config.runtime.device)
    while free is not None and upper_bound_bytes(config) >= FREE_SHARE * free:
        if config.batch.sequences == 1:
            return None
        config = replace(config, batch=batch.alike(config.batch.sequences // 2))
    return config


def time_matmul(threads: int, seconds: float = 0.1, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds per small matrix product on the CPU with `threads` threads, measured for about `seconds`. A step has
    hundreds of such products, and each is large enough to be divided among threads."""
    torch.set_num_threads(threads)
    a, b = torch.randn(256, 128), torch.randn(128, 256)
    a @ b  # starts the threads
    started, products = clock(), 0
    while not products or clock() - started < seconds:
        a @ b
        products += 1
    return (clock() - started) / products


def fit_micro_batches(config: RunConfig, processes: int = 1) -> RunConfig:
    """The configuration with micro-batches that fit in a GPU's memory: unless batch.micro_sequences is set, the largest
    with which a step of a new model succeeds. On a CPU nothing changes.

    Tried without compilation, which needs more memory, in GPU_SHARE of the memory.

    Args:
        processes: number of processes that share the step.
    """
    batch = config.batch
    if not config.runtime.device.startswith("cuda") or batch.micro_sequences:
        return config
    rows = max(1, batch.sequences // processes)
    divisors = [n for n in range(rows, 0, -1) if rows % n == 0 and (batch.ramp_from or n) % n == 0]
    largest = next(
        (n for n in divisors if fits_on_device(config, n)), 1
    )  # if none does, the run's preflight says what to do
    return config if largest == rows else replace(config, batch=replace(batch, micro_sequences=largest))


def fits_on_device(config: RunConfig, sequences: int) -> bool:
    """Whether a step with one pass of `sequences` sequences fits in the device's memory. Tries it."""
    trial = replace(
        config,
        batch=config.batch.alike(sequences),
        runtime=replace(config.runtime, compile=False),
    )
    free, device = free_memory(config.runtime.device), torch.device(config.runtime.device).index
    if free is not None and upper_bound_bytes(trial, fixed=True) > free:  # the weights alone do not fit
        return False

    torch.cuda.set_per_process_memory_fraction(GPU_SHARE, device)
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
    """A whole training step of a new model as in the loop: its batch is sent from the host, and the update is launched
    before or after the host has read loss and norm. It implements turns.Step.

    Args:
        batches: the data, of which the first CYCLE steps are used in turn; None: random tokens.
        times: how many times as many sequences a whole step has.
        clock: returns the time in seconds.
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
        parts: tuple[torch.Tensor, ...] = (tokens[:, :-1], tokens[:, 1:])
        if config.batch.document_mask:  # any document will do: the mask takes as long
            parts = (parts[0], torch.zeros_like(parts[0]), parts[1])
        self.read: Callable[[], Sequence[torch.Tensor]] = lambda: parts
        if batches is not None:
            self.read = lambda: batches.batch(next(numbers))
        self.batch = self.runtime.send(self.read())
        self.update_seconds = 0.0

    def begin(self) -> None:
        self.update_seconds = 0.0
        if self.threads and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
            self()  # new threads start slowly
            self.update_seconds = 0.0

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
        norm = clip_gradients(self.model, self.config.optim.clip, self.layout.global_norm)
        numbers = self.runtime.fetch((loss, norm))
        if self.ahead:
            update(self.optimizers, LR_SCALE, find_inf((loss, norm)))
        ended = self.now()

        self.batch = self.runtime.send(self.read())
        numbers()  # waits for the device
        update_started = self.now()
        if not self.ahead:
            update(self.optimizers, LR_SCALE)
        self.update_seconds += ended - started + self.now() - update_started

    def now(self) -> float:
        """The time when all launched work is done, if parts of a step are timed separately; else 0 at once."""
        if self.times == 1.0:
            return 0.0
        self.wait()
        return self.clock()

    def wait(self) -> None:
        self.runtime.synchronize()

    def whole(self, seconds: float) -> float:
        """The time of whole steps: the passes multiplied by `times`, plus the update."""
        return (seconds - self.update_seconds) * self.times + self.update_seconds


def make_step(
    config: RunConfig,
    batches: Batches | None = None,
    times: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> TimedStep:
    """A whole training step of a new model, see TimedStep."""
    return TimedStep(config, batches, times, clock)
