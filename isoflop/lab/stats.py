"""Statistics of training comparisons: tests, intervals, and how many pairs of runs an effect needs. numpy and scipy.

A comparison is a list of differences d_1 ... d_n, one per pair of runs (arm minus reference, which share the order of
their data). A run that diverged, or that never reached a target, has the value infinity, and so may a difference.

Every function that draws random numbers takes a seed and gives the same answer for the same seed.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Floats = NDArray[np.float64]

EXACT = 16  # pairs up to which all 2^n signs are tried
DRAWS = 100_000  # of signs beyond that
MOST_PAIRS = 10_000  # nobody trains as many; beyond that `required_pairs` gives up
PILOT_CONFIDENCE = 0.8  # of the upper limit of a standard deviation that a sample size is planned with (Browne 1995)


@dataclass(frozen=True)
class Estimate:
    """A mean (or median) difference with its interval.

    Attributes:
        value: the estimate.
        low, high: the interval; infinite where the data cannot bound it.
        p: two-sided p-value of no difference.
        pairs: how many differences it rests on.
        test: which test gave it: "t", "sign" or "anytime t".
    """

    value: float
    low: float
    high: float
    p: float
    pairs: int
    test: str

    def within(self, margin: float) -> bool:
        """Whether the whole interval lies inside (-margin, margin)."""
        return -margin < self.low and self.high < margin


def paired_t(differences: ArrayLike, alpha: float = 0.05) -> Estimate:
    """Student's paired t-test and its 1 - alpha interval.

    One difference gives no interval. Differences that are all the same have an interval of no width: measures that do
    not depend on the seed are decided by a single value.
    """
    d = finite(differences)
    n = d.size
    if n == 0:
        return Estimate(math.nan, -math.inf, math.inf, 1.0, 0, "t")
    mean = float(d.mean())
    if n == 1:
        return Estimate(mean, -math.inf, math.inf, 1.0, 1, "t")
    error = float(d.std(ddof=1)) / math.sqrt(n)
    if error <= 1e-12 * abs(mean) or error == 0.0:  # rounding alone
        return Estimate(mean, mean, mean, 0.0 if mean else 1.0, n, "t")
    half = quantile_of_t(1 - alpha / 2, n - 1) * error
    p = 2 * tail_of_t(abs(mean) / error, n - 1)
    return Estimate(mean, mean - half, mean + half, p, n, "t")


def quantile_of_t(p: float, freedom: int) -> float:
    """Student's quantile; scipy.stats.t's, without its checks, which take twenty times as long."""
    return float(special.stdtrit(freedom, p))


def tail_of_t(t: float, freedom: int) -> float:
    """The chance that Student's t is above `t`."""
    return float(special.stdtr(freedom, -t))


def sign_flip(differences: ArrayLike, seed: int = 0) -> float:
    """Two-sided p-value of the sign-flip test on the mean: the share of all assignments of signs whose mean is at least
    as far from 0 (Fisher's randomisation test). Exact up to EXACT pairs, else by DRAWS draws, with the one observed."""
    d = finite(differences)
    n, observed = d.size, abs(float(d.sum()))
    if n == 0:
        return 1.0
    slack = 1e-12 * float(np.abs(d).sum())
    if n <= EXACT:
        sums = np.zeros(1)
        for value in d:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= observed - slack))
    generator, hits, left = np.random.default_rng(seed), 1, DRAWS
    while left:
        rows = min(left, 10_000)
        signs = generator.choice((-1.0, 1.0), size=(rows, n))
        hits += int(np.sum(np.abs(signs @ d) >= observed - slack))
        left -= rows
    return hits / (DRAWS + 1)


def enough_for_signs(pairs: int, alpha: float, comparisons: int = 1) -> bool:
    """Whether a sign-flip test of so many pairs can reject at all, under Holm over so many comparisons: two of the 2^n
    assignments are as extreme as can be. Six pairs at 0.05; nine over a family of twelve."""
    return 2.0 ** (1 - pairs) <= alpha / comparisons


def pairs_for_signs(alpha: float, comparisons: int = 1) -> int:
    """The fewest pairs with which signs alone can reject, if all of them point the same way."""
    return next(pairs for pairs in itertools.count(1) if enough_for_signs(pairs, alpha, comparisons))


def median_difference(differences: ArrayLike, alpha: float = 0.05) -> Estimate:
    """The sign test, and the interval of the median from order statistics (Conover 1999, section 3.2): for differences
    some of which are infinite. Pairs that tie, two runs that both diverged among them, speak for neither side.

    With fewer than six pairs at alpha = 0.05 the interval is everything.
    """
    d = np.sort(np.nan_to_num(as_floats(differences), nan=0.0, posinf=math.inf, neginf=-math.inf))
    n = d.size
    if n == 0:
        return Estimate(math.nan, -math.inf, math.inf, 1.0, 0, "sign")
    above, below = int(np.sum(d > 0)), int(np.sum(d < 0))
    p = min(1.0, 2 * float(special.bdtr(min(above, below), above + below, 0.5))) if above + below else 1.0
    rank = rank_of_ends(n, alpha)
    low, high = (float(d[rank - 1]), float(d[n - rank])) if rank else (-math.inf, math.inf)
    return Estimate(middle(d), low, high, p, n, "sign")


