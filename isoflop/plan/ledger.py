"""Were the forecasts right? What the ledger (records/ledger.py) says of them, by corpus and by size.

A forecast is a statement of how likely intervals are, so it is judged by three things: how many intervals held what was
reached (coverage), how wide they are, and both together by the interval score (Gneiting & Raftery 2007, equation 43),

    S_a = (high - low) + 2/a (low - x if x is below) + 2/a (x - high if x is above),    a = 1 - level,

here of logarithms, so that 0.1 is about 10 % of the bits per byte on any text; its expectation is least for the true
quantiles. The bias is the mean of log(reached / expected): above 0, runs end worse than forecast. A run that diverged
is outside of every interval and has no score. One that never ended is counted and not judged, and of a run that began
anew or got more budget the last forecast is. Nothing here changes a forecast.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.special import betaincinv

from isoflop.records import Expectation, Ledger
from isoflop.records.ledger import DIVERGED, FINISHED, LedgerLine

LEVELS = (0.5, 0.8, 0.9)
ENOUGH = 20  # forecasts below which it is said that they are too few
CERTAIN = 0.9  # level of the interval around a coverage


@dataclass(frozen=True)
class Scored:
    """A forecast and what came of it.

    Attributes:
        corpus: names of the sources; fingerprint: of the prepared data.
        flops: planned, 6ND.
        reached: bits per byte; None where the run diverged.
    """

    run: str
    corpus: str
    fingerprint: str
    flops: float
    pilots: int
    expected: Expectation
    reached: float | None

    @property
    def off(self) -> float | None:
        """log(reached / expected)."""
        value = self.expected.bits_per_byte
        return None if not self.reached or not value else math.log(self.reached / value)

    def inside(self, level: float) -> bool | None:
        """Whether the interval of a level held what was reached; None if there is no such interval."""
        bounds = self.expected.between(level)
        if bounds is None or bounds.low is None or bounds.high is None:
            return None
        return self.reached is not None and bounds.low <= self.reached <= bounds.high

    def score(self, level: float) -> tuple[float, float] | None:
        """Interval score and width, of logarithms; None if there is no such interval, or the run diverged."""
        bounds = self.expected.between(level)
        if bounds is None or not bounds.low or not bounds.high or not self.reached:
            return None
        low, high, x = math.log(bounds.low), math.log(bounds.high), math.log(self.reached)
        outside = max(0.0, low - x) + max(0.0, x - high)
        return high - low + 2 / (1 - level) * outside, high - low


@dataclass(frozen=True)
class Coverage:
    """How many intervals of a level held what was reached.

    Attributes:
        share: inside / of; low, high: between which the true share lies with probability CERTAIN (Clopper & Pearson).
        score: mean interval score, width: mean width, both of logarithms; None where no run ended.
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
    """Some forecasts together.

    Attributes:
        forecasts: judged, those of diverged runs included.
        bias: mean of log(reached / expected); error: mean of its size.
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
    """The ledger, judged.

    Attributes:
        unfinished: forecasts of runs that neither ended nor diverged, as far as is known.
        replaced: forecasts of runs that began anew or got more budget before they ended.
        unrecorded: outcomes without a forecast that was put on record before, of earlier versions.
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
    """Coverage, sharpness and bias of everything on record."""
    ended: dict[str, LedgerLine] = {}
    unrecorded = 0
    for outcome in ledger.outcomes:
        if outcome.forecast in ledger.forecasts and outcome.status in (FINISHED, DIVERGED):
            ended[outcome.forecast or ""] = outcome  # the last one: a run that diverged can be mended and resumed
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
    open_ones = [name for name in ledger.forecasts if name not in ended and name not in replaced]
    return Score(
        whole=summary("all", judged),
        by_corpus=grouped(judged, lambda one: one.corpus),
        by_size=grouped(judged, lambda one: decade(one.flops)),
        unfinished=len(open_ones),
        replaced=len(replaced & set(ledger.forecasts)),
        unrecorded=unrecorded,
        broken=ledger.broken,
    )


