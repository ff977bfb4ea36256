"""Warnings about a fit: what its points do not determine, one line each."""

import math

import numpy as np

from isoflop.plan.law.fit import Fit
from isoflop.plan.law.points import off_ray
from isoflop.plan.law.rolling import NEAR, excess
from isoflop.plan.law.solve import HIGH, LOW

NEAR_RAY = 0.25  # standard deviation of log D about a line in log N: D within a quarter of one ray
FEW_SIZES = 5  # "fewer than 3 to 5 sizes do not suffice" (2410.11840)
FAR_SHARE = 0.3  # share of points far from the valley above which a warning is given
OUTLIER = 6.0  # times the noise
APART = 0.05  # difference of `a` between Huber's and squared error above which a warning is given


def doubts(fitted: Fit, squared: Fit) -> list[str]:
    """Warnings about a fit.

    Args:
        fitted, squared: by Huber's and by squared error.
    """
    points, law = fitted.points, fitted.law
    warnings: list[str] = []
    if not fitted.convergence.reached:
        warnings.append(f"the fit is not at a minimum (gradient {fitted.convergence.gradient:.1e}): do not use it")
    spread = off_ray(points)
    if spread < NEAR_RAY:
        warnings.append(
            f"the points are nearly on one ray (D follows N within {math.expm1(spread):.0%}): A and B are hardly "
            "identifiable; add runs of the same sizes on half and twice the tokens"
        )
    for name, values in (("N", points.n), ("D", points.d)):
        if (distinct := len(np.unique(values))) < FEW_SIZES:
            warnings.append(f"only {distinct} different {name}: fewer than {FEW_SIZES} seldom suffice")

    ratio = np.log(points.n / law.n_star(points.flops))
    far = excess(points) > NEAR
    if far.mean() > FAR_SHARE:
        warnings.append(
            f"{int(far.sum())} of {len(points)} points are far from the valley (over {NEAR:.0%} above the best of no "
            "more compute) and bend the law; see which way predicts best"
        )
    if (ratio > 0).all() or (ratio < 0).all():
        side, missing = ("larger", "smaller") if (ratio > 0).all() else ("smaller", "larger")
        warnings.append(
            f"all models are {side} than the best of their budget by this law: where the valley lies is extrapolated; "
            f"add {missing} models"
        )
    bounds = [("E", law.E <= 0), ("A", fitted.theta[1] <= LOW[1]), ("B", fitted.theta[2] <= LOW[2])]
    bounds += [(name, not LOW[3] < value < HIGH[3]) for name, value in (("alpha", law.alpha), ("beta", law.beta))]
    warnings += [f"{name} is at its bound: the points do not determine it" for name, bound in bounds if bound]

    worst = np.abs(fitted.residuals) > OUTLIER * fitted.noise
    if worst.any():
        at = int(np.argmax(np.abs(fitted.residuals)))
        warnings.append(
            f"{int(worst.sum())} outlier{'s' if worst.sum() > 1 else ''} beyond {OUTLIER:.0f} times the noise; the "
            f"worst has N {points.n[at]:.4g}, D {points.d[at]:.4g}, loss {points.loss[at]:.4g}"
        )
    if abs(law.a - squared.law.a) > APART:
        warnings.append(
            f"Huber's error gives a = {law.a:.3f} and squared error {squared.law.a:.3f}: a few points decide"
        )
    return warnings
