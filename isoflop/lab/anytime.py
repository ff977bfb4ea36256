"""A t-test that may be looked at after every pair: an e-process, and the confidence sequence that it inverts to.

Of differences d_1, d_2, ... ~ N(mu, sigma^2) with both unknown, the statistic t_n is all that is left when the scale is
taken away (Lai 1976, Annals of Statistics 4; Wang & Ramdas 2024, 2310.03722). Under mu = 0 it is Student's with n - 1
degrees of freedom; with mu / sigma ~ N(0, tau^2) it is sqrt(1 + n tau^2) times as much. The ratio of the two densities,

    E_n = (1 + n tau^2)^(-1/2) [ (1 + t^2 / (n - 1)) / (1 + t^2 / ((n - 1)(1 + n tau^2))) ]^(n / 2),

is a martingale of the sequence t_2, t_3, ... with mean 1 under mu = 0, whatever sigma is (Perez-Ortiz et al. 2024,
2208.07610, section 4). By Ville's inequality the chance that it ever reaches 1 / alpha is at most alpha: a test that
rejects then has that error however often, and for whatever reason, one looks.
"""

import itertools
import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from isoflop.lab.stats import MOST_PAIRS, Estimate, as_floats, fewest, finite, middle, positive, smallest

TAU = 1.0  # the scale of effects, in standard deviations of a difference, that the test is best for; fixed beforehand


def log_e_value(differences: ArrayLike, mean: float = 0.0, tau: float = TAU) -> float:
    """log E_n of the hypothesis that the differences have this mean; 0 for fewer than two."""
    d = finite(differences) - mean
    n = d.size
    if n < 2:
        return 0.0
    spread = float(d.std(ddof=1))
    if spread == 0.0:
        return 0.0 if not d.any() else math.inf
    square = n * float(d.mean()) ** 2 / spread**2 / (n - 1)
    g = 1 + n * tau**2
    return -0.5 * math.log(g) + 0.5 * n * (math.log1p(square) - math.log1p(square / g))


def bound(pairs: int, alpha: float, tau: float = TAU) -> float:
    """|t| at which E_n reaches 1 / alpha; infinite where no t does."""
    if pairs < 2:
        return math.inf
    g = 1 + pairs * tau**2
    log_c = 2 / pairs * (0.5 * math.log(g) - math.log(alpha))
    if log_c >= math.log(g):
        return math.inf
    c = math.exp(log_c)
    return math.sqrt((pairs - 1) * (c - 1) / (1 - c / g))


def confidence_sequence(differences: ArrayLike, alpha: float = 0.05, tau: float = TAU) -> Estimate:
    """The interval of the mean difference that holds the truth at all n at once with chance 1 - alpha, and the p-value
    that holds at any time: 1 over the largest E so far."""
    d = finite(differences)
    n = d.size
    mean = float(d.mean()) if n else math.nan
    largest = max((log_e_value(d[:k], tau=tau) for k in range(2, n + 1)), default=0.0)
    p = math.exp(-max(0.0, largest))
    if n < 2:
        return Estimate(mean, -math.inf, math.inf, 1.0, n, "anytime t")

    # the truth lies in the intervals of all n at once: their intersection may be taken
    low, high = -math.inf, math.inf
    for k in range(2, n + 1):
        part = d[:k]
        limit = bound(k, alpha, tau)
        if math.isfinite(limit):
            half = limit * float(part.std(ddof=1)) / math.sqrt(k)
            low, high = max(low, float(part.mean()) - half), min(high, float(part.mean()) + half)
    if low > high:  # the sequence contradicts itself: what was assumed does not hold, and nothing is claimed
        return Estimate(mean, -math.inf, math.inf, 1.0, n, "anytime t")
    return Estimate(mean, low, high, p, n, "anytime t")


def log_sign_e_value(above: int, below: int) -> float:
    """log of the e-process of "a difference is as often above as below": heads of a fair coin against one whose chance
    is uniform, 2^n above! below! / (n + 1)! (Robbins 1970; Ramdas et al. 2023, 2210.01948, section 3)."""
    n = above + below
    return n * math.log(2) + math.lgamma(above + 1) + math.lgamma(below + 1) - math.lgamma(n + 2)


def pairs_for_signs(alpha: float) -> int:
    """The fewest pairs with which signs alone can reject, however often one has looked, if all point the same way."""
    return next(pairs for pairs in itertools.count(1) if log_sign_e_value(pairs, 0) >= -math.log(alpha))


def median_sequence(differences: ArrayLike, alpha: float = 0.05) -> Estimate:
    """The same for the median, by signs alone: for differences some of which are infinite. Ties speak for no side."""
    d = np.sort(np.nan_to_num(as_floats(differences), nan=0.0, posinf=math.inf, neginf=-math.inf))
    n = d.size
    if n == 0:
        return Estimate(math.nan, -math.inf, math.inf, 1.0, 0, "anytime sign")
    log_e = log_sign_e_value(int(np.sum(d > 0)), int(np.sum(d < 0)))
    rank = 0  # values from either end that the median is beyond
    while 2 * rank < n and log_sign_e_value(n - rank, rank) >= -math.log(alpha):
        rank += 1
    low, high = (float(d[rank - 1]), float(d[n - rank])) if rank else (-math.inf, math.inf)
    return Estimate(middle(d), low, high, math.exp(-max(0.0, log_e)), n, "anytime sign")


def power(pairs: int, effect: float, sd: float, alpha: float = 0.05, tau: float = TAU) -> float:
    """The chance of rejecting with exactly so many pairs: a lower bound of the chance of rejecting by then."""
    limit = bound(pairs, alpha, tau)
    if not math.isfinite(limit):
        return 0.0
    if sd <= 0:
        return 1.0 if effect else 0.0
    shift = math.sqrt(pairs) * abs(effect) / sd
    return min(1.0, float(np.nan_to_num(stats.nct.sf(limit, pairs - 1, shift), nan=1.0)))


def required_pairs(effect: float, sd: float, alpha: float = 0.05, wanted: float = 0.8, tau: float = TAU) -> int:
    """Pairs by which an effect is found with power `wanted` at least, however often one has looked.

    Raises:
        ValueError: for an effect that is not positive.
    """
    return min(MOST_PAIRS, fewest(lambda pairs: power(pairs, effect, sd, alpha, tau), positive(effect), wanted))


def detectable(pairs: int, sd: float, alpha: float = 0.05, wanted: float = 0.8, tau: float = TAU) -> float:
    """The smallest true difference that is found by so many pairs with power `wanted` at least; infinite where none is,
    whatever its size."""
    if not math.isfinite(bound(pairs, alpha, tau)):
        return math.inf
    return smallest(lambda effect: power(pairs, effect, sd, alpha, tau), sd, wanted)
