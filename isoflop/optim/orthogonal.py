"""ITERATIONS: the values of `optim.iteration`, and the orthogonalisation of matrices by one of them.

A matrix U S V^T is replaced by U p(S) V^T, p a composition of odd quintics a x + b x^3 + c x^5 that is near 1 on most
of (0, 1]. One round computes one quintic, by three matrix products: with G = X X^T,

    X <- a X + (b G + c G G) X
"""

from dataclasses import dataclass

import torch
from torch import Tensor

Quintic = tuple[float, float, float]

EPSILON = 1e-7  # least norm by which a matrix is divided


@dataclass(frozen=True)
class Iteration:
    """The quintics of an iteration.

    Attributes:
        words: for the help.
        quintics: (a, b, c) of each round; further rounds repeat the last one.
        slack: the factor by which rounding may raise a singular value above the interval of a quintic: the matrix and
            the argument of every quintic but the last are divided by it.
    """

    words: str
    quintics: tuple[Quintic, ...]
    slack: float = 1.0

    def round(self, number: int) -> Quintic:
        """(a, b, c) of a round, counted from 0."""
        last = len(self.quintics) - 1
        a, b, c = self.quintics[min(number, last)]
        slack = self.slack if number < last else 1.0
        return a / slack, b / slack**3, c / slack**5


QUINTIC = Iteration(
    # Jordan et al. 2024: the quintic with the steepest slope at zero that still maps [0, 1] near 1 in five rounds.
    # Singular values end between about 0.7 and 1.2, which trains as well as exactly 1.
    "Jordan's one quintic, to singular values of 0.7 to 1.2",
    ((3.4445, -4.7750, 2.0315),),
)
POLAR_EXPRESS = Iteration(
    # Amsel et al. 2025 (2505.16932), algorithm 1: each quintic is the best approximation of 1, in the maximum norm, on
    # the interval to which those before it map [0.001, 1]. A test computes them. They converge to 15/8, -5/4, 3/8.
    "Polar Express, a quintic per round, each the best for the interval left by those before it",
    (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
        (1.875, -1.25, 0.375),
    ),
    slack=1.01,
)

ITERATIONS: dict[str, Iteration] = {"quintic": QUINTIC, "polar_express": POLAR_EXPRESS}


def orthogonalize(
    matrices: Tensor, dtype: torch.dtype = torch.bfloat16, iteration: Iteration = QUINTIC, rounds: int = 5
) -> Tensor:
    """U V^T of each matrix U S V^T, approximately (see the iteration). Zero stays zero.

    Args:
        matrices: (..., R, C).
        dtype: of the products and the result.
        rounds: number of quintics that are applied.
    """
    rows, columns = matrices.shape[-2:]

    x = matrices.reshape(-1, rows, columns).to(dtype)
    tall = rows > columns
    if tall:  # the Gram matrix is then the smaller of the two
        x = x.mT
    norm = x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPSILON)  # by Frobenius: singular values are at most 1
    x = x / (norm if iteration.slack == 1.0 else norm * iteration.slack)

    for number in range(rounds):
        a, b, c = iteration.round(number)
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)

    if tall:
        x = x.mT
    return x.reshape(matrices.shape)