@lru_cache(1024)
def rank_of_ends(n: int, alpha: float) -> int:
    """The rank, from either end, of the values that bound the median of n; 0: none do."""
    return int(stats.binom.ppf(alpha / 2, n, 0.5))


def middle(ordered: Floats) -> float:
    """The median, where the two middle values may be infinite: of opposite infinities it is 0."""
    n = ordered.size
    low, high = float(ordered[(n - 1) // 2]), float(ordered[n // 2])
    if low == high:
        return low
    return 0.0 if math.isinf(low) and math.isinf(high) else (low + high) / 2


def bootstrap(
    values: ArrayLike,
    alpha: float = 0.05,
    samples: int = 4000,
    seed: int = 0,
    statistic: Callable[[Floats], Floats] = lambda rows: rows.mean(axis=1),
) -> tuple[float, float]:
    """The percentile interval of a statistic of the differences, widened for small n: quantiles at alpha' with
    alpha' / 2 = Phi(sqrt(n / (n - 1)) t_{alpha/2, n-1}), so that a mean has about its nominal coverage (Hesterberg
    2015, section 3.2). `statistic` maps (samples, n) to (samples,)."""
    d = finite(values)
    n = d.size
    if n < 2:
        return -math.inf, math.inf
    rows = d[np.random.default_rng(seed).integers(0, n, size=(samples, n))]
    tail = float(stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf(alpha / 2, n - 1)))
    low, high = np.quantile(statistic(rows), [tail, 1 - tail])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Holm 1979): comparing each with alpha keeps the chance of any false rejection
    in the family at most alpha."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def equivalence(differences: ArrayLike, margin: float) -> float:
    """The p-value of Schuirmann's two one-sided t-tests (1987): small where the mean difference lies within (-margin,
    margin). At level alpha it says so if the 1 - 2 alpha interval lies inside.

    Raises:
        ValueError: for a margin that is not positive.
    """
    if not margin > 0:
        raise ValueError(f"margin = {margin} is not above 0")
    d = finite(differences)
    n = d.size
    if n < 2:
        return 1.0
    mean, error = float(d.mean()), float(d.std(ddof=1)) / math.sqrt(n)
    if error == 0.0:
        return 0.0 if abs(mean) < margin else 1.0
    return tail_of_t((margin - abs(mean)) / error, n - 1)


def power(pairs: int, effect: float, sd: float, alpha: float = 0.05) -> float:
    """The chance that the two-sided paired t-test of so many pairs rejects, by the non-central t distribution.

    Args:
        effect: the true mean difference.
        sd: of single differences.
    """
    if pairs < 2:
        return 0.0
    if sd <= 0:
        return 1.0 if effect else alpha
    shift, bound = math.sqrt(pairs) * abs(effect) / sd, float(stats.t.ppf(1 - alpha / 2, pairs - 1))
    upper, lower = stats.nct.sf(bound, pairs - 1, shift), stats.nct.cdf(-bound, pairs - 1, shift)
    return min(1.0, float(np.nan_to_num(upper, nan=1.0)) + float(np.nan_to_num(lower, nan=0.0)))


def power_of_equivalence(pairs: int, margin: float, sd: float, alpha: float = 0.05) -> float:
    """The chance that two arms without any difference are found equivalent within the margin: a lower bound of it, by
    the normal approximation with t's quantile, 2 Phi(sqrt(n) margin / sd - t) - 1."""
    if pairs < 2:
        return 0.0
    if sd <= 0:
        return 1.0
    room = math.sqrt(pairs) * margin / sd - float(stats.t.ppf(1 - alpha, pairs - 1))
    return max(0.0, 2 * float(stats.norm.cdf(room)) - 1)


def required_pairs(effect: float, sd: float, alpha: float = 0.05, wanted: float = 0.8) -> int:
    """The fewest pairs with which the paired t-test finds an effect with power `wanted`; MOST_PAIRS if not even those.

    Raises:
        ValueError: for an effect that is not positive.
    """
    return fewest(lambda pairs: power(pairs, effect, sd, alpha), positive(effect), wanted)


def required_for_equivalence(margin: float, sd: float, alpha: float = 0.05, wanted: float = 0.8) -> int:
    """The fewest pairs with which arms without a difference are found equivalent with power `wanted`.

    Raises:
        ValueError: for a margin that is not positive.
    """
    return fewest(lambda pairs: power_of_equivalence(pairs, margin, sd, alpha), positive(margin), wanted)


