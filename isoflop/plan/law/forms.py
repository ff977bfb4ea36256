"""The laws, and their optima for a budget.

All are of one family:  L(N, D) = E + (A / N^alpha + B / D^beta)^gamma

    chinchilla   gamma = 1                    Hoffmann et al. 2022 (2203.15556), equation 10
    tied         gamma = 1, alpha = beta      Muennighoff et al. 2023 (2305.16264) on C4; Gadre et al. 2024 (2403.08540)
    kaplan       E = 0, beta = 1: [(Nc/N)^(aN/aD) + Dc/D]^aD      Kaplan et al. 2020 (2001.08361), equation 1.5
    free         all six                      Busbridge et al. 2025 (2502.08606), equation 4
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from isoflop.plan.law.counting import Cost

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """A law with its constants. Losses are in the unit of the points that it was fitted to, usually nats per token; N
    and D are numbers of parameters and tokens.

    Attributes:
        E: irreducible loss.
        A, alpha: of the term in N, A / N^alpha.
        B, beta: of the term in D, B / D^beta.
        gamma: exponent of their sum; 1 except in the forms `kaplan` and `free`.
        cost: FLOPs per token, for everything that depends on a budget.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    gamma: float = 1.0
    cost: Cost = Cost()  # noqa: RUF009 - frozen

    @property
    def a(self) -> float:
        """The exponent of N* in the budget at C = 6 N D: beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)

    @property
    def exponent(self) -> float:
        """The exponent of N* in the budget by `cost`; equal to `a` for s = 0."""
        return self.beta / (self.alpha + self.beta * (1 + self.cost.s))

    def n_term(self, n: Any) -> Any:
        return self.A * np.asarray(n, dtype=np.float64) ** -self.alpha

    def d_term(self, d: Any) -> Any:
        return self.B * np.asarray(d, dtype=np.float64) ** -self.beta

    def loss(self, n: Any, d: Any) -> Any:
        """L(N, D), of the shape that n and d broadcast to."""
        return self.E + (self.n_term(n) + self.d_term(d)) ** self.gamma

    def n_star(self, flops: Any) -> Any:
        """The N of least loss at C FLOPs, any shape. With C = k N^(1+s) D: alpha A / N^alpha = (1+s) beta B / D^beta
        (Hoffmann's equation 4 for s = 0)."""
        flops = np.asarray(flops, dtype=np.float64)
        k, s = self.cost.k, self.cost.s
        balance = math.log(self.alpha * self.A / ((1 + s) * self.beta * self.B))
        return np.exp((balance + self.beta * np.log(flops / k)) / (self.alpha + self.beta * (1 + s)))

    def d_star(self, flops: Any) -> Any:
        """The D of least loss at C FLOPs."""
        return self.tokens(self.n_star(flops), flops)

    def tokens(self, n: Any, flops: Any) -> Any:
        """The tokens that a model of N parameters can read with C FLOPs."""
        return np.asarray(flops, dtype=np.float64) / self.cost.flops(n, 1.0)

    def loss_star(self, flops: Any) -> Any:
        """The least loss at C FLOPs."""
        return self.loss(self.n_star(flops), self.d_star(flops))

    def at_ratio(self, flops: Any, ratio: float = 20.0) -> tuple[Any, Any]:
        """N and D at C FLOPs with D = ratio N, the rule of thumb of 20 tokens per parameter."""
        n = (np.asarray(flops, dtype=np.float64) / (self.cost.k * ratio)) ** (1 / (2 + self.cost.s))
        return n, ratio * n

    def flops_for(self, loss: float) -> float:
        """The least C with which the law reaches `loss`; infinity if none does. (L* - E is exactly a power of C.)"""
        if loss <= self.E:
            return math.inf
        here = float(self.loss_star(1.0)) - self.E
        with np.errstate(over="ignore"):
            return float(np.float64(here / (loss - self.E)) ** (1 / (self.gamma * self.slope)))

    @property
    def slope(self) -> float:
        """(L* - E)^(1/gamma) falls as C^-slope: alpha beta / (alpha + beta (1 + s))."""
        return self.alpha * self.exponent

    def with_cost(self, cost: Cost) -> "Law":
        return replace(self, cost=cost)


def kaplan(alpha_n: float, alpha_d: float, n_c: float, d_c: float) -> Law:
    """Kaplan's L(N, D) = [(Nc / N)^(alpha_N / alpha_D) + Dc / D]^alpha_D in this family."""
    return Law(0.0, n_c ** (alpha_n / alpha_d), d_c, alpha_n / alpha_d, 1.0, alpha_d)


@dataclass(frozen=True)
class Published:
    """A law from a paper.

    Attributes:
        source: the paper, and the table with its constants.
        counts: what its N counts, a name of counting.PARAMETERS.
        errors: standard errors of E, alpha and beta; None if not published.
        middle: FLOPs at the geometric middle of its runs.
    """

    law: Law
    source: str
    counts: str
    errors: tuple[float, float, float] | None = None
    middle: float = 1e20


PUBLISHED = {
    "besiroglu2024": Published(
        Law(1.8169, 482.006, 2085.434, 0.34781, 0.36585),
        "Besiroglu et al. 2024 (2404.10102), table 1: Chinchilla's data refitted",
        "total",
        errors=(0.0257, 0.0154, 0.0206),
    ),
    "hoffmann2022": Published(
        Law(1.6934, 406.40, 410.72, 0.33917, 0.28491),
        "Hoffmann et al. 2022 (2203.15556), unrounded, from the paper's TeX",
        "total",
    ),
    "hoffmann2022-printed": Published(
        Law(1.69, 406.4, 410.7, 0.34, 0.28), "Hoffmann et al. 2022 (2203.15556), equation 10 as printed", "total"
    ),
    "muennighoff2023": Published(
        Law(1.869, 521.0, 1488.0, 0.3527, 0.3527),
        "Muennighoff et al. 2023 (2305.16264), C4, one epoch",
        "total",
    ),
    "kaplan2020": Published(kaplan(0.076, 0.103, 6.4e13, 1.8e13), "Kaplan et al. 2020 (2001.08361), table 2", "blocks"),
}
