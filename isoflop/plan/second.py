"""Whether a run is better begun anew: its plan was made in a moment in which the machine ran at another speed."""

import math
from dataclasses import dataclass, replace
from functools import partial

from isoflop import processors
from isoflop.plan.advice import Advice
from isoflop.plan.pilot import seen_of
from isoflop.plan.prior import expect
from isoflop.plan.trials import STEEPEST
from isoflop.runtime import keep_threads_and_random_state
from isoflop.trainer import RunConfig, throughput

FROM, UNTIL = 0.04, 0.2  # shares of a budget between which a run may be begun anew
CONTRADICTS = 1.3  # times that the speed must be more or less than what was planned with
BYTES_PER_TOKEN = 4.0  # rather many, so that text that is not prepared yet is not overrated


@dataclass(frozen=True)
class Outlook:
    """The bits per byte to expect of a run that goes on, and of one that is begun anew on the seconds that are left."""

    onward: float
    anew: float


def outlook(
    advice: Advice, tokens_per_second: float, tokens: float, seconds: float, gain: float = 1.0
) -> Outlook | None:
    """What to expect where the speed contradicts the plan; None where it does not, or nothing can be said.

    Args:
        advice: the plan that the run follows.
        tokens_per_second: of its steps, as they are now.
        tokens, seconds: read so far, and left of the budget.
        gain: how many times as fast the steps of a new run would be, see `gain_of_threads`.
    """
    text, unique, workload = advice.text, advice.unique_tokens, advice.workload
    planned = next((one.tokens_per_second for one in advice.candidates if one.chosen), None)
    if text is None or not unique or not planned or workload is None or workload.text is None or seconds <= 0:
        return None
    if tokens_per_second <= 0 or abs(math.log(gain * tokens_per_second / planned)) < math.log(CONTRADICTS):
        return None

    model = advice.config.model
    forecast = partial(expect, text=text, seen=seen_of(advice.pilots), strange=bool(advice.differences))
    onward = forecast(advice.parameters, tokens + seconds * tokens_per_second, unique).bits_per_byte
    all_of_it = max(unique, workload.text.size / BYTES_PER_TOKEN)
    flops = gain * tokens_per_second * advice.parameters  # 6 left out on both sides
    anew = []
    for rung in workload.ladder:
        size = workload.size(rung, advice.config)
        slower = min(1.0, rung[1] / model.d_model) ** STEEPEST  # narrower products fill the machine less
        anew.append(forecast(size, max(1.0, seconds * flops * slower / size), all_of_it).bits_per_byte)
    if onward is None:
        return None
    return Outlook(onward, min(value for value in anew if value is not None))


def may_have_too_few_threads(advice: Advice) -> bool:
    """Whether fewer threads than this machine has processors were chosen while something else was using them."""
    runtime = advice.config.runtime
    return bool(advice.calibration.doubt) and runtime.device == "cpu" and 0 < runtime.threads < processors.cores()


def gain_of_threads(config: RunConfig, seconds: float) -> float:
    """How many times as fast steps are with all threads as with those of `config`, timed in turns for about `seconds`
    in all. The threads and random numbers of the run that goes on meanwhile stay as they are."""
    everything = replace(config, runtime=replace(config.runtime, threads=processors.cores()))
    with keep_threads_and_random_state():
        few, all_of_them = throughput.time_in_turns([config, everything], seconds / 2)
    if few.trouble or all_of_them.trouble:
        return 1.0
    return all_of_them.tokens_per_second / few.tokens_per_second


def allows(advice: Advice) -> bool:
    """Whether a plan chose the shape itself, by a speed that can turn out to be wrong."""
    forecast = advice.expected is not None or bool(advice.differences)
    return advice.budget.kind == "seconds" and forecast and advice.text is not None
