"""A hierarchical scaling law: one law per corpus, and the distribution of these laws over corpora.

It forecasts a run on a new text from runs on other texts, and from runs on the same text where there are some.

    bits per byte = B (s + (1 - s) h),    h = ((N' / N_0)^-g + (D' / D_0)^-g) / 2,    D_0 = 20 N_0,

where N' and D' are the effective parameters and tokens when a text is repeated (Muennighoff et al. 2023,
repetition.py). It is L = E + A / N^g + C / D^g in constants that runs determine well. Each corpus has its own

    B, the bits per byte at N_0 and D_0,
    g, the exponent with which the reducible part shrinks, and
    s, the share of B that is irreducible.

log B is normally distributed about a line in the logarithm of the text's n-gram bits per byte, log g about a line in
that of the ratio of its compressed and its n-gram bits per byte (predictability.py): what a compressor finds and an
n-gram model does not, repetition, is learned late. The lines, the spread about them and the noise are estimated from
all runs together, by expectation maximisation with Laplace's approximation for each corpus (Gelman et al., Bayesian
Data Analysis, chapters 5 and 13). The distribution of s is not estimated: over two decades of compute it cannot be
separated from g. Its mean and spread are assumptions (IRREDUCIBLE).

With runs on the same text, the law of that text is a penalised fit to them: the more runs there are, and the closer to
the target, the less the other corpora matter. The interval is that of the linearised law plus the noise of one run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from isoflop.plan.predictability import Predictability
from isoflop.plan.repetition import R_D, R_N, TOKENS_PER_PARAMETER, effective

Array = npt.NDArray[np.float64]

N_0 = 2e5  # parameters, in the middle of the runs
# The mean and standard deviation of the log odds of s. Besiroglu et al. 2024: E = 1.8169 nats per token of about 4.4
# bytes of English from the web, so 0.6 bits per byte, where our runs at N_0 and D_0 have about 1.7: a share of 0.35.
# Runs on code, manual pages and tables fall more steeply than that allows: with 0.15, forecasts from one smaller run
# have no bias over the 20 corpora (LAB.md). It matters little within the runs' range and much far beyond it.
IRREDUCIBLE = (math.log(0.15 / 0.85), 0.6)
LEAST_SPREAD = (0.02, 0.03)  # lower bounds of the standard deviations of log B and log g between corpora
LEAST_BITS = 0.01  # lower bound of a sample's bits per byte, whose logarithm is taken
FARTHEST = 5.0  # the lines are flat beyond so many standard deviations of the corpora's features; the doubt grows on
ROUNDS = 200  # at most, of expectation maximisation
STEPS = 30  # at most, of the Gauss-Newton method


@dataclass(frozen=True)
class Observation:
    """A finished run.

    Attributes:
        parameters, tokens: N and D of 6 N D.
        unique_tokens: of its text.
        bits_per_byte: reached on held-out text.
    """

    parameters: float
    tokens: float
    unique_tokens: float
    bits_per_byte: float


@dataclass(frozen=True)
class Population:
    """The distribution of laws over corpora.

    Attributes:
        level: the line of log B: intercept, and slope in (log n-gram bits per byte - `centre[0]`).
        rate: the line of log g: intercept, and slope in (log of LZMA over n-gram bits per byte - `centre[1]`).
        centre: means of the two logarithms over the corpora.
        squares: sums of squares of the two logarithms about their means, for the uncertainty of the lines.
        spread: covariance matrix of log B and log g about their lines, as rows.
        noise: standard deviation of a run's log bits per byte about its corpus's law: seeds, vocabularies, and what
            the law leaves out.
        corpora: the number of corpora that it was estimated from.
    """

    level: tuple[float, float]
    rate: tuple[float, float]
    centre: tuple[float, float]
    squares: tuple[float, float]
    spread: tuple[tuple[float, float], tuple[float, float]]
    noise: float
    corpora: int

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Population":
        pairs = {name: tuple(value[name]) for name in ("level", "rate", "centre", "squares")}
        spread = tuple(tuple(row) for row in value["spread"])
        return cls(**pairs, spread=spread, noise=value["noise"], corpora=value["corpora"])  # type: ignore[arg-type]

    def mean(self, text: Predictability) -> Array:
        """The expected log odds of s, log B and log g of a text, shape (3,)."""
        ends = [FARTHEST * math.sqrt(square / self.corpora) for square in self.squares]
        level, rate = (min(max(one, -end), end) for one, end in zip(self.features(text), ends, strict=True))
        return np.array(
            [IRREDUCIBLE[0], self.level[0] + self.level[1] * level, self.rate[0] + self.rate[1] * rate],
        )

    def features(self, text: Predictability) -> tuple[float, float]:
        """`features_of` a text minus their means over the corpora."""
        level, rate = features_of(text)
        return level - self.centre[0], rate - self.centre[1]

    def covariance(self, text: Predictability, widen: float = 1.0) -> Array:
        """The covariance of the log odds of s, log B and log g of a text that is not among the corpora, shape (3, 3):
        the spread between corpora and the uncertainty of the lines.

        Args:
            widen: a factor on the spread, for runs with another recipe.
        """
        factors = np.array(
            [
                math.sqrt(1 + 1 / self.corpora + feature**2 / square + text.doubt**2 * slope**2 / variance)
                for feature, square, slope, variance in zip(
                    self.features(text),
                    self.squares,
                    (self.level[1], self.rate[1]),
                    (self.spread[0][0], self.spread[1][1]),
                    strict=True,
                )
            ]
        )

        total = np.zeros((3, 3))
        total[0, 0] = IRREDUCIBLE[1] ** 2
        total[1:, 1:] = widen**2 * np.array(self.spread) * np.outer(factors, factors)
        return total


def features_of(text: Predictability) -> tuple[float, float]:
    """The logarithms of a text's n-gram bits per byte and of the ratio of LZMA's to them; each measure is at least
    LEAST_BITS."""
    level, lzma = (math.log(max(bits, LEAST_BITS)) for bits in (text.ngram, text.lzma))
    return level, lzma - level


def sizes(parameters: Any, tokens: Any, unique_tokens: Any) -> tuple[Array, Array]:
    """log(N' / N_0) and log(D' / D_0) of runs, both of shape (runs,)."""
    rows = [
        (
            math.log(effective(n, unique / TOKENS_PER_PARAMETER, R_N) / N_0),
            math.log(effective(d, unique, R_D) / (TOKENS_PER_PARAMETER * N_0)),
        )
        for n, d, unique in zip(parameters, tokens, unique_tokens, strict=True)
    ]
    x, y = np.array(rows, dtype=np.float64).reshape(-1, 2).T
    return x, y


def log_law(theta: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """log(bits per byte) of runs, shape (runs,), and its derivatives with respect to the log odds of s, log B and
    log g, shape (runs, 3).

    Args:
        theta: the log odds of s, log B and log g.
        x, y: see `sizes`.
    """
    s, g = 1 / (1 + np.exp(-theta[0])), np.exp(theta[2])
    n_term, d_term = np.exp(-g * x), np.exp(-g * y)
    h = (n_term + d_term) / 2
    total = s + (1 - s) * h

    of_g = -(1 - s) * g * (x * n_term + y * d_term) / 2
    return theta[1] + np.log(total), np.stack([s * (1 - s) * (1 - h) / total, np.ones_like(x), of_g / total], axis=1)


def posterior(
    mean: Array,
    covariance: Array,
    x: Array,
    y: Array,
    target: Array,
    noise: Array,
    start: Array | None = None,
) -> tuple[Array, Array]:
    """The penalised fit of a corpus's law to its runs, by the Gauss-Newton method with step halving.

    Args:
        mean, covariance: of the log odds of s, log B and log g before any run, shapes (3,) and (3, 3).
        x, y: see `sizes`.
        target, noise: log(bits per byte) of the runs and its standard deviation, shape (runs,).
        start: the initial point, shape (3,); None: the mean.

    Returns:
        The log odds of s, log B and log g, shape (3,), and their covariance, shape (3, 3).
    """
    precision = np.linalg.inv(covariance)
    theta = mean.copy() if start is None else start.copy()

    def objective(at: Array) -> float:
        value, _ = log_law(at, x, y)
        return float(np.sum(((value - target) / noise) ** 2) + (at - mean) @ precision @ (at - mean))

    best = objective(theta)
    for _ in range(STEPS):
        value, jacobian = log_law(theta, x, y)
        weighted = jacobian / noise[:, None] ** 2
        hessian = precision + jacobian.T @ weighted
        gradient = weighted.T @ (value - target) + precision @ (theta - mean)
        step = np.linalg.solve(hessian, gradient)

        size = 1.0
        while size > 1e-4 and objective(theta - size * step) > best:
            size /= 2
        theta = theta - size * step
        now = objective(theta)
        done, best = best - now < 1e-10 * (1 + best), now
        if done:
            break

    _, jacobian = log_law(theta, x, y)
    information = precision + jacobian.T @ (jacobian / noise[:, None] ** 2)
    return theta, np.asarray(np.linalg.inv(information), dtype=np.float64)


@dataclass(frozen=True)
class Corpus:
    """The runs of one corpus as arrays of shape (runs,), for the estimation.

    Attributes:
        x, y: see `sizes`.
        target: log(bits per byte) reached.
    """

    text: Predictability
    x: Array
    y: Array
    target: Array

    @classmethod
    def of(cls, text: Predictability, runs: Sequence[Observation]) -> "Corpus":
        x, y = sizes(*([getattr(run, name) for run in runs] for name in ("parameters", "tokens", "unique_tokens")))
        return cls(text, x, y, np.log([run.bits_per_byte for run in runs]))


def estimate(corpora: Sequence[Corpus]) -> Population:
    """The maximum-likelihood distribution of laws for the runs of at least three corpora."""
    features = np.array([features_of(corpus.text) for corpus in corpora])
    centre = features.mean(axis=0)
    features = features - centre
    squares = (features**2).sum(axis=0)
    free = len(corpora) - 2

    lines = np.array([[0.6, 1.0], [-1.5, 0.0]])  # rows: log B and log g; only an initial value
    spread, noise = np.diag([0.1, 0.2]) ** 2, 0.03
    starts: list[Array | None] = [None] * len(corpora)
    for _ in range(ROUNDS):
        # expectation: each corpus's law, given the distribution so far
        covariance = np.zeros((3, 3))
        covariance[0, 0], covariance[1:, 1:] = IRREDUCIBLE[1] ** 2, spread
        means, covariances, squared_errors, count = [], [], 0.0, 0
        for number, (corpus, feature) in enumerate(zip(corpora, features, strict=True)):
            mean = np.array([IRREDUCIBLE[0], *(lines[:, 0] + lines[:, 1] * feature)])
            noises = np.full_like(corpus.x, noise)
            theta, around = posterior(mean, covariance, corpus.x, corpus.y, corpus.target, noises, starts[number])
            starts[number] = theta
            value, jacobian = log_law(theta, corpus.x, corpus.y)
            means.append(theta[1:])
            covariances.append(around[1:, 1:])
            errors = ((value - corpus.target) ** 2).sum()
            squared_errors += float(errors + np.einsum("ij,jk,ik", jacobian, around, jacobian))
            count += len(corpus.target)

        # maximisation: lines, spread and noise, given the laws
        before = np.array([*lines.ravel(), *spread.ravel(), noise])
        laws = np.array(means)
        slopes = (features * (laws - laws.mean(axis=0))).sum(axis=0) / squares
        lines = np.stack([laws.mean(axis=0), slopes], axis=1)
        residuals = laws - lines[:, 0] - features * lines[:, 1]
        spread = (residuals.T @ residuals + np.sum(covariances, axis=0) * free / len(corpora)) / free
        for i, least in enumerate(LEAST_SPREAD):
            spread[i, i] = max(spread[i, i], least**2)
        limit = 0.95 * math.sqrt(spread[0, 0] * spread[1, 1])
        spread[0, 1] = spread[1, 0] = min(max(spread[0, 1], -limit), limit)
        noise = math.sqrt(squared_errors / count)
        if np.abs(np.array([*lines.ravel(), *spread.ravel(), noise]) - before).max() < 1e-5:
            break

    return Population(
        level=(float(lines[0, 0]), float(lines[0, 1])),
        rate=(float(lines[1, 0]), float(lines[1, 1])),
        centre=(float(centre[0]), float(centre[1])),
        squares=(float(squares[0]), float(squares[1])),
        spread=((float(spread[0, 0]), float(spread[0, 1])), (float(spread[1, 0]), float(spread[1, 1]))),
        noise=noise,
        corpora=len(corpora),
    )


def predict(
    population: Population,
    text: Predictability,
    target: Observation,
    observed: Sequence[Observation] = (),
    widen: float = 1.0,
) -> tuple[float, float]:
    """The expected log(bits per byte) of a run, and its standard deviation, which includes the noise of that run.

    Args:
        target: the run; its bits_per_byte is not read.
        observed: runs on the same text with the same recipe.
        widen: a factor on the spread between corpora, for a recipe that is not theirs.
    """
    theta, covariance = population.mean(text), population.covariance(text, widen)
    if observed:
        own = Corpus.of(text, observed)
        noise = np.full_like(own.x, population.noise)
        theta, covariance = posterior(theta, covariance, own.x, own.y, own.target, noise)

    x, y = sizes([target.parameters], [target.tokens], [target.unique_tokens])
    value, jacobian = log_law(theta, x, y)
    variance = float(jacobian[0] @ covariance @ jacobian[0]) + population.noise**2
    return float(value[0]), math.sqrt(variance)
