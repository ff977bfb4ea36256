"""The facts about a run, gathered from its records. Any of them may be missing.

Each value comes from result.json if the run has finished, else from the latest line of its metrics.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.budget import Budget, parse_budget
from isoflop.errors import UserError
from isoflop.records import (
    Expectation,
    ForecastLine,
    HeldOutLine,
    PreparedSource,
    Record,
    Run,
    SourceRead,
    TrainingLine,
)
from isoflop.records.plan import VERDICTS
from isoflop.report.figures import Interval
from isoflop.report.words import count, duration, fixed, percent, power


def measure(title: str, show: Callable[[float | None], str]) -> Any:
    """A field of Measures: the title of its row in the plan's table, and how its values are formatted."""
    return field(default=None, metadata={"title": title, "show": show})


@dataclass(frozen=True)
class Measures:
    """Quantities that are both planned and reached: a row each in the plan's table. `flops` are 6ND; `seconds` are of
    training."""

    bits_per_byte: float | None = measure("Held-out bits per byte", partial(fixed, digits=3))
    nats_per_token: float | None = measure("Held-out nats per token", partial(fixed, digits=3))
    seconds: float | None = measure("Training time", duration)
    tokens: float | None = measure("Tokens", count)
    flops: float | None = measure("FLOPs (6 N D)", power)
    steps: float | None = measure("Steps", count)
    peak_share: float | None = measure("Share of measured peak", percent)


@dataclass(frozen=True)
class Facts:
    """The facts about one run.

    Attributes:
        low, high, level: the interval of the expected bits per byte and its nominal coverage.
        parameters: N of 6ND (block and head weights); total_parameters: every weight.
        bits_per_nat: held-out bits per byte divided by nats per token.
        verdict: "inside", or "better" or "worse" than the interval; None before the end or without an expectation.
    """

    run: Run
    reached: Measures
    expected: Measures
    low: float | None
    high: float | None
    level: float | None
    parameters: float | None
    total_parameters: float | None
    tokens_per_second: float | None
    perplexity: float | None
    bits_per_nat: float | None
    verdict: str | None

    @property
    def finished(self) -> bool:
        return self.run.status == "finished"

    @property
    def epochs(self) -> float | None:
        """Tokens read divided by training tokens, all sources together."""
        return divide(self.reached.tokens or None, self.run.data.train.tokens)

    @cached_property
    def budget(self) -> Budget | None:
        """The budget of the plan; None for "+1h", which extends a budget that is not on record."""
        try:
            budget = parse_budget(str(self.run.plan.budget))
        except UserError:
            return None
        return None if budget.more else budget

    @property
    def seconds_spent(self) -> float | None:
        """Seconds that count against a budget in seconds: training, pilots and an abandoned attempt."""
        before = [self.run.result.phases.get(name, 0.0) for name in ("pilots", "abandoned")]
        return None if self.reached.seconds is None else self.reached.seconds + sum(before)

    @property
    def flops_spent(self) -> float | None:
        """FLOPs that count against a budget in FLOPs: those of the run and of its pilots."""
        before = [run.flops or 0.0 for run in self.run.plan.pilots or ()]
        return None if self.reached.flops is None else self.reached.flops + sum(before)

    @property
    def starts(self) -> int:
        """How often the run was started or resumed."""
        return max(1, sum(event.event in ("started", "resumed") for event in self.run.events))

    @property
    def expected_bits(self) -> Interval | None:
        """The expected held-out bits per byte with its interval."""
        value = self.expected.bits_per_byte
        if value is None:
            return None
        return Interval(value, value if self.low is None else self.low, value if self.high is None else self.high)

    @property
    def planned_steps(self) -> float | None:
        """The steps of the last decision about the run's end, else of the plan."""
        decided = [decision.steps for decision in self.run.decisions]
        return first_known(*reversed(decided), self.expected.steps)

    @property
    def decay_step(self) -> float | None:
        """The last step of the learning rate's plateau; None without a plateau, or if it has not ended yet."""
        return last_of_plateau(column(self.run.training, "step"), column(self.run.training, "lr"))


def read_facts(run: Run) -> Facts:
    plan, result = run.plan, run.result
    last = run.training[-1] if run.training else TrainingLine()
    last_heldout = run.heldout[-1] if run.heldout else HeldOutLine()
    heldout, planned = result.heldout, plan.expected or Expectation()

    nats = first_known(heldout.nats_per_token, last_heldout.heldout_loss)
    bits = first_known(heldout.bits_per_byte, last_heldout.heldout_bits_per_byte)
    ratio = bits_per_nat(bits, nats, run)
    seconds = first_known(result.seconds, last.seconds)
    tokens = first_known(result.tokens, last.tokens)
    flops = first_known(result.flops, last.flops)
    peak = measured_peak(run)
    reached = Measures(
        bits,
        nats,
        seconds,
        tokens,
        flops,
        first_known(result.step, last.step),
        first_known(result.peak_share, share_of(divide(divide(flops, seconds), peak))),
    )
    expected = Measures(
        planned.bits_per_byte,
        divide(planned.bits_per_byte, ratio),
        plan.seconds,
        plan.tokens,
        plan.flops,
        plan.steps,
        divide(divide(plan.flops, plan.seconds), peak),
    )

    return Facts(
        run=run,
        reached=reached,
        expected=expected,
        low=planned.low,
        high=planned.high,
        level=planned.level,
        parameters=plan.parameters,
        total_parameters=first_known(plan.total_parameters, plan.parameters),
        tokens_per_second=first_known(result.tokens_per_second, divide(tokens, seconds), last.tokens_per_second),
        perplexity=first_known(heldout.perplexity, math.exp(nats) if nats is not None and nats < 700 else None),
        bits_per_nat=ratio,
        verdict=judge(run, bits, planned),
    )


