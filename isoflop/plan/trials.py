"""Chooses what of a shape is timed, so that a plan is made quickly and within the machine's memory.

A step that would take long is timed with fewer sequences: the time of its passes is proportional to the number of
sequences, that of its update is not (trainer/throughput.py). A shape for which even one sequence is too much is not
built: its FLOPs per second are extrapolated from smaller shapes by width or, if none of those can be built either, set
to a usual share of the peak.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from isoflop.budget import Budget
from isoflop.trainer import RunConfig, throughput
from isoflop.trainer.workload import Workload

USUAL = {"cpu": 0.35, "gpu": 0.25}  # of the peak that steps reach, before anything is timed
SLOWEST = 0.15  # seconds that a timed step may take if there is little time for all of them
STEEPEST = 0.3  # largest exponent of width with which FLOPs per second are extrapolated
BEST = 0.9  # largest share of the peak that an extrapolation may reach
SHORTEST, LONGEST, PART = 5.0, 20.0, 0.1  # seconds of a calibration, and its share of a budget between them


def calibration_seconds(budget: Budget) -> float:
    """How long all timing before a plan may take: a tenth of a budget in seconds, between SHORTEST and LONGEST."""
    part = PART * budget.amount if budget.kind == "seconds" else 0.0
    return min(max(SHORTEST, part), LONGEST)


def usual_speed(device: str, dtype: str, peak: dict[str, float]) -> float:
    """FLOP/s that steps usually reach, from the peak."""
    if device == "cpu":
        return USUAL["cpu"] * peak.get(dtype, peak["float32"])
    return USUAL["gpu"] * max(peak.values())


@dataclass(frozen=True)
class Trial:
    """A configuration to time: possibly with fewer sequences per step, of which the original has `times` as many."""

    config: RunConfig
    times: float = 1.0


def trial_of(config: RunConfig, workload: Workload, speed: float, most: float = SLOWEST) -> Trial | None:
    """What to time of a configuration, with steps of at most about `most` seconds; None if it cannot be timed.

    Args:
        speed: an estimate of the FLOP/s that steps reach.
    """
    sequence = workload.flops_per_token(config) * workload.tokens_per_sequence(config)
    timed = throughput.limit_step(config, sequence / speed, max(most, SLOWEST))
    return None if timed is None else Trial(timed, config.batch.sequences / timed.batch.sequences)


def first_trial(configs: Iterable[RunConfig], workload: Workload, speed: float, most: float = SLOWEST) -> Trial | None:
    """What to time of the first configuration that can be built and timed; None if there is none."""
    trials = (trial_of(config, workload, speed, most) for config in configs)
    return next((trial for trial in trials if trial is not None), None)


def extrapolated(width: int, timed: Sequence[tuple[int, float]], ceiling: float) -> float:
    """FLOP/s of a shape that was not timed, extrapolated from those that were.

    Args:
        width: of the shape.
        timed: (width, FLOP/s) of at least one shape.
        ceiling: peak FLOP/s; the result is at most BEST of it, or the largest that was timed.
    """
    ordered = sorted(timed)
    (narrow, slow), (wide, fast) = ordered[0], ordered[-1]
    slope = math.log(fast / slow) / math.log(wide / narrow) if wide > narrow else 0.0
    grown = fast * (width / wide) ** min(max(slope, 0.0), STEEPEST)
    return max(fast, min(grown, BEST * ceiling))
