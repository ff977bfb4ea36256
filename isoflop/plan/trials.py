"""What of a shape is timed, so that no plan takes long or more memory than there is.

A step that would take long is timed with fewer sequences: its passes take as many times as long as it has times as many
sequences, its update does not (trainer/throughput.py). A shape of which even one sequence is too much is not built: its
speed is extrapolated from smaller shapes, as FLOPs per second by width, and where not even one of those can be built it
is taken to be a usual share of the peak.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from isoflop.budget import Budget
from isoflop.trainer import RunConfig, throughput
from isoflop.trainer.workload import Workload

USUAL = {"cpu": 0.35, "gpu": 0.25}  # of the peak that steps reach, before anything is timed
SLOWEST = 0.15  # seconds that a timed step may take where there is not much time for all
STEEPEST = 0.3  # exponent of width by which FLOPs per second may grow beyond what was timed
BEST = 0.9  # of the peak that an extrapolation may come to
SHORTEST, LONGEST, PART = 5.0, 20.0, 0.1  # seconds of a calibration, and its share of a budget between them


def calibration_seconds(budget: Budget) -> float:
    """How long all measuring before a plan may take: a tenth of a budget in seconds, at least SHORTEST and at most
    LONGEST, which is enough."""
    part = PART * budget.amount if budget.kind == "seconds" else 0.0
    return min(max(SHORTEST, part), LONGEST)


def usual_speed(device: str, dtype: str, peak: dict[str, float]) -> float:
    """FLOP/s that steps usually reach, of a peak."""
    if device == "cpu":
        return USUAL["cpu"] * peak.get(dtype, peak["float32"])
    return USUAL["gpu"] * max(peak.values())


@dataclass(frozen=True)
class Trial:
    """What is timed of a configuration: the same with fewer sequences in a step, of which a whole one has `times` as
    many."""

    config: RunConfig
    times: float = 1.0


def trial_of(config: RunConfig, workload: Workload, speed: float, most: float = SLOWEST) -> Trial | None:
    """What to time of a configuration, with steps of about `most` seconds at the longest; None: nothing of it.

    Args:
        speed: FLOP/s that steps are thought to reach.
    """
    sequence = workload.flops_per_token(config) * workload.tokens_per_sequence(config)
    timed = throughput.cut(config, sequence / speed, max(most, SLOWEST))
    return None if timed is None else Trial(timed, config.batch.sequences / timed.batch.sequences)


def first_trial(configs: Iterable[RunConfig], workload: Workload, speed: float, most: float = SLOWEST) -> Trial | None:
    """What to time of the first configuration that can be built and timed; None: of none."""
    trials = (trial_of(config, workload, speed, most) for config in configs)
    return next((trial for trial in trials if trial is not None), None)


def extrapolated(width: int, timed: Sequence[tuple[int, float]], ceiling: float) -> float:
    """FLOP/s of a shape that was not timed, of those that were.

    Args:
        width: of the shape.
        timed: (width, FLOP/s) of some shapes; at least one.
        ceiling: FLOP/s that it cannot come near to.
    """
    ordered = sorted(timed)
    (narrow, slow), (wide, fast) = ordered[0], ordered[-1]
    slope = math.log(fast / slow) / math.log(wide / narrow) if wide > narrow else 0.0
    grown = fast * (width / wide) ** min(max(slope, 0.0), STEEPEST)
    return max(fast, min(grown, BEST * ceiling))
