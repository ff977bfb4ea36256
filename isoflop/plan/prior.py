"""The loss to expect: a forecast from our own runs on other texts and, where there are some, from pilots on this one.

No published law reaches the sizes that minutes on a laptop buy: at half a million parameters they predict more than
the entropy of single words. So `prior.json` holds runs of this very system (sizes, tokens, corpora, seeds, and the
command that made them), and how the laws of its corpora differ (hierarchy.py), estimated from them. What a run on a
new text should reach, and between which bounds, follows: from how predictable that text is before any model has seen
it (predictability.py), and far more closely from small runs on it (pilot.py).

How wide the interval is was found by leaving corpora out: each in turn is forecast by the others, from its text alone
and with its own smaller runs, and the standard deviations are multiplied by what they fell short (`calibration`).
Beyond the runs' range nothing was measured: the interval widens with the distance, by an assumption. It is a prior,
not a fit to the run's own course.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from scipy.special import stdtrit

from isoflop.plan.hierarchy import Corpus, Population, Seen, estimate, predict
from isoflop.plan.predictability import Predictability
from isoflop.records import Expectation
from isoflop.records.plan import Interval

LEVELS = (0.5, 0.8, 0.9)  # of the intervals that are stated; the last is the one that is shown
LEVEL = LEVELS[-1]
# Added to the standard deviation of log(bits per byte) for each factor of ten in compute beyond the runs that it was
# estimated from. An assumption: there are no runs there to measure it with.
WIDEN_PER_DECADE = 0.03
# How many times the spread between corpora is for a recipe of which there are pilots only. An assumption: other
# recipes were not run on several corpora.
STRANGE = 2.0
MOST_BITS = 8.0  # per byte: what random bytes need
UNTRAINED = 16.0  # bits per byte that no model exceeds that learns at all: more is no end of an interval


@dataclass(frozen=True)
class Calibration:
    """By how much standard deviations fell short when corpora were left out, and how many corpora say so.

    Attributes:
        alone: for forecasts from the text alone; piloted: with smaller runs on the same text.
        per_decade: standard deviation of log(bits per byte) for each factor of ten in compute between the largest run
            on the text and the one forecast, beside what the law says.
        corpora: left out, one at a time: their number less 1 is the degrees of freedom of Student's t.
    """

    alone: float
    piloted: float
    per_decade: float
    corpora: int


@cache
def table() -> dict[str, Any]:
    """prior.json: `command`; `recipe`, see recipe.py; `runs`, each with corpus, ngram, lzma, parameters, tokens, flops,
    unique_tokens, bits_per_byte; `population` and `calibration`, estimated from them."""
    loaded: dict[str, Any] = json.loads(resources.files("isoflop.plan").joinpath("prior.json").read_text("utf-8"))
    return loaded


def corpora_of(runs: Sequence[dict[str, Any]]) -> dict[str, Corpus]:
    """The runs of a table by corpus."""
    found = {}
    for name in dict.fromkeys(run["corpus"] for run in runs):
        mine = [run for run in runs if run["corpus"] == name]
        text = Predictability(mine[0]["ngram"], mine[0]["lzma"])
        found[name] = Corpus.of(text, [seen for run in mine for seen in (seen_of(run), *pilots_of(run))])
    return found


def seen_of(run: dict[str, Any], pilot: bool = False) -> Seen:
    return Seen(run["parameters"], run["tokens"], run["unique_tokens"], run["bits_per_byte"], pilot)


def pilots_of(run: dict[str, Any]) -> list[Seen]:
    return [seen_of(one, pilot=True) for one in run.get("pilots") or ()]


@cache
def population() -> Population:
    """How the laws of corpora differ, as stored with the runs that it was estimated from."""
    return Population.from_dict(table()["population"])


@cache
def calibration() -> Calibration:
    return Calibration(**table()["calibration"])


def expect(
    parameters: float,
    tokens: float,
    unique_tokens: float,
    text: Predictability,
    seen: Sequence[Seen] = (),
    strange: bool = False,
) -> Expectation:
    """What a run of N parameters on D tokens, drawn from so many unique ones, should reach on text this predictable.

    Args:
        seen: pilots: runs on this very text with this very recipe.
        strange: the recipe is another than that of the prior's runs; there are pilots then.
    """
    target = Seen(parameters, tokens, unique_tokens, math.nan)
    centre, deviation = predict(population(), text, target, seen, STRANGE if strange else 1.0)
    flops, all_flops = 6.0 * parameters * tokens, [run["flops"] for run in table()["runs"]]
    largest, smallest = max(all_flops), min(all_flops)
    decades = math.log10(max(flops / largest, smallest / flops, 1.0))

    short = calibration()
    if seen:
        ahead = max(0.0, decades_to(flops, seen) or 0.0)
        deviation = short.piloted * math.hypot(deviation, short.per_decade * ahead)
        source = f"{len(seen)} pilots on this text, {10**-ahead:.2g} of the run's compute, and "
    else:
        deviation, source = short.alone * deviation, "a prior, not a fit: "
    deviation = math.hypot(deviation, WIDEN_PER_DECADE * decades)
    where = "inside the table's range"
    if flops > largest:
        where = f"{flops / largest:.3g} times the table's largest run: a law goes on from there"
    elif flops < smallest:
        where = f"{smallest / flops:.3g} times below the table's smallest run"
    source += f"{len(all_flops)} runs of our own on {short.corpora} other texts, {where}"
    if strange:
        source += "; the recipe is not theirs"
    return stated(centre, deviation, short.corpora - 1, source)


def stated(centre: float, deviation: float, freedom: int, source: str) -> Expectation:
    """An expectation of log(bits per byte) with its standard deviation, as it is put on record."""
    value = min(MOST_BITS, math.exp(centre))
    intervals = []
    for level in LEVELS:
        half = float(stdtrit(freedom, 0.5 + level / 2)) * deviation
        high = max(value, min(UNTRAINED, value * math.exp(min(half, 20.0))))
        intervals.append(Interval(level=level, low=value * math.exp(-half), high=high))
    last = intervals[-1]
    return Expectation(
        bits_per_byte=value,
        low=last.low,
        high=last.high,
        level=last.level,
        source=source,
        intervals=tuple(intervals),
    )


# Estimation, by bench/prior.py

SMALLER = 2.0  # times less compute than a run, at least, that another one of its corpus is forecast from


@dataclass(frozen=True)
class Miss:
    """A run that was forecast by the runs of other corpora.

    Attributes:
        corpus: that it is of.
        off: log(bits per byte) reached less what was expected.
        deviation: that was stated with it.
        decades: of compute between it and the largest run on its text that was known; None: none was.
        pilots: what was known were its pilots, and not another run.
    """

    corpus: str
    off: float
    deviation: float
    decades: float | None = None
    pilots: bool = False


def leave_out(runs: Sequence[dict[str, Any]]) -> list[Miss]:
    """Every run forecast without its corpus: from its text alone, from each run on its text that had less than half of
    its compute, and from its pilots."""
    found = []
    for name in dict.fromkeys(run["corpus"] for run in runs):
        known = estimate(list(corpora_of([run for run in runs if run["corpus"] != name]).values()))
        mine = [run for run in runs if run["corpus"] == name]
        text = Predictability(mine[0]["ngram"], mine[0]["lzma"])
        for run in mine:
            smaller = [[seen_of(other)] for other in mine if run["flops"] > SMALLER * other["flops"]]
            pilots = [pilots_of(run)] if run.get("pilots") else []
            for seen in ([], *smaller, *pilots):
                value, deviation = predict(known, text, seen_of(run), seen)
                off = math.log(run["bits_per_byte"]) - value
                found.append(Miss(name, off, deviation, decades_to(run["flops"], seen), seen in pilots))
    return found


def decades_to(flops: float, seen: Sequence[Seen]) -> float | None:
    """Factors of ten in compute between the largest of some runs and another one; None if there are none."""
    return math.log10(flops / max(6.0 * one.parameters * one.tokens for one in seen)) if seen else None


def calibrate(misses: Sequence[Miss]) -> Calibration:
    """What the stated standard deviations have to be multiplied by, each corpus counting alike; at least 1. What is
    said of forecasts with pilots is from pilots where there are any, as their runs are shorter than all others."""
    corpora = list(dict.fromkeys(miss.corpus for miss in misses))

    def root(chosen: Sequence[tuple[str, float]]) -> float:
        """The root of the mean over corpora of their mean squares."""
        squares = [[value**2 for name, value in chosen if name == corpus] for corpus in corpora]
        means = [sum(mine) / len(mine) for mine in squares if mine]
        return math.sqrt(sum(means) / len(means)) if means else 1.0

    alone = [(one.corpus, one.off / one.deviation) for one in misses if one.decades is None]
    far = [one for one in misses if one.decades is not None]
    far = [one for one in far if one.pilots] or far

    # the excess over what the law says, by least squares of its square against the square of the distance
    top = sum((one.off**2 - one.deviation**2) * (one.decades or 0.0) ** 2 for one in far)
    bottom = sum((one.decades or 0.0) ** 4 for one in far)
    per_decade = math.sqrt(max(0.0, top / bottom)) if bottom else 0.0
    piloted = [(one.corpus, one.off / math.hypot(one.deviation, per_decade * (one.decades or 0.0))) for one in far]
    return Calibration(max(1.0, root(alone)), max(1.0, root(piloted)), per_decade, len(corpora))
