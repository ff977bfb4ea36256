"""Whether the learning rates that the plan sets are the best ones at each size, and stay so as the size grows.

A fit can be clean while the recipe does not scale: Delphi's first ladder missed a run of 300 times its compute by 2.5 %
until the rate fell with the horizon. So the rates are tried at half and twice the plan's at the smallest and at the
middle size, and further out until the best lies between two others. The optimum is that of a parabola in the logarithm
of the factor; its uncertainty follows from the noise between seeds. Where the optimum moves with the size by more than
that, the plan's rule does not carry over: a larger run is further from its best rates than the runs of the ladder were.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.ladder.rungs import FACTORS

MOST = 5  # factors that are tried at a size
DRAWS = 400
CLEAR = 0.5  # powers of two that the optimum has to move by for it to count
FLATTEST = 1e-3  # curvature of log loss in the square of log2 factor below which the rates do not matter


@dataclass(frozen=True)
class Bracket:
    """The best learning rates at one size.

    Attributes:
        parameters: N.
        tried: loss by factor of the plan's rates, rising; infinite for a run that diverged.
        best: the optimum's factor; low, high: between which it lies in 80 % of draws of the noise.
        gain: share of the loss that the optimum is below the plan's rates.
        bend: curvature of log loss in log2 factor.
        inside: a worse factor was seen on either side of the best one.
    """

    parameters: float
    tried: dict[float, float]
    best: float
    low: float
    high: float
    gain: float
    bend: float
    inside: bool


def following(tried: Mapping[float, float]) -> list[float]:
    """The factors to try next at a size; none when the best lies between two worse ones, or MOST were tried."""
    missing = [factor for factor in FACTORS if factor not in tried]
    if missing or len(tried) >= MOST:
        return missing
    order = sorted(tried)
    best = min(order, key=lambda factor: tried[factor])
    if best == order[0]:
        return [best / 2]
    return [best * 2] if best == order[-1] else []


def bracket(parameters: float, tried: Mapping[float, float], noise: float, seed: int = 0) -> Bracket | None:
    """The optimum of what was tried; None for fewer than three runs that did not diverge.

    Args:
        noise: standard deviation of log loss between seeds.
    """
    order = sorted(tried)
    finite = [factor for factor in order if math.isfinite(tried[factor])]
    if len(finite) < 3 or 1.0 not in finite:
        return None
    lowest = min(range(len(finite)), key=lambda at: tried[finite[at]])
    near = finite[max(0, min(lowest - 1, len(finite) - 3)) :][:3]
    x, y = np.log2(near), np.log([tried[factor] for factor in near])
    best, bend = optimum(x, y)
    rng = np.random.default_rng(seed)
    drawn = np.array([optimum(x, y + noise * rng.standard_normal(3))[0] for _ in range(DRAWS)])
    low, high = np.percentile(drawn, [10, 90])
    worse = order.index(finite[lowest])
    return Bracket(
        parameters=parameters,
        tried={factor: tried[factor] for factor in order},
        best=2.0**best,
        low=2.0 ** float(low),
        high=2.0 ** float(high),
        gain=1 - math.exp(-bend * best**2),
        bend=bend,
        inside=0 < worse < len(order) - 1,
    )


def optimum(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The minimum of the parabola through three points, within a step of them, and its curvature: y = c + bend (x -
    best)^2. Where it bends the wrong way the lowest point is taken."""
    bend, slope, _ = np.polyfit(x, y, 2)
    if bend <= FLATTEST:
        return float(x[int(np.argmin(y))]), FLATTEST
    return float(np.clip(-slope / (2 * bend), x[0] - 1, x[-1] + 1)), float(bend)


@dataclass(frozen=True)
class Transfer:
    """Whether the plan's rule for the rates carries over from one size to the next.

    Attributes:
        brackets: at the smallest and the middle size.
        moves: powers of two that the optimum moves by for each factor of ten in parameters; 0 where that is inside the
            noise.
        per_decade: share of the loss that a run loses by it for each factor of ten in compute beyond the middle size.
    """

    brackets: tuple[Bracket, ...]
    moves: float = 0.0
    per_decade: float = 0.0

    @property
    def holds(self) -> bool:
        return self.moves == 0.0


def transfer(brackets: Sequence[Bracket]) -> Transfer:
    """What the best rates at two sizes say of the rule between them."""
    if len(brackets) < 2:
        return Transfer(tuple(brackets))
    small, middle = sorted(brackets, key=lambda one: one.parameters)[:2]
    decades = math.log10(middle.parameters / small.parameters)
    apart = math.log2(middle.best / small.best)
    doubt = 0.5 * math.hypot(*(math.log2(one.high / one.low) for one in (small, middle)))
    if decades <= 0 or abs(apart) < max(CLEAR, 1.5 * doubt):
        return Transfer((small, middle))
    moves = apart / decades
    # N grows as about the square root of compute: half a factor of ten in N, from where the optimum is at the middle
    there = math.log2(middle.best) + 0.5 * moves
    lost = middle.bend * max(0.0, there**2 - math.log2(middle.best) ** 2)
    return Transfer((small, middle), moves, lost)
