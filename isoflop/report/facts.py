"""What a run says about itself, gathered from its records with every field possibly unknown.

Each value is read where the finished run wrote it (result.json), else as far as the metrics of a live run go.
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
    """A field of Measures: what its line in the plan's table is called, and how its values are written."""
    return field(default=None, metadata={"title": title, "show": show})


@dataclass(frozen=True)
class Measures:
    """What is both planned and reached: one line each in the plan's table. `flops` are 6ND, `seconds` of training."""

    bits_per_byte: float | None = measure("Held-out bits per byte", partial(fixed, digits=3))
    nats_per_token: float | None = measure("Held-out nats per token", partial(fixed, digits=3))
    seconds: float | None = measure("Training time", duration)
    tokens: float | None = measure("Tokens", count)
    flops: float | None = measure("FLOPs (6 N D)", power)
    steps: float | None = measure("Steps", count)
    peak_share: float | None = measure("Share of measured peak", percent)


@dataclass(frozen=True)
class Facts:
    """One run, read for people.

    Attributes:
        low, high, level: the interval of the expected bits per byte and the chance it is meant to have.
        parameters: N of 6ND (block and head weights); total_parameters: every weight.
        bits_per_nat: held-out bits per byte for one nat per token.
        verdict: "inside", "better" or "worse" than the interval; None before the end or without an expectation.
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
        """Tokens read over tokens there are, all sources together."""
        there = self.run.data.train.tokens
        return self.reached.tokens / there if self.reached.tokens and there else None

    @cached_property
    def budget(self) -> Budget | None:
        """What the plan was made for; None for "+1h", which is on top of something that is not written down."""
        try:
            budget = parse_budget(str(self.run.plan.budget))
        except UserError:
            return None
        return None if budget.more else budget

    @property
    def seconds_spent(self) -> float | None:
        """Of a budget in seconds: training, and what came before it within the budget, pilots and an attempt that was
        given up."""
        before = [self.run.result.phases.get(name, 0.0) for name in ("pilots", "abandoned")]
        return None if self.reached.seconds is None else self.reached.seconds + sum(before)

    @property
    def flops_spent(self) -> float | None:
        """Of a budget in FLOPs: the run's, and its pilots'."""
        before = [run.flops or 0.0 for run in self.run.plan.pilots or ()]
        return None if self.reached.flops is None else self.reached.flops + sum(before)

    @property
    def starts(self) -> int:
        """How many processes, or groups of them, have worked on the run one after another."""
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
        """The steps of the plan, or of the last decision about them."""
        decided = [decision.steps for decision in self.run.decisions]
        return first(*reversed(decided), self.expected.steps)

    @property
    def decay_step(self) -> float | None:
        """The last step of the learning rate's last plateau; None where it never stayed or has not come down since."""
        return last_of_plateau(column(self.run.training, "step"), column(self.run.training, "lr"))


def read_facts(run: Run) -> Facts:
    plan, result = run.plan, run.result
    last = run.training[-1] if run.training else TrainingLine()
    live = run.heldout[-1] if run.heldout else HeldOutLine()
    held, planned = result.heldout, plan.expected or Expectation()

    nats = first(held.nats_per_token, live.heldout_loss)
    bits = first(held.bits_per_byte, live.heldout_bits_per_byte)
    ratio = bits_per_nat(bits, nats, run)
    seconds = first(result.seconds, last.seconds)
    tokens = first(result.tokens, last.tokens)
    flops = first(result.flops, last.flops)
    peak = measured_peak(run)
    reached = Measures(
        bits,
        nats,
        seconds,
        tokens,
        flops,
        first(result.step, last.step),
        first(result.peak_share, share_of(over(over(flops, seconds), peak))),
    )
    expected = Measures(
        planned.bits_per_byte,
        over(planned.bits_per_byte, ratio),
        plan.seconds,
        plan.tokens,
        plan.flops,
        plan.steps,
        over(over(plan.flops, plan.seconds), peak),
    )
    return Facts(
        run=run,
        reached=reached,
        expected=expected,
        low=planned.low,
        high=planned.high,
        level=planned.level,
        parameters=plan.parameters,
        total_parameters=first(plan.total_parameters, plan.parameters),
        tokens_per_second=first(result.tokens_per_second, over(tokens, seconds), last.tokens_per_second),
        perplexity=first(held.perplexity, math.exp(nats) if nats is not None and nats < 700 else None),
        bits_per_nat=ratio,
        verdict=judge(run, bits, planned),
    )


