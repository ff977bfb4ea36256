"""From logits to tokens, as pure functions: temperature, then top-k, then top-p, then one draw."""

import torch
from torch import Tensor

from isoflop.errors import UserError


def probabilities(logits_BV: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """The distribution that is drawn from, (B, V) in float32.

    Args:
        temperature: logits are divided by it; 0 puts everything on the likeliest token.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the fewest likeliest tokens that together reach this probability (nucleus sampling, Holtzman et al.
            2019, 1904.09751); 1 keeps all.
    """
    logits_BV = logits_BV.float()
    if temperature == 0:
        return torch.zeros_like(logits_BV).scatter_(1, logits_BV.argmax(dim=-1, keepdim=True), 1.0)
    # The largest logit becomes 0 before the division, so that a very small temperature cannot overflow.
    logits_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / temperature
    if top_k:
        logits_BV = keep_top_k(logits_BV, top_k)
    if top_p < 1.0:
        logits_BV = keep_top_p(logits_BV, top_p)
    return logits_BV.softmax(dim=-1)


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """All but the k largest logits of each row at -inf; of equal ones exactly as many as fit."""
    values_BK, ids_BK = logits_BV.topk(min(k, logits_BV.shape[-1]), dim=-1)
    return torch.full_like(logits_BV, float("-inf")).scatter_(1, ids_BK, values_BK)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """All logits at -inf but the largest whose probabilities first sum to p or more; at least one stays."""
    sorted_BV, ids_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    p_BV = sorted_BV.softmax(dim=-1)
    before_BV = p_BV.cumsum(dim=-1) - p_BV  # the probability ahead of each token
    sorted_BV = sorted_BV.masked_fill(before_BV >= p, float("-inf"))
    return torch.empty_like(logits_BV).scatter_(1, ids_BV, sorted_BV)


def pick(probabilities_BV: Tensor, generator: torch.Generator) -> Tensor:
    """One token a row, (B,) int64, drawn with `generator` and nothing else."""
    return torch.multinomial(probabilities_BV, 1, generator=generator).squeeze(1)


def check_arguments(prompt: str, tokens: int, temperature: float, top_k: int, top_p: float, seed: int) -> None:
    """Raises:
    UserError: naming the option whose value makes no sense.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"--prompt {ascii(prompt)[:80]} is not valid UTF-8 at character {error.start}") from None
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed {seed} is not between 0 and 2^63 - 1")
    if tokens < 1:
        raise UserError(f"--tokens {tokens} is not positive; ask for at least 1")
    if not 0.0 <= temperature < float("inf"):
        raise UserError(f"--temperature {temperature:g} is not a number from 0 up; 0 takes the likeliest token")
    if top_k < 0:
        raise UserError(f"--top-k {top_k} is negative; 0 keeps all tokens")
    if not 0.0 < top_p <= 1.0:
        raise UserError(f"--top-p {top_p:g} is not in (0, 1]; 1 keeps all tokens")
