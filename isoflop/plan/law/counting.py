"""Conventions of counting N and C. A law is only valid for points and users that share one convention.

The convention alone moves the exponent of N* from 0.37 to 0.70 on one set of runs (nanochat's), and Kaplan's 0.73 and
Chinchilla's 0.50 differ mostly by convention (Porian et al. 2024, 2406.19146). The names are those of model/count.py.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from isoflop.config import nearest
from isoflop.errors import UserError

Array = npt.NDArray[np.float64]

PARAMETERS = {
    "total": "all parameters, embeddings too (Chinchilla's fits, Epoch)",
    "matmul": "blocks and head, each weight that multiplies once (Porian's standard, nanochat, isoflop's N)",
    "blocks": "blocks alone, neither embedding nor head (Kaplan)",
    "unstated": "as the table has it",
}
COST_CONSTANT = 0.01  # spread of log(C / N D) up to which FLOPs per token count as a constant times N


@dataclass(frozen=True)
class Counts:
    """The convention of a set of points.

    Attributes:
        parameters: the convention of N, a name of PARAMETERS.
        flops: the source of C: "6nd", or "table" for a separate column.
    """

    parameters: str = "unstated"
    flops: str = "6nd"

    def __post_init__(self) -> None:
        if self.parameters not in PARAMETERS:
            known = ", ".join(PARAMETERS)
            raise UserError(f"--counts {self.parameters!r} is not one of {known}{nearest(self.parameters, PARAMETERS)}")
        if self.flops not in ("6nd", "table"):
            raise UserError(f"flops are counted as {self.flops!r}, which is neither 6nd nor table")

    def words(self) -> str:
        c = "C = 6 N D" if self.flops == "6nd" else "C: the table's own"
        return f"N: {PARAMETERS[self.parameters]}; {c}"


def convert(n: Any, source: str, target: str, *, embedding: Any, tied: bool) -> Array:
    """Parameter counts in another convention.

    Args:
        n: counts by `source`, any shape.
        source, target: names of PARAMETERS except "unstated".
        embedding: V d of each model, vocabulary times width, of a shape that broadcasts with n's.
        tied: whether embedding and head are one matrix, which "total" counts once.

    Raises:
        UserError: for a convention that is unknown or unstated, and for counts smaller than their embeddings.
    """
    n, embedding = np.asarray(n, dtype=np.float64), np.asarray(embedding, dtype=np.float64)
    extra = {"blocks": 0.0, "matmul": 1.0, "total": 1.0 if tied else 2.0}  # V d that count besides the blocks
    for name in (source, target):
        if name not in extra:
            raise UserError(f"no conversion from or to {name!r}: name one of {', '.join(extra)}")
    blocks = n - extra[source] * embedding
    if (blocks <= 0).any():
        raise UserError(f"a model has fewer parameters than its embeddings: is its N counted as {source!r}?")
    return np.asarray(blocks + extra[target] * embedding)


@dataclass(frozen=True)
class Cost:
    """Training FLOPs per token as a function of N: C = k N^(1 + s) D. The usual 6 N D is k = 6, s = 0.

    A table whose C counts what its N does not (the head, attention) has s < 0: small models cost more than 6 N.
    """

    k: float = 6.0
    s: float = 0.0
    spread: float = 0.0  # standard deviation of log C around the power law

    def flops(self, n: Any, d: Any) -> Any:
        return self.k * n ** (1 + self.s) * d

    def words(self) -> str:
        if self.s == 0:
            return f"C = {self.k:.4g} N D"
        return f"C = {self.k:.4g} N^{1 + self.s:.3f} D (fitted to the table's FLOPs, {self.spread:.1%} left)"


def cost_of(n: Array, d: Array, flops: Array) -> Cost:
    """The cost that a table's own FLOPs imply, all of shape (points,)."""
    ratio = np.log(flops / (n * d))
    if np.ptp(ratio) <= 2 * COST_CONSTANT:
        k = float(np.exp(np.median(ratio)))
        return Cost(6.0 if abs(k / 6 - 1) < COST_CONSTANT else k, 0.0, float(np.std(ratio)))
    x = np.log(n)
    s, offset = np.polyfit(x, ratio, 1)
    return Cost(float(np.exp(offset)), float(s), float(np.std(ratio - s * x - offset)))
