"""From logits to tokens, as pure functions: temperature, then top-k, then top-p, then one draw.

Of a vocabulary of fifty thousand a few dozen ids usually hold the probability that is drawn from, so these are looked
for among the largest logits before everything is sorted.
"""

import torch
from torch import Tensor

from isoflop.errors import UserError

FIRST_LOOK = 256  # of the largest logits, among which top-p looks first


def probabilities(logits_BV: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """The distribution that is drawn from, (B, V) in float32; see `kept`."""
    p_BN, ids_BN = kept(logits_BV, temperature, top_k, top_p)
    return torch.zeros_like(logits_BV, dtype=torch.float32).scatter_(1, ids_BN, p_BN)


def kept(logits_BV: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """The distribution that is drawn from: probabilities p_BN in float32 and whose they are, ids_BN; what is not among
    the N has none.

    Args:
        temperature: logits are divided by it; 0 puts everything on the likeliest token.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the fewest likeliest tokens that together reach this probability (nucleus sampling, Holtzman et al.
            2019, 1904.09751); 1 keeps all. It counts what top_k left.
    """
    logits_BV = logits_BV.float()
    if temperature == 0:
        ids_B1 = logits_BV.argmax(dim=-1, keepdim=True)
        return torch.ones_like(ids_B1, dtype=torch.float32), ids_B1
    V = logits_BV.shape[-1]
    # The largest logit becomes 0 before the division, so that a very small temperature cannot overflow.
    logits_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / temperature
    if top_k:
        logits_BN, ids_BN = logits_BV.topk(min(top_k, V), dim=-1)
        return keep_top_p(logits_BN.softmax(dim=-1), top_p), ids_BN
    if top_p == 1.0:
        return logits_BV.softmax(dim=-1), torch.arange(V, device=logits_BV.device).expand_as(logits_BV)
    all_B1 = logits_BV.logsumexp(dim=-1, keepdim=True)
    N = min(FIRST_LOOK, V)
    while True:
        logits_BN, ids_BN = logits_BV.topk(N, dim=-1)
        p_BN = (logits_BN - all_B1).exp()
        if N == V or bool((p_BN.sum(dim=-1) >= top_p).all()):
            return keep_top_p(p_BN, top_p), ids_BN
        N = min(16 * N, V)


def keep_top_p(p_BN: Tensor, top_p: float) -> Tensor:
    """Descending probabilities with 0 for all but the largest that first sum to `top_p` or more (at least one stays),
    scaled so that they sum to 1."""
    if top_p == 1.0:
        return p_BN
    before_BN = p_BN.cumsum(dim=-1) - p_BN  # the probability ahead of each token
    p_BN = p_BN.masked_fill(before_BN >= top_p, 0.0)
    return p_BN / p_BN.sum(dim=-1, keepdim=True)


def pick(p_BN: Tensor, generator: torch.Generator) -> Tensor:
    """One column a row, (B,) int64, drawn with `generator` and nothing else: the first at which the running sum of
    probabilities reaches a number in (0, 1] of the whole. One that has no probability adds nothing and is never it."""
    if p_BN.shape[1] == 1:
        return torch.zeros(len(p_BN), dtype=torch.int64, device=p_BN.device)
    sums_BN = p_BN.double().cumsum(dim=-1)
    drawn_B1 = 1.0 - torch.rand(len(p_BN), 1, generator=generator, dtype=torch.float64)
    return torch.searchsorted(sums_BN, drawn_B1 * sums_BN[:, -1:]).squeeze(1)


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
