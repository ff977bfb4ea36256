"""How fast the candidates of a plan train on this machine: cached, timed now, or extrapolated."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from isoflop.plan import known
from isoflop.plan.machine import quiet, trouble_of
from isoflop.plan.trials import Trial, extrapolated, first_trial, trial_of
from isoflop.trainer import RunConfig, throughput
from isoflop.trainer.workload import Workload

SECONDS_EACH = 4.0  # at most, for timing one candidate, in turns with the others
STEPS_EACH = 12  # steps that must fit into SECONDS_EACH; larger configurations are timed with fewer sequences


@dataclass(frozen=True)
class Speed:
    """How fast a candidate trains.

    Attributes:
        flops_per_second: tokens_per_second times the task's FLOPs per token.
        extrapolated: from smaller shapes, or a usual share of the peak.
    """

    tokens_per_second: float
    flops_per_second: float
    extrapolated: bool = False


@dataclass(frozen=True)
class Speeds:
    """The speeds of all candidates, in their order.

    Attributes:
        doubt: what makes the timings doubtful, in words; "" if nothing does.
    """

    each: tuple[Speed, ...]
    doubt: str = ""


def find_speeds(
    shapes: Sequence[RunConfig],
    smaller: Iterable[RunConfig],
    workload: Workload,
    peak: dict[str, float],
    usual: float,
    until: float,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Speeds:
    """How fast each of `shapes` trains here.

    Args:
        smaller: shapes to time instead of those that are too large, in descending order of size.
        peak: FLOP/s by dtype; usual: an estimate of the FLOP/s that steps reach.
        until: when to be done, approximately, on `clock`.
    """
    device = shapes[0].runtime.device
    fingerprint = workload.data.fingerprint if workload.data is not None else ""
    keys = [known.key(config, fingerprint) for config in shapes]
    before = [known.recall("tokens per second", device, key) for key in keys]
    if all(before) and quiet(device):
        speeds = [speed(config, workload, rate or 0.0) for config, rate in zip(shapes, before, strict=True)]
        tell(shapes, speeds, workload, say, "known")
        return Speeds(tuple(speeds))

    # time what can be built; extrapolate the others from these, or from smaller ones
    seconds = min(SECONDS_EACH, max(0.0, until - clock()) / (len(shapes) + 1))
    trials = [trial_of(config, workload, usual, seconds / STEPS_EACH) for config in shapes]
    timed = {number: trial for number, trial in enumerate(trials) if trial is not None}
    instead = [] if timed else two_below(smaller, workload, usual, seconds / STEPS_EACH)
    measured, doubt = time_speeds([*timed.values(), *instead], workload, seconds, until, clock)
    if not doubt:
        kept = {
            keys[number]: (known.shape(shapes[number]), one.tokens_per_second)
            for number, one in zip(timed, measured, strict=False)
        }
        known.remember("tokens per second", device, kept)

    ceiling = max(peak.get(config.runtime.dtype, 0.0) for config in shapes)
    widths = [trial.config.model.d_model for trial in [*timed.values(), *instead]]
    seen = [(width, one.flops_per_second) for width, one in zip(widths, measured, strict=True)]
    by_number = dict(zip(timed, measured, strict=False))
    speeds = [
        by_number[number] if number in by_number else guessed(config, workload, seen, ceiling, usual)
        for number, config in enumerate(shapes)
    ]
    tell(shapes, speeds, workload, say)
    return Speeds(tuple(speeds), doubt)


def time_speeds(
    trials: Sequence[Trial], workload: Workload, seconds: float, until: float, clock: Callable[[], float]
) -> tuple[list[Speed], str]:
    """Time some trials in turns. Returns their speeds and what makes them doubtful ("" if nothing does)."""
    if not trials:
        return [], ""
    data = [batches for trial in trials if (batches := workload.batches(trial.config)) is not None]
    times = [trial.times for trial in trials]
    timed = throughput.time_in_turns([trial.config for trial in trials], seconds, data, times=times, until=until)
    speeds = [speed(trial.config, workload, one.tokens_per_second) for trial, one in zip(trials, timed, strict=True)]
    return speeds, trouble_of(timed)


def two_below(smaller: Iterable[RunConfig], workload: Workload, usual: float, most: float) -> list[Trial]:
    """The largest of these that can be timed, and a clearly narrower one, to see how the speed depends on the width."""
    rest = iter(smaller)
    first = first_trial(rest, workload, usual, most)
    if first is None:
        return []
    narrower = (config for config in rest if config.model.d_model <= 0.7 * first.config.model.d_model)
    second = first_trial(narrower, workload, usual, most)
    return [first] if second is None else [first, second]


def speed(config: RunConfig, workload: Workload, tokens_per_second: float) -> Speed:
    return Speed(tokens_per_second, tokens_per_second * workload.flops_per_token(config))


def guessed(
    config: RunConfig, workload: Workload, seen: Sequence[tuple[int, float]], ceiling: float, usual: float
) -> Speed:
    """The extrapolated speed of a shape that is not built."""
    flops = extrapolated(config.model.d_model, seen, ceiling) if seen else usual
    return Speed(flops / workload.flops_per_token(config), flops, extrapolated=True)


def tell(
    shapes: Sequence[RunConfig],
    speeds: Sequence[Speed],
    workload: Workload,
    say: Callable[[str], None],
    how: str = "",
) -> None:
    """Report one line per candidate."""
    for config, one in zip(shapes, speeds, strict=True):
        noted = "extrapolated, too large to be timed here" if one.extrapolated else how
        line = f"{workload.depth(config.model)} x {config.model.d_model}: {one.tokens_per_second:,.0f} tokens/s"
        say(f"{line} ({noted})" if noted else line)
