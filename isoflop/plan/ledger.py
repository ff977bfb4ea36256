"""Scores the forecasts in the ledger (records/ledger.py) against their outcomes: `isoflop plan score`.

Intervals are judged by coverage (the share of intervals that contain the outcome), by width, and by the interval score,
which combines both (Gneiting & Raftery 2007, equation 43),

    S_a = (high - low) + 2/a (low - x if x is below) + 2/a (x - high if x is above),    a = 1 - level,

here of logarithms, so that 0.1 is about 10 % of the bits per byte on any text. Its expected value is smallest for the
true quantiles. The bias is the mean of log(reached / expected): above 0, runs end worse than forecast.

A run that diverged lies outside every interval and has no interval score. A run that never ended is counted and not
judged. Of a run that was planned again or got more budget, the last forecast is judged. No score changes a forecast.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.special import betaincinv

from isoflop.records import Expectation, Ledger
from isoflop.records.ledger import DIVERGED, FINISHED, LedgerLine

LEVELS = (0.5, 0.8, 0.9)
ENOUGH = 20  # with fewer forecasts, a line says that they are too few
CERTAIN = 0.9  # confidence level of the interval around a coverage


@dataclass(frozen=True)
class Scored:
    """A forecast with its outcome.

    Attributes:
        corpus: the names of the sources; fingerprint: of the prepared data.
        flops: as planned, 6 N D.
        pilots: the number of pilots that the forecast was made from.
        reached: bits per byte; None if the run diverged.
    """

    run: str
    corpus: str
    fingerprint: str
    flops: float
    pilots: int
    expected: Expectation
    reached: float | None

    @property
    def error(self) -> float | None:
        """log(reached / expected); None if the run diverged."""
        value = self.expected.bits_per_byte
        return None if not self.reached or not value else math.log(self.reached / value)

    def inside(self, level: float) -> bool | None:
        """Whether the interval of a level contains the outcome; None if there is no such interval."""
        bounds = self.expected.between(level)
        if bounds is None or bounds.low is None or bounds.high is None:
            return None
        return self.reached is not None and bounds.low <= self.reached <= bounds.high

    def score(self, level: float) -> tuple[float, float] | None:
        """Interval score and width, of logarithms; None if there is no such interval or the run diverged."""
        bounds = self.expected.between(level)
        if bounds is None or not bounds.low or not bounds.high or not self.reached:
            return None
        low, high, x = math.log(bounds.low), math.log(bounds.high), math.log(self.reached)
        outside = max(0.0, low - x) + max(0.0, x - high)
        return high - low + 2 / (1 - level) * outside, high - low


@dataclass(frozen=True)
class Coverage:
    """The coverage of the intervals of one level.

    Attributes:
        inside, of: the number of intervals that contain the outcome, and of all intervals.
        share: inside / of; low, high: the confidence interval of the true share (Clopper & Pearson, level CERTAIN).
        score, width: mean interval score and mean width, of logarithms; None if no run finished.
    """

    level: float
    inside: int
    of: int
    share: float
    low: float
    high: float
    score: float | None
    width: float | None


@dataclass(frozen=True)
class Summary:
    """The scores of a group of forecasts.

    Attributes:
        forecasts: the number judged, diverged runs included.
        bias: mean of log(reached / expected); error: mean of its absolute value.
    """

    name: str
    forecasts: int
    diverged: int
    bias: float | None
    error: float | None
    coverage: tuple[Coverage, ...]

    @property
    def enough(self) -> bool:
        return self.forecasts >= ENOUGH


@dataclass(frozen=True)
class Score:
    """The scores of all forecasts in the ledger.

    Attributes:
        unfinished: forecasts of runs that, as far as is known, neither finished nor diverged.
        replaced: forecasts of runs that were planned again, or got more budget, before they ended.
        unrecorded: outcomes without a recorded forecast (earlier versions wrote none).
        broken: lines that could not be read.
    """

    whole: Summary
    by_corpus: tuple[Summary, ...]
    by_size: tuple[Summary, ...]
    unfinished: int
    replaced: int
    unrecorded: int
    broken: int

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "enough": self.whole.enough}


def score(ledger: Ledger) -> Score:
    """Coverage, interval score and bias of all recorded forecasts that have an outcome."""
    ended: dict[str, LedgerLine] = {}
    unrecorded = 0
    for outcome in ledger.outcomes:
        if outcome.forecast in ledger.forecasts and outcome.status in (FINISHED, DIVERGED):
            ended[outcome.forecast or ""] = outcome  # the last one: a diverged run can be corrected and resumed
        else:
            unrecorded += 1

    replaced = {one.replaces for one in ledger.forecasts.values() if one.replaces and one.replaces not in ended}
    judged = [
        Scored(
            run=forecast.run or "",
            corpus=forecast.corpus or "?",
            fingerprint=forecast.fingerprint or "",
            flops=forecast.flops or 0.0,
            pilots=forecast.pilots or 0,
            expected=forecast.expected or Expectation(),
            reached=ended[name].reached_bits_per_byte if ended[name].status == FINISHED else None,
        )
        for name, forecast in ledger.forecasts.items()
        if name in ended
    ]
    unfinished = [name for name in ledger.forecasts if name not in ended and name not in replaced]
    return Score(
        whole=summary("all", judged),
        by_corpus=grouped(judged, lambda one: one.corpus),
        by_size=grouped(judged, lambda one: decade(one.flops)),
        unfinished=len(unfinished),
        replaced=len(replaced & set(ledger.forecasts)),
        unrecorded=unrecorded,
        broken=ledger.broken,
    )


def grouped(judged: Sequence[Scored], by: Callable[[Scored], str]) -> tuple[Summary, ...]:
    """A summary per value of `by`, in order of the values."""
    names = sorted({by(one) for one in judged})
    return tuple(summary(name, [one for one in judged if by(one) == name]) for name in names)


def decade(flops: float) -> str:
    """The decade of an amount of compute, in words: "1e13 to 1e14 FLOPs"."""
    if flops <= 0:
        return "unknown"
    power = math.floor(math.log10(flops))
    return f"1e{power:02d} to 1e{power + 1:02d} FLOPs"


def summary(name: str, judged: Sequence[Scored]) -> Summary:
    errors = [one.error for one in judged if one.error is not None]
    return Summary(
        name=name,
        forecasts=len(judged),
        diverged=sum(one.reached is None for one in judged),
        bias=mean(errors),
        error=mean(map(abs, errors)),
        coverage=tuple(one for level in LEVELS if (one := coverage(judged, level)) is not None),
    )


def coverage(judged: Sequence[Scored], level: float) -> Coverage | None:
    """The coverage of one level; None if no forecast has an interval of that level."""
    held = [inside for one in judged if (inside := one.inside(level)) is not None]
    if not held:
        return None
    scores = [pair for one in judged if (pair := one.score(level)) is not None]
    low, high = clopper_pearson(sum(held), len(held))
    return Coverage(
        level=level,
        inside=sum(held),
        of=len(held),
        share=sum(held) / len(held),
        low=low,
        high=high,
        score=mean(value for value, _ in scores),
        width=mean(width for _, width in scores),
    )


def clopper_pearson(inside: int, of: int) -> tuple[float, float]:
    """The exact confidence interval of a share, of which `inside` in `of` were observed, at level CERTAIN."""
    tail = (1 - CERTAIN) / 2
    low = float(betaincinv(inside, of - inside + 1, tail)) if inside else 0.0
    high = float(betaincinv(inside + 1, of - inside, 1 - tail)) if inside < of else 1.0
    return low, high


def mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None


def to_lines(scored: Score) -> list[str]:
    """The score as lines for a terminal of 80 columns."""
    whole = scored.whole
    others = {
        "unfinished": scored.unfinished,
        "replaced by a later forecast of the same run": scored.replaced,
        "outcomes without a forecast on record before them": scored.unrecorded,
        "lines that cannot be read": scored.broken,
    }
    lines = [f"{whole.forecasts} forecasts with an outcome, {whole.diverged} of them diverged"]
    lines += [f"  not judged: {count} {what}" for what, count in others.items() if count]
    if not whole.forecasts:
        return [*lines, "nothing to judge: train with a budget, then ask again"]
    if not whole.enough:
        last = whole.coverage[-1] if whole.coverage else None
        lines.append(f"too few to judge the intervals by (fewer than {ENOUGH})")
        if last:
            lines.append(f"  {last.inside} of {last.of} inside the {last.level:.0%} intervals goes with")
            lines[-1] += f" a true coverage of {last.low:.0%} to {last.high:.0%}"

    head = f"{'':<26}{'runs':>5}{'bias':>8}{'error':>8}" + "".join(f"{f'{level:.0%}':>8}" for level in LEVELS)
    lines += ["", f"{head}{'width':>8}{'score':>8}"]
    for title, some in (("", (whole,)), ("by corpus", scored.by_corpus), ("by size", scored.by_size)):
        lines += [title] if title else []
        lines += [row(one) for one in some]
    lines += ["", "bias, error: mean of log(reached / expected), and of its absolute value. 50, 80,"]
    lines += ["90 %: share of intervals of that level that contain the outcome. width, score: of"]
    lines += ["the 80 % intervals; the score adds 10 times the distance of outcomes outside:"]
    lines += ["smaller is better."]
    return lines


def row(summary: Summary) -> str:
    """One line of the table."""
    shares = {one.level: one for one in summary.coverage}
    held = "".join(f"{f'{shares[level].share:.0%}' if level in shares else '-':>8}" for level in LEVELS)
    middle = shares.get(0.8)
    ends = [None, None] if middle is None else [middle.width, middle.score]
    numbers = "".join(f"{'-' if value is None else f'{value:.1%}':>8}" for value in ends)
    bias = "-" if summary.bias is None else f"{summary.bias:+.1%}"
    error = "-" if summary.error is None else f"{summary.error:.1%}"
    name = summary.name if len(summary.name) <= 24 else summary.name[:23] + "…"
    return f"  {name:<24}{summary.forecasts:>5}{bias:>8}{error:>8}{held}{numbers}"
