"""Compute-optimal tokens per parameter (Hoffmann et al. 2022), and the effective value of repeated data and excess
parameters (Muennighoff et al. 2023, equations 5 and 6)."""

import math

R_D = 15.39  # repetitions after which another one is worth 1/e of fresh data
WORN_OUT = 40.0  # epochs after which another one is worth less than a tenth of fresh data
R_N = 5.31  # the same for parameters in excess of the number that is optimal for the unique tokens
EXPONENT = 0.3527  # their alpha = beta on C4
TOKENS_PER_PARAMETER = 20.0  # compute-optimal on fresh text (Hoffmann et al. 2022)


def effective(amount: float, unique: float, decay: float) -> float:
    """The unique amount that `amount` is worth if only `unique` of it is new:
    unique + unique R (1 - exp(-repeats / R))."""
    if amount <= unique:
        return amount
    repeats = amount / unique - 1
    return unique + unique * decay * (1 - math.exp(-repeats / decay))


def reducible_loss(parameters: float, tokens: float, unique_tokens: float) -> float:
    """The part of the loss that depends on N and D, up to a constant factor: N'^-a + (D' / 20)^-a.

    With a = alpha = beta and no repetition, its minimum at equal compute 6 N D lies at 20 tokens per parameter; with
    repetition it moves towards fewer parameters.
    """
    n = effective(parameters, unique_tokens / TOKENS_PER_PARAMETER, R_N)
    d = effective(tokens, unique_tokens, R_D)
    return float(n**-EXPONENT + (d / TOKENS_PER_PARAMETER) ** -EXPONENT)


def excess(parameters: float, tokens: float, unique_tokens: float) -> float:
    """The run's reducible loss over that of the best run of equal compute on unique text; at least 1."""
    best = math.sqrt(parameters * tokens / TOKENS_PER_PARAMETER)
    return reducible_loss(parameters, tokens, unique_tokens) / (2 * best**-EXPONENT)
