"""Chinchilla's approaches 1 and 2: N* from the runs themselves, without a law (Hoffmann et al. 2022, 3.1 and 3.2).

Approach 2 fits a parabola in log N to log loss at each budget and a line to the minima. It is biased even without noise
(arXiv 2603.22339): valleys are not parabolas, and grids are not centred on the minimum. The bias for the grid of these
points is computed by applying the procedure to the losses of the fitted law at these points.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from isoflop.plan.law.forms import Law
from isoflop.plan.law.points import Points

Array = npt.NDArray[np.float64]

NEAR = 2  # points on either side of the lowest to which a parabola is fitted: far ones bend it
FEWEST_BUDGETS = 3  # for fitting a line
ENVELOPE_BUDGETS = 50  # of approach 1, log-spaced (the paper has 1,500 along curves; ours are final losses)


@dataclass(frozen=True)
class Valley:
    """The minimum at one budget: C, N* and D* there, the loss of the parabola, and whether the points enclose it."""

    flops: float
    n: float
    d: float
    loss: float
    inside: bool


@dataclass(frozen=True)
class Exponent:
    """N* = G C^a through several minima.

    Attributes:
        a, error: the exponent and its standard error from the line's residuals.
        log_g: log G.
        valleys: the minima; only those `inside` count.
        bias: the error of the same procedure's exponent on noiseless losses of the fitted law at these points; None if
            no law was given.
    """

    a: float
    error: float
    log_g: float
    valleys: tuple[Valley, ...]
    bias: float | None = None

    def n_star(self, flops: float) -> float:
        return float(np.exp(self.log_g + self.a * np.log(flops)))


def approach_2(points: Points, law: Law | None = None, near: int = NEAR) -> Exponent | None:
    """Parabolas at each budget of at least three sizes; None if fewer than FEWEST_BUDGETS have a minimum inside.

    Args:
        law: the fitted one, to compute the bias with.
    """
    valleys = tuple(
        valley for group in points.budgets() if (valley := parabola(points.select(group), near)) is not None
    )
    exponent = line(valleys)
    if exponent is None or law is None:
        return exponent
    ideal = approach_2(points.with_loss(law.loss(points.n, points.d)), near=near)
    return replace(exponent, bias=None if ideal is None else ideal.a - law.exponent)


def parabola(points: Points, near: int = NEAR) -> Valley | None:
    """The minimum of one budget: a parabola in log N, fitted to the lowest point and `near` on either side."""
    sizes, which = np.unique(points.n, return_inverse=True)
    if len(sizes) < 3:
        return None
    counts = np.bincount(which)
    x, y = np.log(sizes), np.bincount(which, np.log(points.loss)) / counts
    flops = float(np.exp(np.log(points.flops).mean()))
    tokens = np.bincount(which, np.log(points.d)) / counts
    lowest = int(np.argmin(y))
    used = slice(max(0, lowest - near), lowest + near + 1)
    if len(x[used]) < 3:
        used = slice(max(0, lowest - 2), lowest + 3)

    middle = x[lowest]
    bend, slope, height = np.polyfit(x[used] - middle, y[used], 2)
    if bend <= 0:
        return Valley(flops, float(sizes[lowest]), float(np.exp(tokens[lowest])), float(np.exp(y[lowest])), False)
    move = -slope / (2 * bend)
    inside = bool(0 < lowest < len(x) - 1 and x[0] < middle + move < x[-1])
    d = float(np.exp(np.interp(middle + move, x, tokens)))
    return Valley(flops, float(np.exp(middle + move)), d, float(np.exp(height - slope**2 / (4 * bend))), inside)


def line(valleys: tuple[Valley, ...]) -> Exponent | None:
    inside = [valley for valley in valleys if valley.inside]
    if len(inside) < FEWEST_BUDGETS:
        return None
    x, y = np.log([valley.flops for valley in inside]), np.log([valley.n for valley in inside])
    if np.ptp(x) == 0:
        return None
    a, log_g = np.polyfit(x, y, 1)
    rest = y - a * x - log_g
    error = float(np.sqrt((rest**2).sum() / max(1, len(x) - 2) / ((x - x.mean()) ** 2).sum()))
    return Exponent(float(a), error, float(log_g), valleys)


def approach_1(points: Points) -> Exponent | None:
    """The lower envelope over sizes: each size's log loss is interpolated over log C, and at each C with at least three
    sizes N* is the size of the lowest loss. Minima at the smallest or largest size count as not inside.

    The paper uses points along curves with schedules of four lengths; ours are runs with a separate schedule each.
    Returns None if the table has too few lengths per size.
    """
    curves: list[tuple[float, Array, Array, Array]] = []
    for size in np.unique(points.n):
        own = points.select(points.n == size)
        order = np.argsort(own.flops)
        flops, first = np.unique(np.log(own.flops[order]), return_index=True)
        if len(flops) >= 2:
            log_loss, log_d = np.log(own.loss[order][first]), np.log(own.d[order][first])
            curves.append((float(size), flops, log_loss, log_d))
    if len(curves) < 3:
        return None

    valleys = []
    ends = [curve[1] for curve in curves]
    for at in np.linspace(min(end[0] for end in ends), max(end[-1] for end in ends), ENVELOPE_BUDGETS):
        covering = [curve for curve in curves if curve[1][0] <= at <= curve[1][-1]]
        if len(covering) < 3:
            continue
        losses = [float(np.interp(at, curve[1], curve[2])) for curve in covering]
        lowest = int(np.argmin(losses))
        d = float(np.exp(np.interp(at, covering[lowest][1], covering[lowest][3])))
        inside = 0 < lowest < len(covering) - 1
        valleys.append(Valley(float(np.exp(at)), covering[lowest][0], d, float(np.exp(losses[lowest])), inside))

    exponent = line(tuple(valleys))
    # a line through a staircase of fewer sizes is meaningless
    sizes = {valley.n for valley in valleys if valley.inside}
    return exponent if exponent is not None and len(sizes) >= FEWEST_BUDGETS else None
