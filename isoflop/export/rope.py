"""Llama 3.1's scaling of rotary positions in GGUF: not its numbers, but a tensor of how many times slower each pair of
dimensions rotates. The numbers are recovered from such a tensor, and checked by computing the tensor from them."""

import math

import torch
from torch import Tensor

from isoflop.errors import UserError
from isoflop.export.anatomy import UNSCALED, Scaling
from isoflop.model.blocks.position import slowed

TENSOR = "rope_freqs.weight"
CLOSE = 1e-4  # relative tolerance for factors that were written in float32
USUAL = (8192, 4096, 2048, 32768, 16384, 131072)  # usual contexts of the first training


def factors(scaling: Scaling, head_dim: int, base: float) -> Tensor:
    """How many times slower each pair rotates, (head_dim / 2,) float32."""
    return slowed(head_dim, base, scaling.factor, scaling.low_freq, scaling.high_freq, scaling.original).float()


def scaling_of(found: Tensor, head_dim: int, base: float, stated: Scaling | None, origin: str) -> Scaling:
    """The scaling that gives these factors.

    Args:
        found: (head_dim / 2,), as in the file.
        stated: the numbers in the file itself, if isoflop wrote it.

    Raises:
        UserError: for factors that Llama 3.1's rule does not give.
    """
    if tuple(found.shape) != (head_dim // 2,):
        raise UserError(f"{origin}: {TENSOR!r} is {tuple(found.shape)}, and its heads have {head_dim // 2} pairs")
    tries = [stated] if stated else candidates(found.double(), head_dim, base)
    for scaling in tries:
        made = factors(scaling, head_dim, base)
        if torch.allclose(made.double(), found.double(), rtol=CLOSE, atol=0.0):
            return scaling if scaling.factor != 1.0 else UNSCALED
    raise UserError(
        f"{origin}: the factors in {TENSOR!r} are not those of Llama 3's rope scaling, the only one we have"
    )


def candidates(found: Tensor, head_dim: int, base: float) -> list[Scaling]:
    """Scalings that may give these factors: those with the usual numbers, and the one determined by two pairs in the
    transition, if there are two. Only ratios of `low_freq`, `high_freq` and `original` matter, so low_freq is 1."""
    factor = float(found.max())
    if not math.isfinite(factor) or not bool((found > 0).all()):
        return []
    factor = round(factor) if abs(factor - round(factor)) < CLOSE * factor else factor
    if factor == 1.0:
        return [UNSCALED]
    usual = [Scaling(float(factor), original=original) for original in USUAL]

    # in the transition s = (turns - low) / (high - low), and 1 / found = (1 - s) / factor + s
    shares = (1 / found - 1 / factor) / (1 - 1 / factor)
    turns = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim) / (2 * math.pi)  # per position
    between = (shares > 10 * CLOSE) & (shares < 1 - 10 * CLOSE)
    if int(between.sum()) < 2:
        return usual
    t, s = turns[between], shares[between]
    slope = float((s[0] - s[-1]) / (t[0] - t[-1]))
    offset = float(s[0]) - slope * float(t[0])
    if slope <= 0 or offset >= 0:
        return usual
    high = 1.0 - 1.0 / offset
    return [*usual, Scaling(float(factor), 1.0, high, max(1, round(slope * (high - 1.0))))]
