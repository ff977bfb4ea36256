"""How far the constants of a fit, and what follows from them, can be trusted: a bootstrap over sizes and run noise.

Each sample keeps the N and D of the points and draws new losses: the fitted law, with noise on it that is drawn from
the residuals. The part that all runs of one size share (a learning rate that does not suit it, say) is drawn once per
size, where the residuals show that there is one; the rest once per run. Noise may grow or shrink with the size:
residuals are divided by a power of N that is fitted to them, drawn from all points, and multiplied by it again. Every
refit starts from the point fit.

Two corrections make intervals from few points honest. An estimator near the median, as Huber's with a delta below the
noise is, goes through as many points as it has constants: those residuals are no noise and are left out, and the
others are smoothed, since the spread of a median depends on their density at 0. And the noise is widened for the
constants that were fitted and to Student's t.
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
    """A number with what lies around it.

    Attributes:
        value: the point fit's.
        low, high: the interval's ends; infinite where a sample has no value.
        error: the standard deviation over the samples, None where some have no value.
        level: the share of such intervals that should hold the true value.
    """

    value: float
    low: float
    high: float
    error: float | None
    level: float = LEVEL


@dataclass(frozen=True)
class Samples:
    """The laws that the points could as well have given.

    Attributes:
        law: the point fit's.
        constants: E, A, B, alpha, beta, gamma of each sample, shape (samples, 6).
        noise: standard deviation of log loss between runs.
        size_share: the part of the residuals' variance that the runs of a size share.
    """

    law: Law
    constants: Array
    noise: float
    size_share: float = 0.0

    def __len__(self) -> int:
        return len(self.constants)

    def laws(self) -> Law:
        """All samples as one law whose constants are arrays of shape (samples,): its methods give arrays."""
        e, a, b, alpha, beta, gamma = self.constants.T
        return SampledLaw(e, a, b, alpha, beta, gamma, self.law.cost)

    def interval(self, of: Callable[[Law], object], level: float = LEVEL) -> Interval:
        """The interval of anything that follows from a law: `of` is given the point fit, then all samples at once."""
        with np.errstate(all="ignore"):  # far beyond the points a sample may be infinite or have no value
            value = float(np.asarray(of(self.law)))
            values = np.broadcast_to(np.asarray(of(self.laws()), dtype=np.float64), (len(self),))
        return around(value, values, level)


class SampledLaw(Law):
    """A law of which each constant is an array."""

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
    """Percentiles of samples, shape (samples,), on either side of a value."""
    tail = 50 * (1 - level)
    if np.isnan(values).any():
        return Interval(value, -math.inf, math.inf, None, level)
    low, high = np.percentile(values, [tail, 100 - tail], method="nearest")
    finite = bool((np.abs(values) < 1e150).all())  # whose squares are numbers too
    return Interval(value, float(low), float(high), float(np.std(values)) if finite else None, level)


def bootstrap(fitted: Fit, samples: int = SAMPLES, seed: int = 0) -> Samples:
    """Refit a fit's form to `samples` sets of losses drawn anew."""
    rng = np.random.default_rng(seed)
    residuals = fitted.residuals
    common, own, share = parts(residuals, fitted.points.sizes())
    degrees = max(1, len(residuals) - fitted.constants)
    student = float(stats.t.ppf(0.5 + LEVEL / 2, degrees) / stats.norm.ppf(0.5 + LEVEL / 2))

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
    """How large residuals are at each size, up to a factor: a power of N fitted to them, shape (points,)."""
    x = log_n - log_n.mean()
    size = np.log(np.maximum(np.abs(residuals), 0.1 * np.median(np.abs(residuals)) + 1e-300))
    error = float(np.std(size)) / math.sqrt(float((x**2).sum()))
    slope = float((x * size).sum() / (x**2).sum())
    return np.asarray(np.exp(x * slope)) if abs(slope) > 2 * error else np.ones_like(x)


def parts(residuals: Array, sizes: npt.NDArray[np.int64]) -> tuple[Array, Array, float]:
    """What the runs of a size share and what is a run's own, both of shape (points,), and the shared part of variance.

    A random-effects analysis of variance: the spread of the sizes' means beyond what the runs' own spread explains.
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