def judge(run: Run, bits: float | None, expected: Expectation) -> str | None:
    if run.result.missing or run.status == "running":
        return None
    recorded = run.result.verdict
    return recorded if recorded in VERDICTS else expected.verdict(bits)


def share_of(value: float | None) -> float | None:
    """A share of the peak; None above 1: then the measured peak is too low, which is corrected when the run ends."""
    return value if value is None or value <= 1 else None


def measured_peak(run: Run) -> float | None:
    """The highest FLOP/s measured on this machine in the dtype of the run."""
    dtype = run.plan.calibration.dtype or run.settings.runtime.dtype or "float32"
    return first_known(run.result.peak_flops, run.plan.peak.get(dtype), run.environment.peak.get(dtype))


def bits_per_nat(bits: float | None, nats: float | None, run: Run) -> float | None:
    """bits per byte = nats per token / ln 2 / bytes per token; from an evaluation if there was one."""
    if bits and nats:
        return bits / nats
    bytes_per_token = divide(run.data.heldout.bytes, run.data.heldout.tokens)
    return divide(1 / math.log(2), bytes_per_token)


def bits_per_measured_nat(run: Run, ratio: float | None) -> float | None:
    """Bits per byte on the complete held-out text per nat per token on the part of it that is measured during training.

    Args:
        ratio: the same on that part alone, for runs that never measured all of the held-out text.
    """
    complete = [line for line in run.heldout if line.wide_bits_per_byte and line.heldout_loss]
    return divide(complete[-1].wide_bits_per_byte, complete[-1].heldout_loss) if complete else ratio


def running_forecast(run: Run) -> str:
    """The latest running forecast in words; empty if there is none yet."""
    line = run.forecasts[-1] if run.forecasts else ForecastLine()
    if line.forecast_bits_per_byte is None or line.forecast_low is None or line.forecast_high is None:
        return ""
    return f"on course for {line.forecast_bits_per_byte:.2f} ({line.forecast_low:.2f} to {line.forecast_high:.2f})"


def machine(run: Run) -> str:
    """The machine in a few words: "2 threads, AMD EPYC 7B13"."""
    environment = run.environment
    if environment.gpu:
        return environment.gpu
    name = re.sub(r"\((R|TM|tm|r)\)|\bCPU\b|@.*|\d+-Core|\bProcessor\b", " ", environment.processor or "")
    threads = first_known(run.settings.runtime.threads or None, environment.threads)
    parts = [f"{threads:.0f} thread{'s' if threads != 1 else ''}" if threads else "", " ".join(name.split())]
    return ", ".join(part for part in parts if part)


def source_table(run: Run) -> list[tuple[str, PreparedSource, SourceRead]]:
    """Per source its name, its prepared part (data.json) and its part that was read (result.json)."""
    prepared, read = run.data.sources, run.result.data.sources
    return [
        (name, prepared.get(name, PreparedSource()), read.get(name, SourceRead()))
        for name in dict.fromkeys([*prepared, *read])
    ]


def chosen_candidate(run: Run) -> int | None:
    return next((index for index, shape in enumerate(run.plan.candidates) if shape.chosen), None)


def tokens_at(run: Run, step: float) -> float | None:
    """Tokens read after `step`, interpolated between log lines; beyond the last one, extrapolated at its mean rate."""
    steps, tokens = column(run.training, "step"), column(run.training, "tokens")
    is_known = np.isfinite(steps) & np.isfinite(tokens)
    if not is_known.any():
        return None
    steps, tokens = steps[is_known], tokens[is_known]
    if step > steps[-1]:
        return float(tokens[-1] / steps[-1] * step) if steps[-1] > 0 else None
    return float(np.interp(step, steps, tokens))


def last_of_plateau(steps_T: NDArray[np.float64], lr_T: NDArray[np.float64]) -> float | None:
    """The last step at the highest learning rate, if at least a twentieth of the steps were at it and it fell after."""
    is_known = np.isfinite(steps_T) & np.isfinite(lr_T)
    steps, lr = steps_T[is_known], lr_T[is_known]
    if lr.size < 3 or lr.max() <= 0:
        return None
    on_top = np.flatnonzero(lr >= 0.9999 * lr.max())
    if on_top.size < max(3, lr.size / 20) or on_top[-1] == lr.size - 1:
        return None
    return float(steps[on_top[-1]])


def column(records: Sequence[Record], name: str) -> NDArray[np.float64]:
    """One field of some records as an array; NaN where it is missing."""
    values = (getattr(record, name) for record in records)
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def first_known(*values: float | None) -> float | None:
    """The first value that is not None."""
    return next((value for value in values if value is not None), None)


def divide(numerator: float | None, denominator: float | None) -> float | None:
    """The quotient; None if one of them is unknown or the denominator is 0."""
    return numerator / denominator if numerator is not None and denominator else None
