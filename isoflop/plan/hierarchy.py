"""A law for each corpus, and how the laws of corpora differ: what runs on some texts say of a run on another one.

    bits per byte = B (s + (1 - s) h),    h = ((N' / N_0)^-g + (D' / D_0)^-g) / 2,    D_0 = 20 N_0,

with N' and D' what parameters and tokens are worth where a text is repeated (Muennighoff et al. 2023, repetition.py).
It is L = E + A / N^g + C / D^g, written so that its constants say what runs can tell: a corpus has its own B, the bits
per byte at N_0 and D_0, g, how fast the reducible part shrinks, and s, the part that is not reducible. log B is normal
about a line in the logarithm of what an n-gram model makes of the text, log g about one in that of what a compressor
makes of it (predictability.py): what is repeated nearby is learned late. Lines, spread and noise are estimated from all
runs together, by expectation maximisation with Laplace's approximation for each corpus (Gelman et al., Bayesian Data
Analysis, chapters 5 and 13). s is not: two decades of compute cannot tell it from g, so that its mean and spread are
assumptions (IRREDUCIBLE).

Given runs on the very text, a corpus's law is the penalised fit to them: the closer to the target and the more they
are, the less the other corpora matter. The interval is that of the linearised law plus the noise of one run.
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
# bytes of English from the web, so 0.6 bits per byte, where our runs at N_0 and D_0 have about 1.7. How far that of
# code, of tables or of another language lies from it nobody has measured: 0.23 to 0.5 of the bits per byte, one
# standard deviation either way, is an assumption. It matters little within the runs' range and much far beyond it.
IRREDUCIBLE = (math.log(0.35 / 0.65), 0.6)
FEWEST_SPREAD = (0.02, 0.03)  # standard deviations of log B and log g between corpora, at least
LEAST_BITS = 0.01  # bits per byte of a sample, for its logarithm
FARTHEST = 5.0  # standard deviations of the corpora's features to which the lines are followed; the doubt grows on
ROUNDS = 200  # of expectation maximisation, at most
STEPS = 30  # of Gauss and Newton


@dataclass(frozen=True)
class Seen:
    """A run that was made.

    Attributes:
        parameters, tokens: N and D of 6ND.
        unique_tokens: that its text has.
        bits_per_byte: reached on held-out text.
        pilot: it is a pilot: shorter than the runs that laws are estimated from, and off them by an amount of its own.
    """

    parameters: float
    tokens: float
    unique_tokens: float
    bits_per_byte: float
    pilot: bool = False


@dataclass(frozen=True)
class Population:
    """How the laws of corpora are distributed.

    Attributes:
        level: of log B: intercept, and slope in log n-gram bits per byte less `centre[0]`.
        rate: of log g: intercept, and slope in log LZMA bits per byte less `centre[1]`.
        centre: means of the two logarithms over the corpora.
        squares: sums of squares of the two logarithms about their means: how far the lines can be trusted off them.
        spread: covariance of log B and log g about their lines, as rows.
        noise: standard deviation of log bits per byte of a run about its corpus's law: seeds, vocabularies, and what
            the law does not know.
        corpora: that it was estimated from.
        pilot: the mean of log bits per byte of a pilot about its corpus's law, and the standard deviation; as a run's
            where no pilots were seen.
    """

    level: tuple[float, float]
    rate: tuple[float, float]
    centre: tuple[float, float]
    squares: tuple[float, float]
    spread: tuple[tuple[float, float], tuple[float, float]]
    noise: float
    corpora: int
    pilot: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Population":
        pairs = {name: tuple(value[name]) for name in ("level", "rate", "centre", "squares", "pilot")}
        spread = tuple(tuple(row) for row in value["spread"])
        return cls(**pairs, spread=spread, noise=value["noise"], corpora=value["corpora"])  # type: ignore[arg-type]

    def mean(self, text: Predictability) -> Array:
        """The log odds of s, log B and log g to be expected of a text, shape (3,)."""
        ends = [FARTHEST * math.sqrt(square / self.corpora) for square in self.squares]
        level, rate = (min(max(one, -end), end) for one, end in zip(self.features(text), ends, strict=True))
        return np.array(
            [IRREDUCIBLE[0], self.level[0] + self.level[1] * level, self.rate[0] + self.rate[1] * rate],
        )

    def features(self, text: Predictability) -> tuple[float, float]:
        """The two logarithms less their means, each of a text that is predictable to the bit taken for 0.01."""
        level, rate = (math.log(max(bits, LEAST_BITS)) for bits in (text.ngram, text.lzma))
        return level - self.centre[0], rate - self.centre[1]

    def covariance(self, text: Predictability, strange: float = 1.0) -> Array:
        """Of the log odds of s, log B and log g of a text that is not among the corpora, shape (3, 3): the spread
        between corpora and the doubt about the lines.

        Args:
            strange: times as much spread, where the runs are of another recipe.
        """
        doubt = np.array(
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
        total[1:, 1:] = strange**2 * np.array(self.spread) * np.outer(doubt, doubt)
        return total


def sizes(parameters: Any, tokens: Any, unique_tokens: Any) -> tuple[Array, Array]:
    """log(N' / N_0) and log(D' / D_0) of some runs, shapes (runs,)."""
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
    """log(bits per byte) of runs, shape (runs,), and its derivatives by the log odds of s, log B and log g, shape
    (runs, 3)."""
    s, g = 1 / (1 + np.exp(-theta[0])), np.exp(theta[2])
    by_n, by_d = np.exp(-g * x), np.exp(-g * y)
    h = (by_n + by_d) / 2
    total = s + (1 - s) * h
    of_g = -(1 - s) * g * (x * by_n + y * by_d) / 2
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
    """The penalised fit of a corpus's law to its runs: the log odds of s, log B and log g, shape (3,), and their
    covariance.

    Args:
        mean, covariance: before any run.
        x, y: see `sizes`; target: log(bits per byte), noise: its standard deviation, shape (runs,).
        start: where to begin; None: at the mean.
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
    return theta, np.asarray(np.linalg.inv(precision + jacobian.T @ (jacobian / noise[:, None] ** 2)), dtype=np.float64)


