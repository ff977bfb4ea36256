"""The loss to expect: a small table of our own runs, not a fit of a law.

No published law reaches the sizes that minutes on a laptop buy: at half a million parameters they predict more than
the entropy of single words. So `prior.json` holds runs of this very system (sizes, tokens, corpora, seeds, and the
command that made them), and the expectation is read off a surface through them,

    log(bits per byte) = a + b log(n) + (c + d log(l)) log(C / C_0),    C = 6 N D,

where n and l say how predictable the text is before any model has seen it (predictability.py): n by an n-gram, which is
how good a small model is, and l by a compressor, which is how fast it gets better: what is repeated nearby is learned
late. The surface is for runs at the compute-optimal balance of N and D on fresh tokens; a run off it, or one that
repeats its text, has `excess` times that run's reducible loss (repetition.py). Above the table's largest C the
reducible part shrinks with a published exponent (Besiroglu et al. 2024: alpha beta / (alpha + beta) = 0.178), and the
interval widens with the distance. It is a prior: a first guess with an honest width.
"""

import json
import math
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from isoflop.plan.predictability import Predictability
from isoflop.plan.repetition import excess
from isoflop.records import Expectation

ALPHA, BETA = 0.34781, 0.36585  # Besiroglu et al. 2024, table 1
EXPONENT = ALPHA * BETA / (ALPHA + BETA)
IRREDUCIBLE = 1.8169 / math.log(2) / 4.4  # their E in nats per token, over about 4.4 bytes a token: bits per byte
C_0 = 2e12  # FLOPs, in the middle of the table
LEVEL = 0.9
T_WIDTH = 1.86  # two-sided 90 % of Student's t at 8 degrees of freedom: the misses are those of nine corpora
WIDEN_PER_DECADE = 0.03  # added to the standard deviation of log(bits per byte) for each factor of ten beyond the table


@cache
def table() -> dict[str, Any]:
    """prior.json: `command`, and `runs`, each with corpus, ngram, lzma, parameters, tokens, flops, bits_per_byte."""
    loaded: dict[str, Any] = json.loads(resources.files("isoflop.plan").joinpath("prior.json").read_text("utf-8"))
    return loaded


def features(text: Predictability, flops: float) -> list[float]:
    """What the four coefficients are multiplied by."""
    n, l, c = math.log(text.ngram), math.log(text.lzma), math.log(flops / C_0)  # noqa: E741 - the docstring's letters
    return [1.0, n, c, l * c]


def design(runs: list[dict[str, Any]]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The features and targets log(bits per byte, excess taken out) of some runs, shapes (n, 4) and (n,), both weighted
    so that each corpus counts alike however many runs it has."""
    rows, targets = [], []
    for run in runs:
        weight = 1 / math.sqrt(sum(other["corpus"] == run["corpus"] for other in runs))
        floor = min(IRREDUCIBLE, 0.5 * run["bits_per_byte"])
        off = excess(run["parameters"], run["tokens"], run["unique_tokens"])
        balanced = floor + (run["bits_per_byte"] - floor) / off
        text = Predictability(run["ngram"], run["lzma"])
        rows.append([weight * value for value in features(text, run["flops"])])
        targets.append(weight * math.log(balanced))
    return np.array(rows), np.array(targets)


@cache
def fit() -> tuple[tuple[float, ...], float]:
    """The coefficients, and the standard deviation of what they miss on a corpus that they were not fitted to.

    The latter is found by leaving out one corpus at a time: somebody's own text is a corpus that the table lacks.
    """
    runs = table()["runs"]
    rows, targets = design(runs)
    coefficients = np.linalg.lstsq(rows, targets, rcond=None)[0]
    corpora = np.array([run["corpus"] for run in runs])
    squares = []  # one a corpus: the weights make the sum over its runs their mean
    for corpus in np.unique(corpora):
        inside = corpora != corpus
        without = np.linalg.lstsq(rows[inside], targets[inside], rcond=None)[0]
        squares.append(float(np.square(targets[~inside] - rows[~inside] @ without).sum()))
    return tuple(float(value) for value in coefficients), math.sqrt(sum(squares) / len(squares))


def expect(parameters: float, tokens: float, unique_tokens: float, text: Predictability) -> Expectation:
    """What a run of N parameters on D tokens, drawn from so many unique ones, should reach on text this predictable."""
    flops = 6.0 * parameters * tokens
    coefficients, deviation = fit()
    largest = max(run["flops"] for run in table()["runs"])
    smallest = min(run["flops"] for run in table()["runs"])

    def surface(compute: float) -> float:
        values = zip(coefficients, features(text, compute), strict=True)
        return min(8.0, math.exp(sum(coefficient * value for coefficient, value in values)))

    where = "inside the table's range"
    decades = 0.0
    if flops > largest:
        floor = min(IRREDUCIBLE, 0.5 * surface(largest))
        balanced = floor + (surface(largest) - floor) * (flops / largest) ** -EXPONENT
        decades = math.log10(flops / largest)
        where = f"{flops / largest:.3g} times the table's largest run: a published law's exponent from there on"
    else:
        balanced = surface(flops)
        if flops < smallest:
            decades = math.log10(smallest / flops)
            where = f"{smallest / flops:.3g} times below the table's smallest run"
    floor = min(IRREDUCIBLE, 0.5 * balanced)
    centre = min(8.0, floor + (balanced - floor) * excess(parameters, tokens, unique_tokens))
    width = T_WIDTH * math.hypot(deviation, WIDEN_PER_DECADE * decades)
    source = f"a prior, not a fit: {len(table()['runs'])} runs of our own, {where}"
    return Expectation(
        bits_per_byte=centre,
        low=centre * math.exp(-width),
        high=centre * math.exp(width),
        level=LEVEL,
        source=source,
    )
