"""The objective of a fit and its minimum, for many fits at once: Levenberg-Marquardt with bounds, in a batch.

A bootstrap needs a thousand fits of all constants, each from one good start; as one batch of array operations they take
seconds. The residuals are those of the logarithm,

    r_i = log L(N_i, D_i) - log L_i,        objective: sum of rho(r_i),

with rho = Huber's (quadratic up to delta, then linear; Hoffmann et al. 2022, equation 11, delta = 1e-3) or r^2 / 2.

The constants are E, A' = A N_0^-alpha, B' = B D_0^-beta, alpha, beta, gamma, with N_0 and D_0 in the middle of the
points: A' and alpha, and B' and beta, are then hardly correlated, while the problem in the raw constants has a
condition number of 3.5e11 (2603.22339).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isoflop.plan.law.forms import Law

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

DELTA = 1e-3  # Huber's, on log loss
NAMES = ("E", "A", "B", "alpha", "beta", "gamma")
LOW = np.array([0.0, 1e-12, 1e-12, 0.02, 0.02, 0.02])  # A and B stay above 0, by a negligible amount
HIGH = np.array([np.inf, np.inf, np.inf, 3.0, 3.0, 3.0])
PERFECT = 1e-18  # an objective of rounding errors only
TOLERANCE = 1e-7  # of the projected gradient, see `gradient_size`
MOST_STEPS = 300
LARGEST_DAMPING = 1e12
BATCH_NUMBERS = 4_000_000  # numbers in the largest array of a batch; more fits take several batches


@dataclass(frozen=True)
class Form:
    """Which constants are free. `tied` makes alpha and beta one; `fixed` maps the index of a constant to its value."""

    name: str
    fixed: tuple[tuple[int, float], ...] = ()
    tied: bool = False

    @property
    def free(self) -> Mask:
        """Of the six constants, those that are fitted, shape (6,); a tied beta counts as alpha."""
        mask = np.ones(6, dtype=bool)
        mask[[index for index, _ in self.fixed]] = False
        mask[4] &= not self.tied
        return mask

    @property
    def constants(self) -> int:
        return int(self.free.sum())


FORMS = {
    "chinchilla": Form("chinchilla", ((5, 1.0),)),
    "tied": Form("tied", ((5, 1.0),), tied=True),
    "kaplan": Form("kaplan", ((0, 0.0), (4, 1.0))),
    "free": Form("free"),
}


@dataclass(frozen=True)
class Scale:
    """The middle of the points, which scales the constants."""

    n: float
    d: float

    @classmethod
    def of(cls, n: Array, d: Array) -> "Scale":
        return cls(float(np.exp(np.log(n).mean())), float(np.exp(np.log(d).mean())))

    def law(self, theta: Array) -> Law:
        """One row of constants as a law."""
        e, a, b, alpha, beta, gamma = (float(value) for value in theta)
        return Law(e, a * self.n**alpha, b * self.d**beta, alpha, beta, gamma)

    def theta(self, law: Law) -> Array:
        """A law as a row of constants, shape (6,)."""
        a, b = law.A * self.n**-law.alpha, law.B * self.d**-law.beta
        return np.array([law.E, a, b, law.alpha, law.beta, law.gamma])

    def raw(self, theta: Array) -> Array:
        """Rows of constants with the law's A and B instead of A' and B', shape (batch, 6)."""
        out = theta.copy()
        out[:, 1] *= self.n ** theta[:, 3]
        out[:, 2] *= self.d ** theta[:, 4]
        return out


@dataclass(frozen=True)
class Problem:
    """The points, in logarithms about their middle, and the loss function.

    Attributes:
        x, y: log(N / N_0) and log(D / D_0), shape (points,).
        form: which constants are free.
        delta: Huber's; infinite for squared error.
    """

    x: Array
    y: Array
    form: Form
    delta: float = DELTA

    def objective(self, residuals: Array) -> Array:
        """Sum of rho over the last axis."""
        size = np.abs(residuals)
        if not np.isfinite(self.delta):
            return np.asarray(0.5 * (size**2).sum(-1))
        inside = np.minimum(size, self.delta)
        return np.asarray((inside * (size - 0.5 * inside)).sum(-1))

    def predicted(self, theta: Array) -> tuple[Array, Array, Array]:
        """exp(-alpha x), exp(-beta y) and L, each of shape (batch, points)."""
        n = np.exp(-theta[:, 3:4] * self.x)
        d = np.exp(-theta[:, 4:5] * self.y)
        total = theta[:, 1:2] * n + theta[:, 2:3] * d
        if self.form.name in ("chinchilla", "tied"):
            return n, d, theta[:, 0:1] + total
        return n, d, theta[:, 0:1] + total ** theta[:, 5:6]

    def residuals(self, theta: Array, target: Array) -> Array:
        """log L - target, shape (batch, points)."""
        return np.asarray(np.log(self.predicted(theta)[2]) - target)

    def jacobian(self, theta: Array) -> Array:
        """Derivatives of log L with respect to the six constants, shape (batch, points, 6); those of a tied beta are
        added to those of alpha."""
        n, d, loss = self.predicted(theta)
        a, b = theta[:, 1:2], theta[:, 2:3]
        out = np.empty((*n.shape, 6))
        out[..., 0] = 1.0
        out[..., 1], out[..., 2] = n, d
        out[..., 3], out[..., 4] = -a * self.x * n, -b * self.y * d
        if self.form.free[5]:
            total, gamma = a * n + b * d, theta[:, 5:6]
            power = total**gamma
            out[..., 1:5] *= (gamma * power / total)[..., None]
            out[..., 5] = power * np.log(total)
        else:
            out[..., 5] = 0.0
        if self.form.tied:
            out[..., 3] += out[..., 4]
            out[..., 4] = 0.0
        out /= loss[..., None]
        return out

    def legal(self, theta: Array) -> Array:
        """Constants moved inside their bounds, fixed ones to their values, a tied beta to alpha."""
        out = np.clip(theta, LOW, HIGH)
        if self.form.tied:
            out[:, 4] = out[:, 3]
        for index, value in self.form.fixed:
            out[:, index] = value
        return out


