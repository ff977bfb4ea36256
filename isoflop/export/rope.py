"""Llama 3.1's scaling of rotary positions in GGUF, which stores a factor per pair of dimensions instead of the four
numbers of the rule: how many times slower the pair rotates. The numbers are recovered from the factors, and checked by
computing the factors from them."""

import math

import torch
from torch import Tensor

from isoflop.errors import UserError
from isoflop.export.anatomy import UNSCALED, Scaling
from isoflop.model.blocks.position import slowed

TENSOR = "rope_freqs.weight"
CLOSE = 1e-4  # relative tolerance for factors in float32
USUAL = (8192, 4096, 2048, 32768, 16384, 131072)  # usual contexts of the original training


def factors(scaling: Scaling, head_dim: int, base: float) -> Tensor:
    """The factor by which each pair rotates slower, (head_dim / 2,) float32."""
    return slowed(head_dim, base, scaling.factor, scaling.low_freq, scaling.high_freq, scaling.original).float()


def scaling_of(factors_F: Tensor, head_dim: int, base: float, stated: Scaling | None, origin: str) -> Scaling:
    """The scaling that gives these factors.

    Args:
        factors_F: (head_dim / 2,), from the file.
        stated: the numbers in the file itself, if isoflop wrote it.

    Raises:
        UserError: for factors that Llama 3.1's rule does not give.
    """
    if tuple(factors_F.shape) != (head_dim // 2,):
        raise UserError(f"{origin}: {TENSOR!r} is {tuple(factors_F.shape)}, and its heads have {head_dim // 2} pairs")
    tries = [stated] if stated else candidates(factors_F.double(), head_dim, base)
    for scaling in tries:
        computed = factors(scaling, head_dim, base)
        if torch.allclose(computed.double(), factors_F.double(), rtol=CLOSE, atol=0.0):
            return scaling if scaling.factor != 1.0 else UNSCALED
    raise UserError(
        f"{origin}: the factors in {TENSOR!r} are not those of Llama 3's rope scaling, the only one we have"
    )


def candidates(factors_F: Tensor, head_dim: int, base: float) -> list[Scaling]:
    """Scalings that may give these factors: those with the usual numbers, and the one determined by two pairs in the
    transition, if there are two. Only ratios of `low_freq`, `high_freq` and `original` matter, so low_freq is 1."""
    factor = float(factors_F.max())
    if not math.isfinite(factor) or not bool((factors_F > 0).all()):
        return []
    factor = round(factor) if abs(factor - round(factor)) < CLOSE * factor else factor
    if factor == 1.0:
        return [UNSCALED]
    usual = [Scaling(float(factor), original=original) for original in USUAL]

    # In the transition s = (turns - low) / (high - low), and 1 / (a pair's factor) = (1 - s) / factor + s.
    shares = (1 / factors_F - 1 / factor) / (1 - 1 / factor)
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
