"""Whether to plan a run again: its plan was made while the machine ran at another speed.

job/attempts.py asks during the run, and restarts it.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

from isoflop import processors
from isoflop.plan.advice import Advice
from isoflop.plan.pilot import observations
from isoflop.plan.prior import expect
from isoflop.plan.trials import STEEPEST
from isoflop.runtime import keep_threads_and_random_state
from isoflop.trainer import RunConfig, throughput

FROM, UNTIL = 0.04, 0.2  # shares of a budget between which a run may be planned again
CONTRADICTS = 1.3  # the speed contradicts the plan if it is higher or lower by at least this factor
BYTES_PER_TOKEN = 4.0  # rather many, so that the tokens of text that is not prepared yet are not overestimated


@dataclass(frozen=True)
class Outlook:
    """The expected bits per byte if the run continues, and if it is planned again for the seconds that are left."""

    continued: float
    replanned: float


def outlook(
    advice: Advice, tokens_per_second: float, tokens: float, seconds: float, gain: float = 1.0
) -> Outlook | None:
    """Compare continuing a run with planning it again; None if the speed does not contradict the plan, or there is no
    forecast.

    Args:
        advice: the plan that the run follows.
        tokens_per_second: the present speed of its steps.
        tokens: read so far; seconds: left of the budget.
        gain: the factor by which the steps of a new run would be faster, see `speedup_of_all_threads`.
    """
    text, unique, workload = advice.text, advice.unique_tokens, advice.workload
    planned = next((one.tokens_per_second for one in advice.candidates if one.chosen), None)
    if text is None or not unique or not planned or workload is None or workload.text is None or seconds <= 0:
        return None
    if tokens_per_second <= 0 or abs(math.log(gain * tokens_per_second / planned)) < math.log(CONTRADICTS):
        return None

    # the run so far
    pilots, other_recipe = observations(advice.pilots), bool(advice.differences)
    forecast = partial(expect, text=text, pilots=pilots, other_recipe=other_recipe)
    continued = forecast(advice.parameters, tokens + seconds * tokens_per_second, unique).bits_per_byte

    # the best shape for the seconds that are left
    all_tokens = max(unique, workload.text.size / BYTES_PER_TOKEN)
    rate = gain * tokens_per_second * advice.parameters  # FLOP/s over 6
    replanned = []
    for rung in workload.ladder:
        size = workload.size(rung, advice.config)
        slower = min(1.0, rung[1] / advice.config.model.d_model) ** STEEPEST  # narrow products are less efficient
        replanned.append(forecast(size, max(1.0, seconds * rate * slower / size), all_tokens).bits_per_byte)
    if continued is None:
        return None
    return Outlook(continued, min(value for value in replanned if value is not None))


def may_have_too_few_threads(advice: Advice) -> bool:
    """Whether the plan chose fewer threads than there are processors while another program was using them."""
    runtime = advice.config.runtime
    return bool(advice.calibration.doubt) and runtime.device == "cpu" and 0 < runtime.threads < processors.cores()


def speedup_of_all_threads(config: RunConfig, seconds: float) -> float:
    """The speed of steps with all threads over that with the threads of `config`; 1 if the timing is doubtful.

    Both are timed in turns, for about `seconds` in all. The threads and the random state of the current run are kept.
    """
    with_all = replace(config, runtime=replace(config.runtime, threads=processors.cores()))
    with keep_threads_and_random_state():
        now, then = throughput.time_in_turns([config, with_all], seconds / 2)
    if now.trouble or then.trouble:
        return 1.0
    return then.tokens_per_second / now.tokens_per_second


def may_replan(advice: Advice) -> bool:
    """Whether a run may be planned again: the planner chose its shape, by a measured speed."""
    forecast = advice.expected is not None or bool(advice.differences)
    return advice.budget.kind == "seconds" and forecast and advice.text is not None
