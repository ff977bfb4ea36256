"""How fast a configuration trains here: real optimiser steps, timed."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from isoflop.data.loader import Batches
from isoflop.model.build import build_model
from isoflop.optim.build import build
from isoflop.runtime import make_runtime, seed_everything
from isoflop.trainer.begin import wrap
from isoflop.trainer.config import BatchConfig, RunConfig
from isoflop.trainer.step import take_step
from isoflop.trainer.task import make_task

TURNS = 5  # in which configurations are timed: a machine whose speed swings for a second or two favours none
CYCLE = 16  # steps of pairs that are timed over and over: their lengths differ
SHARE = 0.9  # of a GPU's memory for what is tried: measuring and fragments need some beside the step
WARM_UP = 2  # steps before the first turn: memory is allocated, optimiser state made


@dataclass(frozen=True)
class Throughput:
    """What was measured.

    Attributes:
        seconds_per_step: the median over the turns of the mean step in each. (A run is as slow as its mean step, so
            single slow steps count; a turn in which the machine was busy with something else does not.)
        tokens_per_second: tokens of a step over that.
        steps: steps timed, after those that warm up.
    """

    seconds_per_step: float
    tokens_per_second: float
    steps: int


def time_steps(config: RunConfig, seconds: float = 1.0) -> Throughput:
    """Time whole training steps of `config` on random tokens for about `seconds`."""
    return time_in_turns([config], seconds)[0]


def time_in_turns(
    configs: Sequence[RunConfig],
    seconds: float = 1.0,
    data: Sequence[Batches] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> list[Throughput]:
    """Time whole training steps of several configurations on random tokens, or on what `data` has for each, TURNS times
    in turn, for about `seconds` each, by `clock`. A turn takes at least one step, however long that is."""
    batches: Sequence[Batches | None] = data or [None] * len(configs)
    if len(configs) > 1 and configs[0].runtime.device.startswith("cuda"):  # its memory holds one; its speed is steady
        return [time_in_turns([configs[i]], seconds, data[i : i + 1])[0] for i in range(len(configs))]
    steps = [make_step(config, some) for config, some in zip(configs, batches, strict=True)]
    for step in steps:
        for _ in range(WARM_UP):
            step()
    turns: list[list[float]] = [[] for _ in configs]
    counts = [0] * len(configs)
    for _ in range(TURNS):
        for i, step in enumerate(steps):
            started, taken = clock(), 0
            while not taken or clock() - started < seconds / TURNS:
                step()
                taken += 1
            turns[i].append((clock() - started) / taken)
            counts[i] += taken
    tokens = [
        config.tokens_per_step if some is None else some.tokens(CYCLE) / CYCLE
        for config, some in zip(configs, batches, strict=True)
    ]
    return [
        Throughput(median, read / median, count)
        for read, median, count in zip(tokens, map(statistics.median, turns), counts, strict=True)
    ]


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
    device = torch.device(config.runtime.device).index
    torch.cuda.set_per_process_memory_fraction(SHARE, device)
    try:
        make_step(trial)()
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    return True


def make_step(config: RunConfig, batches: Batches | None = None) -> Callable[[], None]:
    """A whole training step of a fresh model on random tokens, or on the first CYCLE steps of `batches` in turn; it
    returns when the device is done."""
    seed_everything(config.seed)
    runtime = make_runtime(config.runtime.device, config.runtime.dtype, config.runtime.threads)
    with runtime.device:
        model = build_model(config.task, config.model)
    task = make_task(config)
    task.prepare(model)
    wrap(config, model, task)
    optimizers = build(model, config.optim, runtime.dtype)
    shape = (config.batch.sequences, config.model.context + 1)
    tokens = torch.randint(config.model.vocab_size, shape, device=runtime.device)
    numbers = itertools.cycle(range(CYCLE))

    def step() -> None:
        batch = (tokens[:, :-1], tokens[:, 1:]) if batches is None else batches.batch(next(numbers))
        take_step(
            model,
            optimizers,
            task,
            runtime.send(batch) if batches else batch,
            micro=config.batch.micro,
            runtime=runtime,
            clip=config.optim.clip,
            scale=1e-3,
        )
        runtime.synchronize()

    return step