def fewest(power_at: Callable[[int], float], effect: float, wanted: float) -> int:
    """The fewest pairs at which a power that rises with them reaches `wanted`: doubled, then halved."""
    high = 2
    while high < MOST_PAIRS and power_at(high) < wanted:
        high *= 2
    low = high // 2
    while low + 1 < high:
        half = (low + high) // 2
        low, high = (low, half) if power_at(half) >= wanted else (half, high)
    return min(high, MOST_PAIRS)


def detectable(pairs: int, sd: float, alpha: float = 0.05, wanted: float = 0.8) -> float:
    """The smallest true difference that so many pairs find with power `wanted`; infinite for fewer than two, 0 for a
    measure without noise, of which any difference is found."""
    if pairs < 2:
        return math.inf
    return smallest(lambda effect: power(pairs, effect, sd, alpha), sd, wanted)


def smallest(power_at: Callable[[float], float], sd: float, wanted: float) -> float:
    """The smallest effect whose power, which rises with it to 1, reaches `wanted`; 0 without noise."""
    if sd <= 0:
        return 0.0
    low, high = 0.0, sd
    while power_at(high) < wanted:
        low, high = high, 2 * high
    for _ in range(40):
        half = (low + high) / 2
        low, high = (low, half) if power_at(half) >= wanted else (half, high)
    return high


def noise(differences: ArrayLike) -> tuple[float, float]:
    """(standard deviation, upper limit to plan with) of A/A differences, whose mean is 0 by their making: n of them
    have n degrees of freedom. The upper limit is that of confidence PILOT_CONFIDENCE: a sample size from the estimate
    itself is too small more often than not (Browne 1995, Statistics in Medicine 14)."""
    d = finite(differences)
    if not d.size:
        return math.nan, math.nan
    squares = float(np.sum(d * d))
    limit = math.sqrt(squares / float(stats.chi2.ppf(1 - PILOT_CONFIDENCE, d.size)))
    return math.sqrt(squares / d.size), limit


def pooled(differences: Mapping[str, Sequence[float]], alpha: float = 0.05) -> dict[str, tuple[float, float]]:
    """(mean, half width of its 1 - alpha interval) of the differences of each arm from one reference, by Student's t
    with one variance for all arms, estimated from how the differences of each arm scatter around their mean: two seeds
    alone say nothing about their variance, and many arms together do. Infinite where no arm has two differences."""
    means = {arm: float(np.mean(found)) for arm, found in differences.items() if len(found)}
    freedom = sum(len(differences[arm]) - 1 for arm in means)
    scatter = sum(float(np.sum((as_floats(differences[arm]) - mean) ** 2)) for arm, mean in means.items())
    width = float(stats.t.ppf(1 - alpha / 2, freedom)) * math.sqrt(scatter / freedom) if freedom else math.inf
    return {arm: (mean, width / math.sqrt(len(differences[arm]))) for arm, mean in means.items()}


def time_to(target: float, costs: ArrayLike, losses: ArrayLike) -> float:
    """The cost (seconds, FLOPs, tokens) at which a loss curve first reaches a target, between two measurements by a
    straight line; infinity for a run that never does, as AlgoPerf counts it (Dahl et al. 2023, 2306.07179)."""
    x, y = as_floats(costs), as_floats(losses)
    reached = np.flatnonzero(y <= target)
    if not reached.size:
        return math.inf
    first = int(reached[0])
    if first == 0 or not math.isfinite(y[first - 1]):
        return float(x[first])
    share = (y[first - 1] - target) / (y[first - 1] - y[first])
    return float(x[first - 1] + share * (x[first] - x[first - 1]))


def subtract(one: ArrayLike, other: ArrayLike) -> Floats:
    """Differences pair by pair, in which a run that failed counts: infinity less infinity is a tie."""
    a, b = as_floats(one), as_floats(other)
    both = np.isinf(a) & (a == b)
    with np.errstate(invalid="ignore"):
        return np.where(both, 0.0, a - b)


def pairs_of(values: Sequence[float]) -> list[float]:
    """All differences of two of some values, for an A/A pool."""
    return [a - b for a, b in itertools.combinations(values, 2)]


def finite(values: ArrayLike) -> Floats:
    """Raises:
    ValueError: for a value that is infinite or no number; those take `median_difference`.
    """
    d = as_floats(values)
    if not np.all(np.isfinite(d)):
        raise ValueError("a difference is not finite: use median_difference")
    return d


def as_floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64).reshape(-1)


def positive(effect: float) -> float:
    if not effect > 0:
        raise ValueError(f"effect = {effect} is not above 0")
    return effect
