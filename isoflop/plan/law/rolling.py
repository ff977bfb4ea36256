"""Measures how well a fit predicts: the largest budgets are held out and predicted from the rest.

Two choices decide how well a law predicts: its form, and whether runs far from the valley are fitted. A sum of two
powers only holds locally: runs of eight times the best size, with losses a third higher, bend it in a region where
nobody trains. Which method predicts best is measured on the points at hand. Its remaining error in excess of its
bootstrap and the runs' noise is that of the law itself; a prediction beyond the points is widened by that much per
factor of ten in compute.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from isoflop.errors import UserError
from isoflop.plan.law.bootstrap import LEVEL, bootstrap
from isoflop.plan.law.fit import Fit, fit
from isoflop.plan.law.points import SAME_BUDGET, Points, check
from isoflop.plan.law.solve import DELTA, FORMS

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

CUTS = 4  # at most: the largest budget held out, the two largest, ...
OCTAVE = 2.0  # factor in C that counts as one budget if points share no budgets
KEPT = 0.4  # share of the points that must remain
NEAR = 0.10  # a run this much worse than the best of no more compute (in log loss) is far from the valley
SAMPLES = 200  # of each cut's bootstrap
SMALLEST_DECADES = 0.15  # least extrapolation, since the error of a cut is divided by it
BETTER = 0.8  # another method is preferred if its held-out error is at most this share of that of `chinchilla`
GOOD_ENOUGH = 5e-4  # held-out error below which no better method is sought
ENOUGH_CUTS = 2  # cuts that are needed to prefer another method


@dataclass(frozen=True)
class Way:
    """A method of prediction: a form, and whether only the runs near the valley are fitted."""

    form: str = "chinchilla"
    near: bool = False

    def __str__(self) -> str:
        return self.form + (", runs near the valley" if self.near else "")

    def fit(self, points: Points, delta: float = DELTA) -> Fit:
        return fit(self.used(points), self.form, delta)

    def used(self, points: Points) -> Points:
        """The points to fit; all of them if those near the valley do not suffice."""
        if not self.near:
            return points
        close = points.select(excess(points) <= NEAR)
        return close if fits(close, self.form) else points


PLAIN = Way()
WAYS = (PLAIN, Way("chinchilla", near=True), Way("free"), Way("free", near=True))


def excess(points: Points) -> Array:
    """How much worse each run is than the best of no more compute, in log loss, shape (points,): at least 0. This shows
    that a run is far from the valley without a law."""
    order = np.argsort(points.flops, kind="stable")
    flops, log_loss = np.log(points.flops[order]), np.log(points.loss[order])
    best = np.minimum.accumulate(log_loss)
    until = np.searchsorted(flops, flops + SAME_BUDGET, side="right") - 1
    out = np.empty(len(points))
    out[order] = log_loss - best[until]
    return out


def fits(points: Points, form: str) -> bool:
    """Whether there are enough points, of enough sizes and lengths, for a form."""
    if len(points) < FORMS[form].constants + 3:
        return False
    try:
        check(points)
    except UserError:
        return False
    return True


@dataclass(frozen=True)
class Cut:
    """One prediction of held-out runs.

    Attributes:
        largest_kept, held: FLOPs of the largest budget kept, and the geometric mean of those held out.
        points: number of runs compared: the held-out ones near the valley, or all if none is near.
        error: the mean of log loss - log L over them; above 0 if the runs are worse than predicted.
        size: the root mean square of the same.
        doubt: the standard deviation of `error` by the bootstrap and the runs' noise; 0 if not computed.
    """

    largest_kept: float
    held: float
    points: int
    error: float
    size: float
    doubt: float = 0.0

    @property
    def decades(self) -> float:
        return max(SMALLEST_DECADES, math.log10(self.held / self.largest_kept))


@dataclass(frozen=True)
class Rolled:
    """All cuts of one method.

    Attributes:
        cuts: the largest budget held out first.
    """

    way: Way
    cuts: tuple[Cut, ...]

    @property
    def size(self) -> float:
        """The root mean square error over the cuts; infinite without cuts."""
        return math.sqrt(sum(cut.size**2 for cut in self.cuts) / len(self.cuts)) if self.cuts else math.inf

    @property
    def per_decade(self) -> float:
        """The law's own error, as a standard deviation of log loss per factor of ten beyond the points; widened to
        Student's t, since it comes from one to four cuts."""
        if not self.cuts:
            return 0.0
        squares = [max(0.0, cut.error**2 - cut.doubt**2) / cut.decades**2 for cut in self.cuts]
        upper = 0.5 + LEVEL / 2
        widen = float(stats.t.ppf(upper, len(self.cuts)) / stats.norm.ppf(upper))
        return widen * math.sqrt(sum(squares) / len(squares))


