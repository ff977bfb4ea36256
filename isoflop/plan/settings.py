"""The settings that go with a size: batch, learning rates, and how often a run measures, samples and saves."""

import math
from dataclasses import replace

from isoflop.plan.asked import NOTHING, Asked
from isoflop.plan.shapes import batch_tokens_for
from isoflop.trainer import RunConfig
from isoflop.trainer.workload import Workload

ON_A_GPU = 8  # what a batch is a multiple of on a GPU, which may have to take it in several passes


def with_batch(config: RunConfig, tokens: float, workload: Workload, asked: Asked = NOTHING) -> RunConfig:
    """The batch that goes with a run of `tokens` tokens, in whole sequences, for one pass."""
    on_gpu = config.runtime.device.startswith("cuda")
    multiple = max(workload.multiple, ON_A_GPU if on_gpu else 1)
    wanted = batch_tokens_for(tokens) / workload.tokens_per_sequence(config)
    sequences = max(workload.fewest, multiple * round(wanted / multiple))
    return asked.choose(config, "batch", sequences=sequences, micro_sequences=0)


def with_rates(config: RunConfig, asked: Asked = NOTHING) -> RunConfig:
    """The peak learning rates of a size, by the rule of its optimiser (optim/table.py), from those of width 128; see
    LAB.md for the runs behind them."""
    return asked.choose(config, "optim", **config.optim.entry.at_width(config.model.d_model, config.model.tied_head))


def with_length(config: RunConfig, steps: int, seconds: float, asked: Asked = NOTHING) -> RunConfig:
    """The length of a run, and some 12 held-out measurements, 3 samples and 10 checkpoints, together less than a
    fiftieth of its time (bench/overhead.py). The measurements read an eightieth of what training reads, each at least
    8,192 tokens."""
    planned = replace(config, steps=steps)
    every = {
        "evaluate": max(1, math.ceil(steps / 12)),
        "sample": max(1, math.ceil(steps / 3)),
        "checkpoint": max(1, math.ceil(steps / 10)),
    }
    measured = min(max(planned.tokens // 1000, 8192), 2**20)
    config = asked.choose(config, "every", **every)
    return asked.choose(config, "", steps=steps, seconds=seconds, evaluate_tokens=measured)
