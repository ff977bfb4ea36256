"""Intervals for the constants of a fit and everything derived from them: a bootstrap over sizes and run noise.

Each sample keeps the N and D of the points and draws new losses: the fitted law plus noise drawn from the residuals.
The part of the noise that all runs of one size share (a learning rate that does not suit it, say) is drawn once per
size, if the residuals show such a part; the rest once per run. Noise may depend on the size: residuals are divided by a
power of N that is fitted to them, drawn from all points, and multiplied by it again. Every refit starts from the point
fit.

Two corrections make intervals from few points wide enough. An estimator near the median, as Huber's with a delta below
the noise, passes through as many points as it has constants: those residuals are not noise and are left out, and the
others are smoothed, since the spread of a median depends on their density at 0. And the noise is widened for the number
of fitted constants and to Student's t.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from isoflop.plan.law.fit import Fit
from isoflop.plan.law.forms import Law
from isoflop.plan.law.solve import solve

Array = npt.NDArray[np.float64]

SAMPLES = 1000
LEVEL = 0.9


@dataclass(frozen=True)
class Interval:
    """A number with its interval.

    Attributes:
        value: the point fit's.
        low, high: the interval's ends; infinite if a sample has no value.
        error: the standard deviation over the samples; None if some have no value.
        level: the share of such intervals that should contain the true value.
    """

    value: float
    low: float
    high: float
    error: float | None
    level: float = LEVEL


@dataclass(frozen=True)
class Samples:
    """The laws fitted to resampled losses.

    Attributes:
        law: the point fit's.
        constants: E, A, B, alpha, beta, gamma of each sample, shape (samples, 6).
        noise: standard deviation of log loss between runs.
        size_share: the share of the residuals' variance that the runs of a size have in common.
    """

    law: Law
    constants: Array
    noise: float
    size_share: float = 0.0

    def __len__(self) -> int:
        return len(self.constants)

    def laws(self) -> Law:
        """All samples as one law whose constants are arrays of shape (samples,), so that its methods return arrays."""
        e, a, b, alpha, beta, gamma = self.constants.T
        return SampledLaw(e, a, b, alpha, beta, gamma, self.law.cost)

    def interval(self, of: Callable[[Law], object], level: float = LEVEL) -> Interval:
        """The interval of a function of a law: `of` is called with the point fit, then with all samples at once."""
        with np.errstate(all="ignore"):  # far beyond the points a sample may be infinite or have no value
            value = float(np.asarray(of(self.law)))
            values = np.broadcast_to(np.asarray(of(self.laws()), dtype=np.float64), (len(self),))
        return around(value, values, level)


class SampledLaw(Law):
    """A law whose constants are arrays."""

    def n_star(self, flops: object) -> Array:
        k, s = self.cost.k, self.cost.s
        with np.errstate(divide="ignore", over="ignore"):
            balance = np.log(self.alpha * self.A / ((1 + s) * self.beta * self.B))
            return np.asarray(np.exp((balance + self.beta * np.log(flops / k)) / (self.alpha + self.beta * (1 + s))))  # type: ignore[operator]

    def flops_for(self, loss: float) -> Array:  # type: ignore[override]
        with np.errstate(all="ignore"):
            here = self.loss_star(1.0) - self.E
            value = (here / (loss - self.E)) ** (1 / (self.gamma * self.slope))
        return np.asarray(np.where(loss > self.E, value, np.inf))


def around(value: float, values: Array, level: float = LEVEL) -> Interval:
    """The interval around a value from the percentiles of samples, shape (samples,)."""
    tail = 50 * (1 - level)
    if np.isnan(values).any():
        return Interval(value, -math.inf, math.inf, None, level)
    low, high = np.percentile(values, [tail, 100 - tail], method="nearest")
    finite = bool((np.abs(values) < 1e150).all())  # so that their squares are finite
    return Interval(value, float(low), float(high), float(np.std(values)) if finite else None, level)


def bootstrap(fitted: Fit, samples: int = SAMPLES, seed: int = 0) -> Samples:
    """Refit a fit's form to `samples` sets of resampled losses."""
    rng = np.random.default_rng(seed)
    residuals = fitted.residuals
    common, own, share = parts(residuals, fitted.points.sizes())
    degrees = max(1, len(residuals) - fitted.constants)
    student = float(stats.t.ppf(0.5 + LEVEL / 2, degrees) / stats.norm.ppf(0.5 + LEVEL / 2))

    # each run's own noise: residuals without those of the points that the fit passes through, smoothed
    group = fitted.points.sizes()
    shape = (samples, len(residuals))
    scales = scale_by_size(own, np.log(fitted.points.n))
    pool = np.sort(np.abs(own / scales))
    if fitted.delta < float(np.median(np.abs(residuals))):
        pool = pool[min(fitted.constants, len(pool) // 2) :]
    spread = float(np.sqrt((pool**2).mean()))
    bandwidth = spread * len(pool) ** -0.2
    noise = rng.choice(pool, size=shape) * rng.choice([-1.0, 1.0], size=shape) + bandwidth * rng.standard_normal(shape)
    noise *= spread / max(math.hypot(spread, bandwidth), 1e-300)  # residuals may all be 0

    by_size = rng.choice([-1.0, 1.0], size=(samples, group.max() + 1))[:, group]
    drawn = student * (math.sqrt(len(residuals) / degrees) * scales * noise + by_size * common)
    centre = np.log(fitted.law.loss(fitted.points.n, fitted.points.d))
    solved = solve(fitted.problem, np.tile(fitted.theta, (samples, 1)), centre + drawn)
    return Samples(fitted.law, fitted.scale.raw(solved.theta), fitted.noise, share)


def scale_by_size(residuals: Array, log_n: Array) -> Array:
    """The size of residuals as a function of N, up to a factor: a power of N fitted to them, shape (points,)."""
    x = log_n - log_n.mean()
    size = np.log(np.maximum(np.abs(residuals), 0.1 * np.median(np.abs(residuals)) + 1e-300))
    error = float(np.std(size)) / math.sqrt(float((x**2).sum()))
    slope = float((x * size).sum() / (x**2).sum())
    return np.asarray(np.exp(x * slope)) if abs(slope) > 2 * error else np.ones_like(x)


def parts(residuals: Array, sizes: npt.NDArray[np.int64]) -> tuple[Array, Array, float]:
    """The part of the residuals that the runs of a size share, each run's own part, both of shape (points,), and the
    shared part of variance.

    A random-effects analysis of variance: the spread of the sizes' means in excess of what the runs' spread explains.
    """
    counts = np.bincount(sizes)
    if len(residuals) - len(counts) < 3 or len(counts) < 3:
        return np.zeros_like(residuals), residuals, 0.0
    means = np.bincount(sizes, residuals) / counts
    within = float(((residuals - means[sizes]) ** 2).sum() / (len(residuals) - len(counts)))
    between = float((counts * means**2).sum() / len(counts))
    per_size = (len(residuals) - (counts**2).sum() / len(residuals)) / max(1, len(counts) - 1)
    shared = max(0.0, (between - within) / per_size)
    if shared == 0.0:
        return np.zeros_like(residuals), residuals, 0.0
    kept = math.sqrt(shared / max(float((means**2).mean()), 1e-300))
    common = min(1.0, kept) * means[sizes]
    return common, residuals - common, shared / (shared + within)