def thresholds(points: Points) -> list[float]:
    """The FLOPs at which points are cut off, the largest first."""
    groups = points.budgets()
    on_budgets = sum(len(group) >= 3 for group in groups) >= 4 and len(groups) <= len(points) / 2
    if on_budgets:
        return [float(points.flops[group].min()) for group in reversed(groups)][:CUTS]
    return [float(points.flops.max() / OCTAVE**k) for k in range(1, CUTS + 1)]


def roll(points: Points, way: Way = PLAIN, delta: float = DELTA, samples: int = SAMPLES) -> Rolled:
    """Hold out the largest budget, the two largest and so on, while enough points remain for a fit.

    Args:
        samples: of the bootstrap for the doubt of each cut; 0 for none.
    """
    cuts: list[Cut] = []
    for threshold in thresholds(points):
        kept = points.flops < threshold * (1 - 1e-9)
        if kept.all() or kept.sum() < KEPT * len(points) or not fits(points.select(kept), way.form):
            break
        if not cuts or points.select(kept).flops.max() < cuts[-1].largest_kept:
            cuts.append(cut_at(points, kept, way, delta, samples))
    return Rolled(way, tuple(cuts))


def cut_at(points: Points, kept: Mask, way: Way, delta: float, samples: int) -> Cut:
    fitted = way.fit(points.select(kept), delta)
    near = ~kept & (excess(points) <= NEAR)
    held = points.select(near if near.any() else ~kept)
    missed = np.log(held.loss) - np.log(fitted.law.loss(held.n, held.d))
    cut = Cut(
        float(points.flops[kept].max()),
        float(np.exp(np.log(held.flops).mean())),
        len(missed),
        float(missed.mean()),
        float(np.sqrt((missed**2).mean())),
    )
    if not samples:
        return cut

    laws = bootstrap(fitted, samples).laws()
    means = np.mean([np.log(laws.loss(n, d)) for n, d in zip(held.n, held.d, strict=True)], axis=0)
    return replace(cut, doubt=math.hypot(float(np.std(means)), fitted.noise / math.sqrt(len(missed))))


def choose(points: Points, delta: float = DELTA, ways: tuple[Way, ...] = WAYS) -> tuple[Way, list[Rolled]]:
    """The method to predict with: PLAIN, unless another has at most BETTER of its held-out error over at least
    ENOUGH_CUTS cuts. Also returns the cuts of all methods, PLAIN first, without doubts; if all runs are near the
    valley, only methods with all runs."""
    all_near = bool((excess(points) <= NEAR).all())
    rolled = [roll(points, way, delta, samples=0) for way in ways if not (way.near and all_near)]
    plain = rolled[0]
    able = [one for one in rolled if len(one.cuts) == len(plain.cuts) >= ENOUGH_CUTS]
    best = min(able, key=lambda one: one.size, default=plain)
    better = plain.size > GOOD_ENOUGH and best.size <= BETTER * plain.size
    return (best.way if better else plain.way), rolled
