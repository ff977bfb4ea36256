"""The forecast of a run's loss, from our own runs on other texts (prior.json) and from pilots on this text.

Published laws do not extend to the sizes that minutes on a laptop buy: at half a million parameters they predict more
than the entropy of single words. So `prior.json` holds runs of isoflop itself (sizes, tokens, corpora, seeds, and the
command that made them) and the distribution of their corpora's laws (hierarchy.py), estimated from these runs. The
forecast for a new text follows from its predictability (predictability.py) and, far more closely, from small runs on it
(pilot.py).

The width of the interval comes from leaving corpora out: each corpus in turn is forecast from the others, by its text
alone and with its own pilot, and the half-width of each level is the multiple of the standard deviation inside which
that share of the errors was (`calibration`). Beyond the range of the runs nothing was measured: there the interval
widens with the distance, by an assumption. The forecast is a prior, not a fit to the run's own loss curve
(trainer/curve.py has that).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from isoflop.plan.hierarchy import Corpus, Observation, Population, estimate, predict
from isoflop.plan.predictability import Predictability
from isoflop.records import Expectation
from isoflop.records.plan import Interval

LEVELS = (0.5, 0.8, 0.9)  # of the recorded intervals; the last one is shown
LEVEL = LEVELS[-1]
# Added to the standard deviation of log(bits per byte) per factor of ten in compute beyond the range of the prior's
# runs. An assumption: there are no runs to measure it with.
WIDEN_PER_DECADE = 0.03
# The factor on the spread between corpora for a recipe other than the prior's, of which there are only pilots. An
# assumption: other recipes were not run on several corpora.
OTHER_RECIPE = 2.0
MOST_BITS = 8.0  # bits per byte of random bytes, the upper bound of an expected value
UNTRAINED = 16.0  # bits per byte, the upper bound of an interval: no model that learns at all exceeds it


@dataclass(frozen=True)
class Calibration:
    """The half-widths of intervals in standard deviations, from forecasts of corpora that were left out. A normal
    distribution would not do: most errors are smaller than its, and those of a few texts far larger.

    Attributes:
        alone: for forecasts from the text alone, one for each of LEVELS.
        piloted: for forecasts with smaller runs on the same text.
        per_decade: standard deviation of log(bits per byte), in addition to the law's, per factor of ten in compute
            between the largest run on the text and the run forecast.
        corpora: the number of corpora, each left out once.
    """

    alone: tuple[float, ...]
    piloted: tuple[float, ...]
    per_decade: float
    corpora: int


@cache
def table() -> dict[str, Any]:
    """prior.json: `command`; `recipe`, see recipe.py; `runs`, each with corpus, ngram, lzma, parameters, tokens, flops,
    unique_tokens, bits_per_byte; `population` and `calibration`, estimated from them."""
    loaded: dict[str, Any] = json.loads(resources.files("isoflop.plan").joinpath("prior.json").read_text("utf-8"))
    return loaded


def corpora_of(runs: Sequence[dict[str, Any]]) -> dict[str, Corpus]:
    """The runs of a table, with their pilots, by corpus."""
    corpora = {}
    for name in dict.fromkeys(run["corpus"] for run in runs):
        own = [run for run in runs if run["corpus"] == name]
        corpora[name] = Corpus.of(text_of(own), [one for run in own for one in (observation(run), *pilots_of(run))])
    return corpora


def text_of(runs: Sequence[dict[str, Any]]) -> Predictability:
    """The predictability of a corpus: the geometric mean of what its runs measured, each on its own share of it."""
    ngram, lzma = (math.exp(sum(math.log(run[name]) for run in runs) / len(runs)) for name in ("ngram", "lzma"))
    return Predictability(ngram, lzma)


def observation(run: dict[str, Any]) -> Observation:
    """A run of prior.json, or one of its pilots."""
    return Observation(run["parameters"], run["tokens"], run["unique_tokens"], run["bits_per_byte"])


def pilots_of(run: dict[str, Any]) -> list[Observation]:
    """The pilots that were made for a run of prior.json."""
    return [observation(pilot) for pilot in run.get("pilots") or ()]


@cache
def population() -> Population:
    """The distribution of corpora's laws, as stored in prior.json."""
    return Population.from_dict(table()["population"])


@cache
def calibration() -> Calibration:
    """The corrections of standard deviations, as stored in prior.json."""
    stored = table()["calibration"]
    return Calibration(tuple(stored["alone"]), tuple(stored["piloted"]), stored["per_decade"], stored["corpora"])