def grouped(judged: Sequence[Scored], by: Any) -> tuple[Summary, ...]:
    names = sorted({by(one) for one in judged})
    return tuple(summary(name, [one for one in judged if by(one) == name]) for name in names)


def decade(flops: float) -> str:
    """The factor of ten that an amount of compute lies in, in words."""
    if flops <= 0:
        return "unknown"
    power = math.floor(math.log10(flops))
    return f"1e{power:02d} to 1e{power + 1:02d} FLOPs"


def summary(name: str, judged: Sequence[Scored]) -> Summary:
    off = [one.off for one in judged if one.off is not None]
    return Summary(
        name=name,
        forecasts=len(judged),
        diverged=sum(one.reached is None for one in judged),
        bias=mean(off),
        error=mean(map(abs, off)),
        coverage=tuple(found for level in LEVELS if (found := coverage(judged, level)) is not None),
    )


def coverage(judged: Sequence[Scored], level: float) -> Coverage | None:
    """None where no forecast has an interval of that level."""
    held = [inside for one in judged if (inside := one.inside(level)) is not None]
    if not held:
        return None
    scores = [found for one in judged if (found := one.score(level)) is not None]
    low, high = share_between(sum(held), len(held))
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


def share_between(inside: int, of: int) -> tuple[float, float]:
    """Clopper and Pearson's interval of level CERTAIN for the share of which `inside` of `of` were seen."""
    tail = (1 - CERTAIN) / 2
    low = float(betaincinv(inside, of - inside + 1, tail)) if inside else 0.0
    high = float(betaincinv(inside + 1, of - inside, 1 - tail)) if inside < of else 1.0
    return low, high


def mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def to_lines(found: Score) -> list[str]:
    """The score for a terminal of 80 columns."""
    whole = found.whole
    others = {
        "unfinished": found.unfinished,
        "replaced by a later forecast of the same run": found.replaced,
        "outcomes without a forecast on record before them": found.unrecorded,
        "lines that cannot be read": found.broken,
    }
    lines = [f"{whole.forecasts} forecasts with an outcome, {whole.diverged} of them diverged"]
    lines += [f"  not judged: {count} {what}" for what, count in others.items() if count]
    if not whole.forecasts:
        return [*lines, "nothing to judge: train with a budget, then ask again"]
    if not whole.enough:
        last = whole.coverage[-1] if whole.coverage else None
        doubt = f": {last.inside} of {last.of} inside the {last.level:.0%} intervals" if last else ""
        doubt += f" goes with a true coverage of {last.low:.0%} to {last.high:.0%}" if last else ""
        lines.append(f"too few to judge the intervals by (fewer than {ENOUGH}){doubt}")

    head = f"{'':<26}{'runs':>5}{'bias':>8}{'error':>8}" + "".join(f"{f'{level:.0%}':>8}" for level in LEVELS)
    lines += ["", f"{head}{'width':>8}{'score':>8}"]
    for title, some in (("", (whole,)), ("by corpus", found.by_corpus), ("by size", found.by_size)):
        lines += [title] if title else []
        lines += [row(one) for one in some]
    lines += ["", "bias, error: mean and mean size of log(reached / expected). 50, 80, 90 %: intervals"]
    lines += ["of that level that held what was reached. width, score: of the 80 % intervals; the"]
    lines += ["score adds 10 times what lies outside: smaller is better."]
    return lines


def row(one: Summary) -> str:
    shares = {each.level: each for each in one.coverage}
    held = "".join(f"{f'{shares[level].share:.0%}' if level in shares else '-':>8}" for level in LEVELS)
    middle = shares.get(0.8)
    ends = [None, None] if middle is None else [middle.width, middle.score]
    numbers = "".join(f"{'-' if value is None else f'{value:.1%}':>8}" for value in ends)
    off = "-" if one.bias is None else f"{one.bias:+.1%}"
    size = "-" if one.error is None else f"{one.error:.1%}"
    name = one.name if len(one.name) <= 24 else one.name[:23] + "…"
    return f"  {name:<24}{one.forecasts:>5}{off:>8}{size:>8}{held}{numbers}"
