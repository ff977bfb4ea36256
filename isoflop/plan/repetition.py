"""What repeated data and surplus parameters are still worth (Muennighoff et al. 2023, equations 5 and 6)."""

import math

R_D = 15.39  # epochs after the first at which repeated data has lost 1 - 1/e of its worth
R_N = 5.31  # the same for parameters beyond what the unique tokens call for
EXPONENT = 0.3527  # their alpha = beta on C4


def effective(amount: float, unique: float, decay: float) -> float:
    """`amount` of which only `unique` is new, in units of new: unique + unique R (1 - exp(-repeats / R))."""
    if amount <= unique:
        return amount
    repeats = amount / unique - 1
    return unique + unique * decay * (1 - math.exp(-repeats / decay))


def effective_tokens(tokens: float, unique_tokens: float) -> float:
    """Tokens read, repeated ones discounted."""
    return effective(tokens, unique_tokens, R_D)


def reducible_loss(parameters: float, tokens: float, unique_tokens: float, tokens_per_parameter: float) -> float:
    """The part of the loss that N and D decide, up to a constant factor: N'^-a + (D' / ratio)^-a.

    With a = alpha = beta and no repetition its minimum at equal compute 6 N D lies at D / N = `tokens_per_parameter`;
    with repetition it moves towards what the data can still feed.
    """
    wanted = unique_tokens / tokens_per_parameter
    n = effective(parameters, wanted, R_N)
    d = effective(tokens, unique_tokens, R_D)
    return float(n**-EXPONENT + (d / tokens_per_parameter) ** -EXPONENT)