def expect(
    parameters: float,
    tokens: float,
    unique_tokens: float,
    text: Predictability,
    pilots: Sequence[Observation] = (),
    other_recipe: bool = False,
) -> Expectation:
    """The forecast of a run's held-out bits per byte.

    Args:
        parameters, tokens: N and D of 6 N D.
        unique_tokens: of the text; D may repeat them.
        pilots: runs on the same text with the same recipe.
        other_recipe: whether the recipe differs from that of the prior's runs; then there have to be pilots.
    """
    target = Observation(parameters, tokens, unique_tokens, math.nan)
    centre, deviation = predict(population(), text, target, pilots, OTHER_RECIPE if other_recipe else 1.0)

    # widen the interval by what calibration found, and beyond the range of the prior's runs
    flops, all_flops = 6.0 * parameters * tokens, [run["flops"] for run in table()["runs"]]
    largest, smallest = max(all_flops), min(all_flops)
    decades = math.log10(max(flops / largest, smallest / flops, 1.0))
    factors = calibration()
    if pilots:
        ahead = max(0.0, decades_to(flops, pilots) or 0.0)
        deviation, widths = math.hypot(deviation, factors.per_decade * ahead), factors.piloted
        made = "a pilot" if len(pilots) == 1 else f"{len(pilots)} pilots"
        source = f"{made} on this text, {10**-ahead:.2g} of the run's compute, and "
    else:
        widths, source = factors.alone, "a prior, not a fit: "
    deviation = math.hypot(deviation, WIDEN_PER_DECADE * decades)

    where = "inside the table's range"
    if flops > largest:
        where = f"{flops / largest:.3g} times the table's largest run: a law extrapolates from there"
    elif flops < smallest:
        where = f"{smallest / flops:.3g} times below the table's smallest run"
    source += f"{len(all_flops)} runs of our own on {factors.corpora} other texts, {where}"
    if other_recipe:
        source += "; the recipe is not theirs"
    return expectation(centre, deviation, widths, source)


def expectation(centre: float, deviation: float, widths: Sequence[float], source: str) -> Expectation:
    """The record of a forecast: its value, and an interval of each of LEVELS.

    Args:
        centre, deviation: of log(bits per byte).
        widths: half of each interval's width, in standard deviations.
        source: what the forecast was made from, in words.
    """
    value = min(MOST_BITS, math.exp(centre))
    intervals = []
    for level, width in zip(LEVELS, widths, strict=True):
        half = width * deviation
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

SMALLER = 2.0  # a run is forecast from runs of the same corpus with at most 1/SMALLER of its compute


@dataclass(frozen=True)
class ForecastError:
    """The error of a forecast that was made without the run's corpus.

    Attributes:
        corpus: the corpus of the run.
        error: log(bits per byte reached) - log(expected).
        deviation: the standard deviation stated by the forecast.
        decades: factors of ten in compute between the run and the largest known run on its text; None: none was known.
        pilots: whether the known runs on its text were its pilots.
    """

    corpus: str
    error: float
    deviation: float
    decades: float | None = None
    pilots: bool = False


def leave_corpora_out(runs: Sequence[dict[str, Any]]) -> list[ForecastError]:
    """The errors of forecasts of every run without its corpus: from its text alone, from each run on its text with less
    than half of its compute, and from its pilots."""
    errors = []
    for name in dict.fromkeys(run["corpus"] for run in runs):
        others = estimate(list(corpora_of([run for run in runs if run["corpus"] != name]).values()))
        own = [run for run in runs if run["corpus"] == name]
        for run in own:
            smaller = [[observation(other)] for other in own if run["flops"] > SMALLER * other["flops"]]
            pilots = [pilots_of(run)] if run.get("pilots") else []
            for known in ([], *smaller, *pilots):
                value, deviation = predict(others, text_of([run]), observation(run), known)
                error = math.log(run["bits_per_byte"]) - value
                decades = decades_to(run["flops"], known)
                errors.append(ForecastError(name, error, deviation, decades, known in pilots))
    return errors


def decades_to(flops: float, runs: Sequence[Observation]) -> float | None:
    """Factors of ten in compute from the largest of `runs` to a run of `flops`; None if there are no runs."""
    return math.log10(flops / max(6.0 * run.parameters * run.tokens for run in runs)) if runs else None


def calibrate(errors: Sequence[ForecastError]) -> Calibration:
    """The half-widths inside which the errors were, all corpora weighing alike. Those for forecasts with runs on the
    same text are from pilots where there are any: they are shorter than other runs."""
    corpora = list(dict.fromkeys(one.corpus for one in errors))
    alone = [(one.corpus, abs(one.error) / one.deviation) for one in errors if one.decades is None]
    known = [one for one in errors if one.decades is not None]
    known = [one for one in known if one.pilots] or known

    # the variance in excess of the law's, by least squares against the squared distance
    top = sum((one.error**2 - one.deviation**2) * (one.decades or 0.0) ** 2 for one in known)
    bottom = sum((one.decades or 0.0) ** 4 for one in known)
    per_decade = math.sqrt(max(0.0, top / bottom)) if bottom else 0.0

    piloted = [
        (one.corpus, abs(one.error) / math.hypot(one.deviation, per_decade * (one.decades or 0.0))) for one in known
    ]
    return Calibration(half_widths(alone), half_widths(piloted), per_decade, len(corpora))


def half_widths(errors: Sequence[tuple[str, float]]) -> tuple[float, ...]:
    """The values below which the share LEVELS of the errors lies, all corpora weighing alike.

    As in conformal prediction (Vovk et al. 2005) a share q of n corpora is taken as (1 + 1 / n) q, since the next
    corpus is one more.

    Args:
        errors: pairs of a corpus and an error in standard deviations.
    """
    names = [name for name, _ in errors]
    corpora = len(set(names))
    order = sorted(range(len(errors)), key=lambda i: errors[i][1])
    reached = np.cumsum([1.0 / names.count(names[i]) for i in order]) / max(1, corpora)
    found = []
    for level in LEVELS:
        at = int(np.searchsorted(reached, min(1.0, (1 + 1 / corpora) * level) - 1e-9)) if corpora else 0
        found.append(float(errors[order[min(at, len(order) - 1)]][1]) if order else 1.0)
    return tuple(found)