@dataclass(frozen=True)
class Corpus:
    """The runs of one corpus, as the estimation needs them: arrays of shape (runs,)."""

    text: Predictability
    x: Array
    y: Array
    target: Array
    pilot: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, text: Predictability, runs: Sequence[Seen]) -> "Corpus":
        x, y = sizes(*([getattr(run, name) for run in runs] for name in ("parameters", "tokens", "unique_tokens")))
        pilot = np.array([run.pilot for run in runs], dtype=np.bool_)
        return cls(text, x, y, np.log([run.bits_per_byte for run in runs]), pilot)

    def only(self, pilots: bool) -> "Corpus":
        """The pilots, or the other runs."""
        these = self.pilot == pilots
        return Corpus(self.text, self.x[these], self.y[these], self.target[these], self.pilot[these])


def estimate(corpora: Sequence[Corpus]) -> Population:
    """The distribution of laws by which the runs of some corpora are most likely; at least three corpora. Laws are
    estimated from the runs that are no pilots, and how pilots lie about them after that."""
    with_pilots, corpora = corpora, [one.only(pilots=False) for one in corpora]
    features = np.log([[one.text.ngram, one.text.lzma] for one in corpora])
    centre = features.mean(axis=0)
    features = features - centre
    squares = (features**2).sum(axis=0)
    free = len(corpora) - 2

    lines = np.array([[0.6, 1.0], [-1.5, 0.0]])  # rows: of log B and of log g; a start, of no weight
    spread, noise = np.diag([0.1, 0.2]) ** 2, 0.03
    starts: list[Array | None] = [None] * len(corpora)
    for _ in range(ROUNDS):
        covariance = np.zeros((3, 3))
        covariance[0, 0], covariance[1:, 1:] = IRREDUCIBLE[1] ** 2, spread
        means, spreads, misses, count = [], [], 0.0, 0
        for number, (one, feature) in enumerate(zip(corpora, features, strict=True)):
            mean = np.array([IRREDUCIBLE[0], *(lines[:, 0] + lines[:, 1] * feature)])
            theta, doubt = posterior(
                mean, covariance, one.x, one.y, one.target, np.full_like(one.x, noise), starts[number]
            )
            starts[number] = theta
            value, jacobian = log_law(theta, one.x, one.y)
            means.append(theta[1:])
            spreads.append(doubt[1:, 1:])
            misses += float(((value - one.target) ** 2).sum() + np.einsum("ij,jk,ik", jacobian, doubt, jacobian))
            count += len(one.target)

        before = np.array([*lines.ravel(), *spread.ravel(), noise])
        found = np.array(means)
        slopes = (features * (found - found.mean(axis=0))).sum(axis=0) / squares
        lines = np.stack([found.mean(axis=0), slopes], axis=1)
        off = found - lines[:, 0] - features * lines[:, 1]
        spread = (off.T @ off + np.sum(spreads, axis=0) * free / len(corpora)) / free
        for i, least in enumerate(FEWEST_SPREAD):
            spread[i, i] = max(spread[i, i], least**2)
        limit = 0.95 * math.sqrt(spread[0, 0] * spread[1, 1])
        spread[0, 1] = spread[1, 0] = min(max(spread[0, 1], -limit), limit)
        noise = math.sqrt(misses / count)
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
        pilot=about_the_law([one.only(pilots=True) for one in with_pilots], starts, noise),
    )


def about_the_law(corpora: Sequence[Corpus], laws: Sequence[Array | None], noise: float) -> tuple[float, float]:
    """The mean and standard deviation of what pilots have more than their corpora's laws, each corpus counting
    alike."""
    off = [
        one.target - log_law(law, one.x, one.y)[0] for one, law in zip(corpora, laws, strict=True) if law is not None
    ]
    off = [one for one in off if len(one)]
    if not off:
        return 0.0, noise
    mean = float(np.mean([one.mean() for one in off]))
    spread = math.sqrt(float(np.mean([((one - mean) ** 2).mean() for one in off])) * len(off) / max(1, len(off) - 1))
    return mean, max(noise, spread)


def predict(
    population: Population,
    text: Predictability,
    target: Seen,
    seen: Sequence[Seen] = (),
    strange: float = 1.0,
) -> tuple[float, float]:
    """log(bits per byte) to be expected of a run, and its standard deviation, the run's own noise included.

    Args:
        target: the run; what it reached is not read.
        seen: runs on the same text and with the same recipe.
        strange: times the spread between corpora, where the recipe is another than theirs.
    """
    theta, covariance = population.mean(text), population.covariance(text, strange)
    if seen:
        own = Corpus.of(text, seen)
        shift = np.where(own.pilot, population.pilot[0], 0.0)
        noise = np.where(own.pilot, population.pilot[1], population.noise)
        theta, covariance = posterior(theta, covariance, own.x, own.y, own.target - shift, noise)
    x, y = sizes([target.parameters], [target.tokens], [target.unique_tokens])
    value, jacobian = log_law(theta, x, y)
    variance = float(jacobian[0] @ covariance @ jacobian[0]) + population.noise**2
    return float(value[0]), math.sqrt(variance)
