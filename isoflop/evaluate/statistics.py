"""How sure a score is, and a difference between two.

Intervals hold 95 %. A share of right answers has Wilson's (1927): inside 0 to 1 and right for few items too. Any other
score has the percentiles of a bootstrap over items. Two models are compared on the same items: a share by McNemar's
test in its exact form, the binomial of the items on which exactly one is right, and with Newcombe's interval; anything
else by the bootstrap of the difference. Of several comparisons each is judged after Holm (1979), so that the chance
that any of them is called real where nothing differs is 5 %.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
DRAWS = 2000
BLOCK = 4_000_000  # numbers that a bootstrap draws at once

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its interval."""

    value: float
    low: float
    high: float


def wilson(right: float, items: int) -> Interval:
    """A share and its interval, by Wilson's score.

    Args:
        right: how many of the items.
    """
    z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
    share = right / items
    middle = (share + z * z / (2 * items)) / (1 + z * z / items)
    reach = z / (1 + z * z / items) * math.sqrt(share * (1 - share) / items + z * z / (4 * items * items))
    # at 0 and 1 the ends are the share itself, but for the last bits
    return Interval(share, min(share, max(0.0, middle - reach)), max(share, min(1.0, middle + reach)))


def resampled_means(values_N: Values, seed: int = 0) -> Values:
    """DRAWS means of as many items, drawn with replacement."""
    generator, count = np.random.default_rng(seed), len(values_N)
    at_once = max(1, BLOCK // count)
    parts = [
        values_N[generator.integers(0, count, (min(at_once, DRAWS - first), count))].mean(axis=1)
        for first in range(0, DRAWS, at_once)
    ]
    return np.concatenate(parts)


def bootstrap(values_N: Values, of: Callable[[Values], Values] = lambda means: means) -> Interval:
    """A function of the mean over items, with the interval of its percentiles; `of` takes arrays and is monotonic."""
    means = resampled_means(values_N)
    low, high = np.quantile(of(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(of(np.array([values_N.mean()]))[0]), float(low), float(high))


def mcnemar(only_one: int, only_other: int) -> float:
    """The exact two-sided p of the items on which exactly one of two models is right, if either were as likely."""
    count, least = only_one + only_other, min(only_one, only_other)
    if not count:
        return 1.0
    term = total = 1
    for i in range(1, least + 1):
        term = term * (count - i + 1) // i
        total += term
    return min(1.0, 2 * total / (1 << count)) if count < 1000 else min(1.0, 2 * math.exp(ln(total) - count * ln(2)))


def ln(number: int) -> float:
    """The logarithm of an integer of any size."""
    shift = max(0, number.bit_length() - 900)
    return math.log(number >> shift) + shift * math.log(2)


def newcombe(first_N: Values, second_N: Values) -> Interval:
    """The difference of two shares over the same items, the second less the first, by Newcombe's method 10 (1998,
    Statistics in Medicine 17, 2635): the distances of each share from the ends of its own interval, combined with the
    correlation of the two. A bootstrap of a single item would have an interval of width 0."""
    count = len(first_N)
    one, other = wilson(float(second_N.sum()), count), wilson(float(first_N.sum()), count)
    both, neither = float((first_N * second_N).sum()), float(((1 - first_N) * (1 - second_N)).sum())
    only_second, only_first = float(second_N.sum()) - both, float(first_N.sum()) - both

    product = both * neither - only_second * only_first
    if product > 0:
        product = max(0.0, product - count / 2)
    margins = (both + only_second) * (only_first + neither) * (both + only_first) * (only_second + neither)
    correlation = product / math.sqrt(margins) if margins else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * correlation * x * y + y * y))

    value = one.value - other.value
    low = value - reach(one.value - one.low, other.high - other.value)
    high = value + reach(one.high - one.value, other.value - other.low)
    return Interval(value, max(-1.0, low), min(1.0, high))


@dataclass(frozen=True)
class Difference:
    """What a second model has more than a first, on the same items, with its interval.

    Attributes:
        p: the chance of such a difference where there is none. test: the test that gave p.
    """

    difference: Interval
    p: float
    test: str


def paired(first_N: Values, second_N: Values, shares: bool) -> Difference:
    """Compare two models item by item.

    Args:
        shares: the values are 0 or 1.
    """
    differences = second_N - first_N
    if shares:
        p = mcnemar(int((differences < 0).sum()), int((differences > 0).sum()))
        return Difference(newcombe(first_N, second_N), p, "McNemar, exact")
    means = resampled_means(differences)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    interval = Interval(float(differences.mean()), float(low), float(high))
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    return Difference(interval, min(1.0, 2 * float(beyond + 1) / (DRAWS + 1)), "bootstrap")


def holm(ps: Sequence[float], level: float = 1 - LEVEL) -> list[bool]:
    """Which of several comparisons are real, with a chance of `level` that any is called so where nothing differs."""
    real = [False] * len(ps)
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        if ps[index] > level / (len(ps) - rank):
            break
        real[index] = True
    return real
