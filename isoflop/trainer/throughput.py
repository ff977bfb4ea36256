"""How fast a configuration trains here: real optimiser steps, timed."""

import statistics
import time
from dataclasses import dataclass

import torch

from isoflop.data.loader import Batches
from isoflop.model.build import build_model
from isoflop.optim.build import build
from isoflop.runtime import make_runtime, seed_everything
from isoflop.trainer.config import RunConfig
from isoflop.trainer.step import take_step
from isoflop.trainer.task import make_task


@dataclass(frozen=True)
class Throughput:
    """What was measured.

    Attributes:
        seconds_per_step: median over the timed steps (mean, where steps differ in length).
        tokens_per_second: tokens of a step over that.
        steps: steps timed, after two that warm up.
    """

    seconds_per_step: float
    tokens_per_second: float
    steps: int


def time_steps(
    config: RunConfig, seconds: float = 1.0, min_steps: int = 3, batches: Batches | None = None
) -> Throughput:
    """Time whole training steps of `config` for about `seconds`, at least `min_steps` of them: on the first steps of
    `batches`, or on random tokens (causal_lm alone)."""
    runtime = make_runtime(config.runtime.device, config.runtime.dtype, config.runtime.threads)
    seed_everything(config.seed)
    with runtime.device:
        model = build_model(config.task, config.model)
    task = make_task(config)
    optimizers = build(model, config.optim, runtime.dtype)
    tokens = torch.randint(
        config.model.vocab_size, (config.batch.sequences, config.model.context + 1), device=runtime.device
    )
    batch = [tokens[:, :-1], tokens[:, 1:]]
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(times) < min_steps + 2 or time.perf_counter() < deadline:
        if batches is not None:
            batch = [tensor.to(runtime.device) for tensor in batches.batch(len(times))]
        started = time.perf_counter()
        take_step(
            model,
            optimizers,
            task,
            batch,
            micro=config.batch.micro,
            runtime=runtime,
            clip=config.optim.clip,
            scale=1e-3,
        )
        runtime.synchronize()
        times.append(time.perf_counter() - started)
    timed = times[2:]
    if batches is not None:  # steps differ in length
        mean = statistics.mean(timed)
        return Throughput(mean, (batches.tokens(len(times)) - batches.tokens(2)) / sum(timed), len(timed))
    median = statistics.median(timed)
    return Throughput(median, config.tokens_per_step / median, len(timed))