def judge(run: Run, bits: float | None, expected: Expectation) -> str | None:
    if run.result.missing or run.status == "running":
        return None
    said = run.result.verdict
    return said if said in VERDICTS else expected.verdict(bits)


def share_of(value: float | None) -> float | None:
    """A share of the peak so far; None if the run is faster than what was taken for the peak, which is corrected when
    the run ends."""
    return value if value is None or value <= 1 else None


def measured_peak(run: Run) -> float | None:
    """FLOP/s that this machine reached at best in the dtype of the run."""
    dtype = run.plan.calibration.dtype or run.settings.runtime.dtype or "float32"
    return first(run.result.peak_flops, run.plan.peak.get(dtype), run.environment.peak.get(dtype))


def bits_per_nat(bits: float | None, nats: float | None, run: Run) -> float | None:
    """bits per byte = nats per token / ln 2 / bytes per token; from the evaluation itself where there was one."""
    if bits and nats:
        return bits / nats
    bytes_per_token = over(run.data.heldout.bytes, run.data.heldout.tokens)
    return over(1 / math.log(2), bytes_per_token)


def bits_per_measured_nat(run: Run, ratio: float | None) -> float | None:
    """Bits per byte on all that is held out, for one nat per token measured along the way, which is a part of it.

    Args:
        ratio: that of the part, where the whole was not looked at.
    """
    wide = [line for line in run.heldout if line.wide_bits_per_byte and line.heldout_loss]
    return over(wide[-1].wide_bits_per_byte, wide[-1].heldout_loss) if wide else ratio


def outlook(run: Run) -> str:
    """What a run that goes on is on course for, in words; empty where nothing was said yet."""
    line = run.forecasts[-1] if run.forecasts else ForecastLine()
    if line.forecast_bits_per_byte is None or line.forecast_low is None or line.forecast_high is None:
        return ""
    return f"on course for {line.forecast_bits_per_byte:.2f} ({line.forecast_low:.2f} to {line.forecast_high:.2f})"


def machine(run: Run) -> str:
    """The machine in a few words: "2 threads, AMD EPYC 7B13"."""
    said = run.environment
    if said.gpu:
        return said.gpu
    name = re.sub(r"\((R|TM|tm|r)\)|\bCPU\b|@.*|\d+-Core|\bProcessor\b", " ", said.processor or "")
    threads = first(run.settings.runtime.threads or None, said.threads)
    parts = [f"{threads:.0f} thread{'s' if threads != 1 else ''}" if threads else "", " ".join(name.split())]
    return ", ".join(part for part in parts if part)


def source_table(run: Run) -> list[tuple[str, PreparedSource, SourceRead]]:
    """Per source its name, what was prepared of it (data.json) and what was read of it (result.json)."""
    prepared, read = run.data.sources, run.result.data.sources
    return [
        (name, prepared.get(name, PreparedSource()), read.get(name, SourceRead()))
        for name in dict.fromkeys([*prepared, *read])
    ]


def chosen_candidate(run: Run) -> int | None:
    return next((index for index, shape in enumerate(run.plan.candidates) if shape.chosen), None)


def tokens_at(run: Run, step: float) -> float | None:
    """Tokens read after `step`, between the records there are; beyond the last one, at its tokens per step."""
    steps, tokens = column(run.training, "step"), column(run.training, "tokens")
    known = np.isfinite(steps) & np.isfinite(tokens)
    if not known.any():
        return None
    steps, tokens = steps[known], tokens[known]
    if step > steps[-1]:
        return float(tokens[-1] / steps[-1] * step) if steps[-1] > 0 else None
    return float(np.interp(step, steps, tokens))


def last_of_plateau(steps_T: NDArray[np.float64], lr_T: NDArray[np.float64]) -> float | None:
    """The step at which a learning rate that had stayed at its highest for a twentieth of the run begins to fall."""
    known = np.isfinite(steps_T) & np.isfinite(lr_T)
    steps, lr = steps_T[known], lr_T[known]
    if lr.size < 3 or lr.max() <= 0:
        return None
    on_top = np.flatnonzero(lr >= 0.9999 * lr.max())
    if on_top.size < max(3, lr.size / 20) or on_top[-1] == lr.size - 1:
        return None
    return float(steps[on_top[-1]])


def column(records: Sequence[Record], name: str) -> NDArray[np.float64]:
    """One field of some records as an array, NaN where nothing is known."""
    values = (getattr(record, name) for record in records)
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def over(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None
