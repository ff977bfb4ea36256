"""The data-constrained law: the remaining value of repeated tokens and surplus parameters.

    L = E + A / N'^alpha + B / D'^beta,    D' = U_D + U_D R_D (1 - exp(-R / R_D)),    R = D / U_D - 1 repeats,

and N' likewise from U_N, the parameters that are compute-optimal for U_D unique tokens (Muennighoff et al. 2023,
2305.16264, equations 5 and 6). The base law is that of text without repetition; only R_D and R_N are fitted here.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from isoflop.errors import UserError
from isoflop.plan.law.fit import Convergence
from isoflop.plan.law.forms import Law
from isoflop.plan.law.points import Points
from isoflop.plan.law.solve import DELTA
from isoflop.plan.repetition import R_D, R_N

Array = npt.NDArray[np.float64]

STARTS = (1.0, 5.0, 15.0, 50.0)  # of R_D and R_N
LARGEST = 1e4  # of R_D and R_N: repeats that lose nothing


def effective(amount: Any, unique: Any, decay: float) -> Array:
    """The effective amount if only `unique` of `amount` is new, any shapes that broadcast."""
    amount, unique = np.asarray(amount, dtype=np.float64), np.asarray(unique, dtype=np.float64)
    repeats = np.maximum(amount / unique - 1, 0.0)
    return np.asarray(np.minimum(amount, unique) - unique * decay * np.expm1(-repeats / decay))


@dataclass(frozen=True)
class DataConstrained:
    """A law of text without repetition, with the cost of repeating it.

    Attributes:
        law: the law without repetition.
        r_d: repetitions after which a token has lost 1 - 1/e of its value.
        r_n: the same for parameters beyond U_N.
    """

    law: Law
    r_d: float = R_D
    r_n: float = R_N

    def loss(self, n: Any, d: Any, unique: Any) -> Array:
        """L of N parameters on D tokens drawn from `unique` ones, any shapes that broadcast."""
        unique = np.minimum(np.asarray(unique, dtype=np.float64), d)
        u_n = np.minimum(n, self.parameters_for(unique))
        return np.asarray(self.law.loss(effective(n, u_n, self.r_n), effective(d, unique, self.r_d)))

    def parameters_for(self, unique: Any) -> Array:
        """U_N: the N for which `unique` tokens are compute-optimal, from alpha A / N^alpha = (1+s) beta B / D^beta."""
        law = self.law
        ratio = law.alpha * law.A / ((1 + law.cost.s) * law.beta * law.B)
        return np.asarray((ratio * np.asarray(unique, dtype=np.float64) ** law.beta) ** (1 / law.alpha))


def fit_repeats(points: Points, unique: Any, law: Law, delta: float = DELTA) -> tuple[DataConstrained, Convergence]:
    """Fit R_D and R_N by L-BFGS on log loss, from several starts; the law without repetition is not changed.

    Args:
        points: runs, of which some repeat their text.
        unique: unique tokens of each, shape (points,).
        law: fitted to runs without repetition, in the same convention.

    Raises:
        UserError: if no run repeats its text.
    """
    unique = np.broadcast_to(np.asarray(unique, dtype=np.float64), points.n.shape)
    if not (points.d > unique * 1.01).any():
        raise UserError("no run repeats its text, so that nothing says what repeating costs: give runs with D above U")
    target = np.log(points.loss)

    def objective(logs: Array) -> float:
        """The sum of Huber's error, over delta squared so that L-BFGS does not stop early."""
        made = DataConstrained(law, math.exp(logs[0]), math.exp(logs[1]))
        size = np.abs(np.log(made.loss(points.n, points.d, unique)) - target)
        inside = np.minimum(size, delta)
        return float((inside * (size - 0.5 * inside)).sum() / delta**2)

    bounds = [(math.log(0.05), math.log(LARGEST))] * 2
    starts = [np.log([r_d, r_n]) for r_d in STARTS for r_n in STARTS]
    options = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 500}
    ends = [minimize(objective, start, method="L-BFGS-B", bounds=bounds, options=options) for start in starts]
    best = min(ends, key=lambda end: float(end.fun))
    agreeing = sum(float(end.fun) <= float(best.fun) * (1 + 1e-4) + 1e-12 for end in ends)
    slope = float(np.abs(best.jac).max() / max(1.0, float(best.fun)))
    shown = Convergence(len(ends), agreeing, slope, max(int(end.nit) for end in ends))
    return DataConstrained(law, math.exp(best.x[0]), math.exp(best.x[1])), shown
