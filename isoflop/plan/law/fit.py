"""Fits a law to points: variable projection, then all constants together, with Huber's or with squared error.

For given exponents the law is linear in E, A and B, which non-negative least squares finds exactly. The remaining
search has two dimensions: a grid, then L-BFGS, with a condition number of about 11 instead of 3.5e11 for all five
constants together (arXiv 2603.22339). Published fits stopped early (Besiroglu et al. 2024), so several starts are
optimised to a minimum in all constants, and the result says how many agree and how flat the objective is there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, nnls

from isoflop.errors import UserError
from isoflop.plan.law.counting import cost_of
from isoflop.plan.law.forms import Law
from isoflop.plan.law.points import Points
from isoflop.plan.law.solve import DELTA, FORMS, Problem, Scale, Solution, solve

Array = npt.NDArray[np.float64]

GRID = np.geomspace(0.05, 1.6, 16)  # exponents that are tried; published ones are 0.07 to 0.7
STARTS = 6  # points of the grid from which L-BFGS starts
GAMMA_STARTS = 3  # of those, each with four values of gamma, for forms with gamma
AGREE = 1e-6  # relative difference of objectives up to which two minima count as the same


@dataclass(frozen=True)
class Convergence:
    """Evidence that a fit is at a minimum.

    Attributes:
        starts: number of starting points.
        agreeing: number of starts that ended at the lowest objective.
        gradient: the largest cosine between a constant's derivative and the residuals at the end; 0 at a minimum.
        steps: of the slowest start.
    """

    starts: int
    agreeing: int
    gradient: float
    steps: int

    @property
    def reached(self) -> bool:
        return self.gradient <= 1e-5


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
        law: the law, with the points' cost per token.
        points: the points it was fitted to.
        form: a name of solve.FORMS.
        delta: Huber's; infinite for squared error.
        objective: sum of rho(log L - log loss) over the points.
        convergence: evidence that this is a minimum.
        theta, scale: the constants in the solver's parametrisation.
    """

    law: Law
    points: Points
    form: str
    delta: float
    objective: float
    convergence: Convergence
    theta: Array
    scale: Scale

    @property
    def problem(self) -> Problem:
        return problem_of(self.points, self.scale, self.form, self.delta)

    @property
    def residuals(self) -> Array:
        """log loss - log L of each point, shape (points,): above 0 for a run that is worse than predicted."""
        return np.asarray(np.log(self.points.loss) - np.log(self.law.loss(self.points.n, self.points.d)))

    @property
    def constants(self) -> int:
        return FORMS[self.form].constants

    @property
    def noise(self) -> float:
        """A robust standard deviation of the residuals: 1.4826 times the median of their absolute values, corrected for
        the number of fitted constants."""
        size = np.abs(self.residuals)
        free = max(1, len(size) - self.constants)
        return float(1.4826 * np.median(size) * math.sqrt(len(size) / free))


def problem_of(points: Points, scale: Scale, form: str, delta: float) -> Problem:
    return Problem(np.log(points.n / scale.n), np.log(points.d / scale.d), FORMS[form], delta)


def fit(points: Points, form: str = "chinchilla", delta: float = DELTA, start: Sequence[Law] = ()) -> Fit:
    """Fit a law.

    Args:
        points: at least one more than the form has constants.
        form: a name of solve.FORMS.
        delta: Huber's, on log loss; `math.inf` for squared error.
        start: laws to start from, in addition to those of variable projection.

    Raises:
        UserError: for too few points.
    """
    if len(points) <= FORMS[form].constants:
        raise UserError(f"{len(points)} points are too few for the {FORMS[form].constants} constants of {form!r}")

    scale = Scale.of(points.n, points.d)
    problem = problem_of(points, scale, form, delta)
    target = np.log(points.loss)

    starts = np.array([*project(problem, target), *(scale.theta(law) for law in start)])
    if FORMS[form].free[5]:  # start at gamma = 1 and at values like Kaplan's
        few = np.minimum(starts[:GAMMA_STARTS], 1e12)
        starts = np.concatenate([few, *(with_gamma(few, gamma) for gamma in (0.6, 0.3, 0.1))])
    solved = solve(problem, starts, target)
    best = int(np.argmin(solved.objective))

    law = scale.law(solved.theta[best]).with_cost(cost_of(points.n, points.d, points.flops))
    return Fit(
        law,
        points,
        form,
        delta,
        float(solved.objective[best]),
        shown(solved, best),
        solved.theta[best],
        scale,
    )


def shown(solved: Solution, best: int) -> Convergence:
    least = solved.objective[best]
    agreeing = int((solved.objective <= least * (1 + AGREE) + 1e-15).sum())
    return Convergence(len(solved.objective), agreeing, float(solved.gradient[best]), solved.steps)


def with_gamma(theta: Array, gamma: float) -> Array:
    """The constants of approximately the same law with the exponent gamma, shape (starts, 6)."""
    out = theta.copy()
    out[:, 1:3] = np.maximum(theta[:, 1:3], 1e-6) ** (1 / gamma)
    out[:, 3:5] = theta[:, 3:5] / gamma
    out[:, 5] = gamma
    return out


def project(problem: Problem, target: Array) -> list[Array]:
    """Variable projection: starting constants, best first.

    Args:
        target: log losses, shape (points,).
    """
    loss = np.exp(target)

    def inner(exponents: Array) -> tuple[float, Array]:
        """The least sum of squared relative errors for these exponents, and its gradient with respect to them (the
        gradient with respect to the linear constants is 0 there)."""
        constants, rows, residuals = linear(problem, exponents, loss)
        by_alpha = residuals @ (-problem.x * rows[:, 1]) * constants[1]
        by_beta = residuals @ (-problem.y * rows[:, 2]) * constants[2]
        return float(0.5 * residuals @ residuals), np.array([by_alpha, by_beta])

    tried = [(inner(np.array([alpha, beta]))[0], alpha, beta) for alpha in GRID for beta in GRID]
    tried.sort()
    bounds = [(0.02, 3.0)] * 2
    starts = []
    for _, alpha, beta in spread_out(tried):
        done = minimize(inner, np.array([alpha, beta]), jac=True, method="L-BFGS-B", bounds=bounds)
        constants, _, _ = linear(problem, done.x, loss)
        starts.append((float(done.fun), np.array([*constants, *done.x, 1.0])))
    return [theta for _, theta in sorted(starts, key=lambda one: one[0])]


def spread_out(tried: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """The best points of the grid that are not neighbours of a better one."""
    chosen: list[tuple[float, float, float]] = []
    step = math.log(GRID[1] / GRID[0]) * 1.5
    for one in tried:
        if all(max(abs(math.log(one[i] / other[i])) for i in (1, 2)) > step for other in chosen):
            chosen.append(one)
        if len(chosen) == STARTS:
            break
    return chosen


def linear(problem: Problem, exponents: Array, loss: Array) -> tuple[Array, Array, Array]:
    """E, A' and B' by non-negative least squares on relative errors; also the rows (points, 3), each divided by its
    loss, and the residuals."""
    rows = np.stack([np.ones_like(loss), np.exp(-exponents[0] * problem.x), np.exp(-exponents[1] * problem.y)], axis=1)
    rows /= loss[:, None]
    constants, _ = nnls(rows, np.ones_like(loss))
    return constants, rows, rows @ constants - 1.0
