"""How fast the sizes of a ladder train here, and how many of its runs are made at a time.

A run of a small model gains little from a second thread, and two runs of one thread each little less than twice as
much as one. So real steps are timed with each number of threads, and what trains most in all is taken: on two cores
usually two workers of one thread. A GPU makes one run at a time.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from isoflop import processors
from isoflop.ladder.rungs import Size
from isoflop.plan.asked import Asked
from isoflop.plan.machine import keeping_up
from isoflop.plan.settings import with_batch, with_rates, with_recipe
from isoflop.plan.trials import STEEPEST
from isoflop.trainer import RunConfig, throughput
from isoflop.trainer.workload import Rung, Workload

TINY: tuple[Rung, ...] = ((1, 16), (1, 24))  # below the shapes that a plan considers, for small budgets
LONGEST = 12.0  # seconds, for all of them, about
EACH = 0.6  # seconds of steps, for each width and number of threads
TIMED = (32, 64, 128)  # widths, of the shapes nearest to them
SHARED = 0.9  # of its speed alone that a worker keeps next to others: memory and caches are shared (an assumption)


@dataclass(frozen=True)
class Pace:
    """How runs are made.

    Attributes:
        workers: at a time; 0: in this process, one after the other.
        threads: of each.
        speeds: (width, FLOP/s of one worker), in ascending order of width.
        doubt: what makes the timings doubtful; empty: nothing does.
    """

    workers: int
    threads: int
    speeds: tuple[tuple[float, float], ...]
    doubt: str = ""

    @property
    def at_once(self) -> int:
        return max(1, self.workers)

    def speed(self, width: float) -> float:
        """FLOP/s of one worker at a width: between those that were timed on a line in logarithms, beyond them as
        plan/trials.py extrapolates."""
        x, y = (np.log(values) for values in np.array(self.speeds, dtype=np.float64).T)
        at = math.log(width)
        beyond = STEEPEST * (min(at - x[0], 0.0) + max(at - x[-1], 0.0) / 2)
        return float(math.exp(float(np.interp(at, x, y)) + beyond))


def shaped(base: RunConfig, shape: Rung, tokens: float, workload: Workload, asked: Asked) -> RunConfig:
    """The run of a shape that reads about so many tokens: recipe, vocabulary and context are those of `base`, batch and
    rates as a plan has them for that size.

    Args:
        base: whose optimiser has the rates that those of a width come from.
    """
    model = base.model
    made = asked.choose(base, "model", **workload.shape(shape, model.vocab_size, model.context))
    made = with_batch(with_recipe(made, asked), tokens, workload, asked)
    return with_rates(made, asked) if workload.rates_by_width else made


def choose(timed: dict[int, float], cores: int) -> tuple[int, int]:
    """Workers and threads of each that train most in all.

    Args:
        timed: FLOP/s of one run by its number of threads, next to nothing else.
    """
    together = {
        threads: (cores // threads) * speed * (SHARED if cores // threads > 1 else 1.0)
        for threads, speed in timed.items()
    }
    threads = max(together, key=lambda one: together[one])
    return (cores // threads if cores // threads > 1 else 0), threads


def find_pace(configs: Sequence[RunConfig], flops: Sequence[float], workers: int | None = None) -> Pace:
    """Time some configurations, narrowest first.

    Args:
        configs: with a runtime that is resolved; flops: per token of each.
        workers: that are asked for; None: as many as train most.
    """
    cores = processors.cores() if configs[0].runtime.device == "cpu" else 1
    counts = list(keeping_up(list(processors.thread_counts(cores)), throughput.time_matmul))
    if workers is not None:
        counts = [max(1, cores // max(1, workers))]
    each = [replace(one, runtime=replace(one.runtime, threads=count)) for count in counts for one in configs]
    found = throughput.time_in_turns(each, EACH, until=time.perf_counter() + LONGEST)
    per_second = [one.tokens_per_second * cost for one, cost in zip(found, [*flops] * len(counts), strict=True)]
    by_count = {count: per_second[i * len(configs) : (i + 1) * len(configs)] for i, count in enumerate(counts)}

    if workers is not None:
        chosen, threads = (workers if workers > 1 else 0), counts[0]
    else:
        chosen, threads = choose({count: speeds[len(speeds) // 2] for count, speeds in by_count.items()}, cores)
    shared = SHARED if chosen > 1 else 1.0
    speeds = tuple(
        (float(one.model.d_model), shared * speed) for one, speed in zip(configs, by_count[threads], strict=True)
    )
    return Pace(chosen, threads, speeds, next((one.trouble for one in found if one.trouble), ""))


def shapes_of(workload: Workload) -> list[Rung]:
    """The shapes that a ladder may have, smallest first."""
    return [*TINY, *(shape for shape in workload.ladder if shape not in TINY)]


def sizes_of(base: RunConfig, workload: Workload, asked: Asked, pace: Pace) -> list[Size]:
    """The sizes that a ladder may have, each shape once, smallest first, up to eight times the plan's own shape."""
    found: dict[float, Size] = {}
    most = 8 * workload.weights(base)
    for shape in shapes_of(workload):
        config = shaped(base, shape, 1e6, workload, asked)
        count = float(workload.weights(config))
        if count > most:
            break
        model = config.model
        found.setdefault(count, Size(model.layers, model.d_model, count, pace.speed(model.d_model)))
    return [found[count] for count in sorted(found)]


def timed_shapes(base: RunConfig, workload: Workload, asked: Asked) -> list[RunConfig]:
    """The configurations that are timed: those nearest to TIMED, none wider than the plan's own shape, each width once,
    narrowest first."""
    shapes = shapes_of(workload)
    found: dict[int, RunConfig] = {}
    for width in TIMED:
        nearest = min(shapes, key=lambda shape: abs(math.log(shape[1] / width)))
        config = shaped(base, nearest, 1e6, workload, asked)
        if config.model.d_model <= max(base.model.d_model, TIMED[0]):
            found[config.model.d_model] = config
    if not found:
        found[base.model.d_model] = shaped(base, (base.model.layers, base.model.d_model), 1e6, workload, asked)
    return [found[width] for width in sorted(found)]
