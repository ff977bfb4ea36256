"""Made-up tables of runs whose law is known."""

import numpy as np

from isoflop.plan.law.forms import Law
from isoflop.plan.law.points import Points, make_points


def random_law(rng: np.random.Generator) -> Law:
    """A law about as published ones are: at 1e8 parameters and 2e9 tokens each term is 0.1 to 0.5."""
    alpha, beta = rng.uniform(0.25, 0.45, size=2)
    terms = rng.uniform(0.1, 0.5, size=2)
    return Law(rng.uniform(1.5, 2.2), terms[0] * 1e8**alpha, terms[1] * 2e9**beta, alpha, beta)


def isoflop_table(law: Law, rng: np.random.Generator, budgets: int = 6, sizes: int = 7, noise: float = 0.005) -> Points:
    """Runs at `budgets` budgets from 1e18 to 1e21 FLOPs and `sizes` sizes each, an eighth to eight times the best."""
    flops = np.geomspace(1e18, 1e21, budgets)[:, None]
    n = law.n_star(flops) * np.geomspace(1 / 8, 8, sizes)
    d = flops / 6 / n
    return make_points(n, d, law.loss(n, d) * np.exp(noise * rng.standard_normal(n.shape)))


def same_sizes_table(law: Law, rng: np.random.Generator, noise: float = 0.005, shared: float = 0.0) -> Points:
    """Eight sizes from 1e7 to 1e9, six lengths each from 5 to 160 tokens per parameter; `shared` noise per size."""
    n = np.repeat(np.geomspace(1e7, 1e9, 8), 6).reshape(8, 6)
    d = n * np.geomspace(5, 160, 6)
    drawn = noise * rng.standard_normal(n.shape) + shared * rng.standard_normal((8, 1))
    return make_points(n, d, law.loss(n, d) * np.exp(drawn))
