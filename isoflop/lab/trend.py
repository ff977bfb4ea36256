"""From several sizes of a claim to a trend: laws through the losses of two arms, and their difference at a larger size.

    L(C) = E + a C^-b

a belongs to an arm, the exponent b is shared, and the irreducible loss E is tied, one for both arms, or untied, one for
each. Tied, two arms of one exponent approach each other as both approach E; untied, they may stay apart or cross. With
sizes that can be trained on two cores the data rarely tell which is right, and the verdict at a larger size may depend
on it (2608.11859), so that both are fitted.

For a given b the rest is linear with coefficients that are not negative, and is solved exactly (variable projection,
2603.22339); b is searched in one dimension. numpy and scipy only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar, nnls

Floats = NDArray[np.float64]

EXPONENTS = (0.02, 1.0)  # b is searched between these
GRID = 25  # values of b tried before the search
SAMPLES = 500  # bootstrap samples of the pairs
FEWEST = 3  # sizes; with two of them an untied law has more constants than there are losses
AHEAD = 10.0  # times the compute of the largest size


@dataclass(frozen=True)
class Law:
    """A fitted law of several arms.

    Attributes:
        irreducible, scale: E and a of each arm; C is in units of the largest one.
        exponent: b.
        unit: the FLOPs that C is divided by.
        error: root mean square of the residuals.
    """

    irreducible: tuple[float, ...]
    scale: tuple[float, ...]
    exponent: float
    unit: float
    error: float

    def at(self, arm: int, flops: float) -> float:
        """The loss of an arm at a compute."""
        reducible: float = self.scale[arm] * (flops / self.unit) ** -self.exponent
        return self.irreducible[arm] + reducible


def fit(flops: Floats, losses: Floats, tied: bool) -> Law:
    """The law with the least squared error.

    Args:
        flops, losses: shape (arms, sizes).
        tied: one irreducible loss for all arms.
    """
    arms, sizes = losses.shape
    unit = float(flops.max())
    x, y = (flops / unit).ravel(), losses.ravel()
    arm_of = np.repeat(np.arange(arms), sizes)
    own = (arm_of[:, None] == np.arange(arms)).astype(np.float64)
    level = np.ones((len(y), 1)) if tied else own

    def solve(log_b: float) -> tuple[Floats, float]:
        constants, residual = nnls(np.hstack([level, own * (x ** -math.exp(log_b))[:, None]]), y)
        return constants, float(residual)

    low, high = (math.log(end) for end in EXPONENTS)
    grid = np.linspace(low, high, GRID)
    best = int(np.argmin([solve(log_b)[1] for log_b in grid]))
    around = (float(grid[max(0, best - 1)]), float(grid[min(GRID - 1, best + 1)]))
    found = minimize_scalar(lambda log_b: solve(log_b)[1], bounds=around, method="bounded", options={"xatol": 1e-4})
    log_b = min((float(found.x), float(grid[best])), key=lambda value: solve(value)[1])
    constants, residual = solve(log_b)

    levels = [float(constants[0])] * arms if tied else [float(value) for value in constants[:arms]]
    scales = [float(value) for value in constants[level.shape[1] :]]
    return Law(tuple(levels), tuple(scales), math.exp(log_b), unit, residual / math.sqrt(len(y)))


@dataclass(frozen=True)
class Ahead:
    """The difference arm - against that a law expects at AHEAD times the compute of the largest size.

    Attributes:
        low, high: its 95 % bootstrap interval over pairs.
        law: fitted to the means of all pairs.
    """

    value: float
    low: float
    high: float
    law: Law

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval is above or below 0, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def ahead(flops: Floats, arm: Sequence[Floats], against: Sequence[Floats], tied: bool, seed: int = 0) -> Ahead:
    """The difference of two arms further on.

    Args:
        flops: of a run, shape (2, sizes): those of the arm and of what it is compared with.
        arm, against: by size, the losses of the pairs; those of a size in the same order in both.

    Raises:
        ValueError: for fewer than FEWEST sizes, or a size without a pair.
    """
    if len(arm) < FEWEST or not all(len(losses) for losses in arm):
        raise ValueError(f"a law needs {FEWEST} sizes with one pair each at least")
    generator = np.random.default_rng(seed)
    whole = float(flops.max()) * AHEAD

    def difference(means: Floats) -> tuple[float, Law]:
        law = fit(flops, means, tied)
        return law.at(0, whole) - law.at(1, whole), law

    value, law = difference(np.array([[np.mean(losses) for losses in side] for side in (arm, against)]))
    sampled = []
    for _ in range(SAMPLES):
        chosen = [generator.integers(0, len(losses), len(losses)) for losses in arm]
        means = [
            [float(np.mean(losses[rows])) for losses, rows in zip(side, chosen, strict=True)] for side in (arm, against)
        ]
        sampled.append(difference(np.array(means))[0])
    low, high = (float(end) for end in np.quantile(sampled, (0.025, 0.975)))
    return Ahead(value, low, high, law)