@dataclass(frozen=True)
class Solution:
    """The results of a batch of fits.

    Attributes:
        theta: constants, shape (batch, 6), scaled by Scale.
        objective: sum of rho, shape (batch,).
        gradient: distance from a minimum, shape (batch,); see `gradient_size`.
        steps: of the slowest fit.
    """

    theta: Array
    objective: Array
    gradient: Array
    steps: int

    @property
    def converged(self) -> Mask:
        return np.asarray(self.gradient <= 100 * TOLERANCE)


def solve(problem: Problem, start: Array, target: Array, most_steps: int = MOST_STEPS) -> Solution:
    """Fit a batch of starting points, shape (batch, 6), to targets log L, shape (batch, points) or (points,)."""
    batch = len(start)
    target = np.broadcast_to(target, (batch, len(problem.x)))
    at_once = max(1, BATCH_NUMBERS // (6 * len(problem.x)))
    with np.errstate(all="ignore"):  # a too large step overflows, is not better, and is not taken
        parts = [
            solve_batch(problem, start[i : i + at_once], target[i : i + at_once], most_steps)
            for i in range(0, batch, at_once)
        ]
    return Solution(
        np.concatenate([part.theta for part in parts]),
        np.concatenate([part.objective for part in parts]),
        np.concatenate([part.gradient for part in parts]),
        max(part.steps for part in parts),
    )


def solve_batch(problem: Problem, start: Array, target: Array, most_steps: int) -> Solution:
    theta = problem.legal(np.array(start, dtype=np.float64))
    residuals = problem.residuals(theta, target)
    objective = problem.objective(residuals)
    gradient = np.full(len(theta), np.inf)
    damping = np.full(len(theta), 1e-3)
    active = np.arange(len(theta))
    step = 0

    while len(active) and step < most_steps:
        step += 1
        slope, curvature, diagonal, held = equations(problem, theta[active], residuals[active])
        gradient[active] = gradient_size(slope, diagonal, held, objective[active])
        going = (gradient[active] > TOLERANCE) & (damping[active] < LARGEST_DAMPING)
        active = active[going]
        if not len(active):
            break

        # Marquardt's damping scales with the diagonal, so that no constant's unit matters.
        slope, curvature, diagonal, held = slope[going], curvature[going], diagonal[going], held[going]
        matrix = curvature + damping[active, None, None] * diagonal[:, :, None] * np.eye(6)
        matrix = np.where(held[:, :, None] | held[:, None, :], np.eye(6), matrix)
        move = np.linalg.solve(matrix, np.where(held, 0.0, slope)[..., None])[..., 0]
        trial = problem.legal(theta[active] - move)
        tried = problem.residuals(trial, target[active])
        value = problem.objective(tried)

        better = value < objective[active]
        ours = active[better]
        theta[ours], residuals[ours], objective[ours] = trial[better], tried[better], value[better]
        damping[active] = np.where(better, np.maximum(damping[active] / 5, 1e-12), damping[active] * 4)
    return Solution(theta, objective, gradient, step)


def equations(problem: Problem, theta: Array, residuals: Array) -> tuple[Array, Array, Array, Mask]:
    """The gradient (batch, 6), the curvature (batch, 6, 6), the scale of each constant's curvature (batch, 6), and a
    mask of the constants that do not move: fixed, or at a bound with the gradient pointing outside."""
    jacobian = problem.jacobian(theta)
    size = np.abs(residuals)
    pull = np.clip(residuals, -problem.delta, problem.delta)  # rho'
    inside = (size <= problem.delta).astype(np.float64)  # rho''
    weight = np.minimum(1.0, problem.delta / np.maximum(size, 1e-300))  # rho' / r, which bounds rho'' from above

    slope = np.einsum("bnp,bn->bp", jacobian, pull)
    curvature = np.matmul(jacobian.transpose(0, 2, 1) * inside[:, None, :], jacobian)
    diagonal = np.einsum("bnp,bnp,bn->bp", jacobian, jacobian, weight) + 1e-300
    held = np.broadcast_to(~problem.form.free, theta.shape).copy()
    held |= (theta <= LOW) & (slope > 0)
    held |= (theta >= HIGH) & (slope < 0)
    return slope, curvature, diagonal, held


def gradient_size(slope: Array, diagonal: Array, held: Mask, objective: Array) -> Array:
    """Distance from a minimum, without units: the largest cosine between a constant's derivative and the residuals, as
    MINPACK's gtol; 0 at a minimum, and 0 for a perfect fit."""
    cosine = np.abs(slope) / np.sqrt(np.maximum(diagonal, 1e-12) * 2 * np.maximum(objective, PERFECT)[:, None])
    return np.asarray(np.where(held, 0.0, cosine).max(1))
