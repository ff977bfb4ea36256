"""How fast a configuration trains here: real optimiser steps, timed."""

import statistics
import time
from dataclasses import dataclass

import torch

from isoflop.model.gpt import GPT
from isoflop.model.loss import make_loss
from isoflop.optim.build import build
from isoflop.runtime import make_runtime, seed_everything
from isoflop.trainer.config import RunConfig
from isoflop.trainer.step import take_step
from isoflop.trainer.task import CausalLM


@dataclass(frozen=True)
class Throughput:
    """What was measured.

    Attributes:
        seconds_per_step: median over the timed steps.
        tokens_per_second: tokens of a step over that median.
        steps: steps timed, after two that warm up.
    """

    seconds_per_step: float
    tokens_per_second: float
    steps: int


def time_steps(config: RunConfig, seconds: float = 1.0, min_steps: int = 3) -> Throughput:
    """Time whole training steps of `config` on random tokens for about `seconds`, at least `min_steps` of them."""
    runtime = make_runtime(config.runtime.device, config.runtime.dtype, config.runtime.threads)
    seed_everything(config.seed)
    with runtime.device:
        model = GPT(config.model)
    task = CausalLM(make_loss(config.loss, config.model))
    task.prepare(model)
    optimizers = build(model, config.optim, runtime.dtype)
    shape = (config.batch.sequences, config.model.context + 1)
    tokens = torch.randint(config.model.vocab_size, shape, device=runtime.device)
    batch = (tokens[:, :-1], tokens[:, 1:])
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(times) < min_steps + 2 or time.perf_counter() < deadline:
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
    median = statistics.median(times[2:])
    return Throughput(median, config.tokens_per_step / median, len(times) - 2)
