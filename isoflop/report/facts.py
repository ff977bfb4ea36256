"""What a run says about itself, gathered from its files with every key possibly missing.

Each value is read where the finished run wrote it (result.json), else as far as the metrics of a live run go.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.budget import Budget, parse_budget
from isoflop.errors import UserError
from isoflop.records import Run
from isoflop.report.figures import Interval
from isoflop.report.words import dig, named, number, objects


@dataclass(frozen=True)
class Measures:
    """What is both planned and reached: one line each in the plan's table. `flops` are 6ND, `seconds` of training."""

    bits_per_byte: float | None = None
    nats_per_token: float | None = None
    seconds: float | None = None
    tokens: float | None = None
    flops: float | None = None
    steps: float | None = None
    peak_share: float | None = None


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
        return bool(self.run.result) and self.run.status == "finished"

    @property
    def epochs(self) -> float | None:
        """Tokens read over tokens there are, all sources together."""
        there = number(self.run.data, "train", "tokens")
        return self.reached.tokens / there if self.reached.tokens and there else None

    @cached_property
    def budget(self) -> Budget | None:
        """What the plan was made for; None for "+1h", which is on top of something that is not written down."""
        try:
            budget = parse_budget(str(dig(self.run.plan, "budget")))
        except UserError:
            return None
        return None if budget.more else budget

    @property
    def starts(self) -> int:
        """How many processes, or groups of them, have worked on the run one after another."""
        return max(1, sum(event.get("event") in ("started", "resumed") for event in self.run.events))

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
        decided = [number(decision, "steps") for decision in self.run.decisions]
        return first(*reversed(decided), self.expected.steps)

    @property
    def decay_step(self) -> float | None:
        """The last step of the learning rate's last plateau; None where it never stayed or has not come down since."""
        return last_of_plateau(column(self.run.training, "step"), column(self.run.training, "lr"))


def read_facts(run: Run) -> Facts:
    plan, result = run.plan, run.result
    last = run.training[-1] if run.training else {}
    held = dig(result, "heldout") or {}
    live = run.heldout[-1] if run.heldout else {}
    nats = first(number(held, "nats_per_token"), number(live, "heldout_loss"))
    bits = first(number(held, "bits_per_byte"), number(live, "heldout_bits_per_byte"))
    ratio = bits_per_nat(bits, nats, run)
    seconds = first(number(result, "seconds"), number(last, "seconds"))
    tokens = first(number(result, "tokens"), number(last, "tokens"))
    flops = first(number(result, "flops"), number(last, "flops"))
    peak = measured_peak(run)
    reached = Measures(
        bits,
        nats,
        seconds,
        tokens,
        flops,
        first(number(result, "step"), number(last, "step")),
        first(number(result, "peak_share"), over(over(flops, seconds), peak)),
    )
    expected_bits = number(plan, "expected", "bits_per_byte")
    expected = Measures(
        expected_bits,
        over(expected_bits, ratio),
        number(plan, "seconds"),
        number(plan, "tokens"),
        number(plan, "flops"),
        number(plan, "steps"),
        over(over(number(plan, "flops"), number(plan, "seconds")), peak),
    )
    low, high = number(plan, "expected", "low"), number(plan, "expected", "high")
    return Facts(
        run=run,
        reached=reached,
        expected=expected,
        low=low,
        high=high,
        level=number(plan, "expected", "level"),
        parameters=number(plan, "parameters"),
        total_parameters=first(number(plan, "total_parameters"), number(plan, "parameters")),
        tokens_per_second=first(
            number(result, "tokens_per_second"), over(tokens, seconds), number(last, "tokens_per_second")
        ),
        perplexity=first(number(held, "perplexity"), math.exp(nats) if nats is not None and nats < 700 else None),
        bits_per_nat=ratio,
        verdict=judge(run, bits, low, high),
    )


def judge(run: Run, bits: float | None, low: float | None, high: float | None) -> str | None:
    if not run.result or run.status == "running":
        return None
    said = run.result.get("verdict")
    if said in ("inside", "better", "worse"):
        return str(said)
    if bits is None or low is None or high is None:
        return None
    return "better" if bits < low else "worse" if bits > high else "inside"


def measured_peak(run: Run) -> float | None:
    """FLOP/s that this machine reached at best in the dtype of the run."""
    dtype = dig(run.plan, "calibration", "dtype") or dig(run.config, "runtime", "dtype") or "float32"
    return first(number(run.plan, "peak", str(dtype)), number(run.environment, "peak", str(dtype)))


def bits_per_nat(bits: float | None, nats: float | None, run: Run) -> float | None:
    """bits per byte = nats per token / ln 2 / bytes per token; from the evaluation itself where there was one."""
    if bits and nats:
        return bits / nats
    bytes_per_token = over(number(run.data, "heldout", "bytes"), number(run.data, "heldout", "tokens"))
    return over(1 / math.log(2), bytes_per_token)


def machine(run: Run) -> str:
    """The machine in a few words: "2 threads, AMD EPYC 7B13"."""
    said = run.environment
    if said.get("gpu"):
        return str(said["gpu"])
    name = re.sub(r"\((R|TM|tm|r)\)|\bCPU\b|@.*|\d+-Core|\bProcessor\b", " ", str(said.get("processor") or ""))
    threads = first(number(run.config, "runtime", "threads") or None, number(said, "threads"))
    parts = [f"{threads:.0f} thread{'s' if threads != 1 else ''}" if threads else "", " ".join(name.split())]
    return ", ".join(part for part in parts if part)


def source_table(run: Run) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Per source its name, what was prepared of it (data.json) and what was read of it (result.json)."""
    prepared, read = named(dig(run.data, "sources")), named(dig(run.result, "data", "sources"))
    return [(name, prepared.get(name, {}), read.get(name, {})) for name in dict.fromkeys([*prepared, *read])]


def chosen_candidate(run: Run) -> int | None:
    shapes = objects(dig(run.plan, "candidates"))
    return next((index for index, shape in enumerate(shapes) if shape.get("chosen")), None)


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


def column(lines: Sequence[dict[str, Any]], key: str) -> NDArray[np.float64]:
    """One key of log lines as an array; NaN where it is missing, null or not a number."""
    values = (number(line, key) for line in lines)
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def over(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None
