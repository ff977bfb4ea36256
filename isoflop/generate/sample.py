"""From logits to tokens, as pure functions over a batch: repetition penalty, temperature, top-k, top-p, min-p, a draw.

The token of a row depends only on its own logits, rules and random number, never on other rows. Of a vocabulary of
fifty thousand a few dozen ids usually have nearly all the probability, so top-p first looks among the largest logits
and sorts everything only if it has to.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from isoflop.errors import UserError
from isoflop.generate.rules import Rules, Sampling

FIRST_LOOK = 256  # how many of the largest logits top-p sorts first


@torch.inference_mode()
def choose(logits_BV: Tensor, rules: Rules, drawn_B: Tensor, seen_BV: Tensor | None = None) -> Tensor:
    """One token per row, (B,) int64 on the logits' device.

    Args:
        rules: of B rows.
        drawn_B: a random number in (0, 1] per row, float64: the token is the first at which the cumulative sum of the
            kept weights reaches this share of their total.
        seen_BV: True for the ids in a row's prompt or output, to which a repetition penalty applies.
    """
    tokens_B = torch.empty(len(logits_BV), dtype=torch.int64, device=logits_BV.device)
    for rows_b, kept_bN, ids_bN in kept(logits_BV, rules, seen_BV):
        if kept_bN.shape[1] == 1 and ids_bN is not None:
            found_b = ids_bN[:, 0]
        else:
            columns_b1 = reached(kept_bN, drawn_B if rows_b is None else drawn_B[rows_b.cpu()]).unsqueeze(1)
            found_b = (columns_b1 if ids_bN is None else ids_bN.gather(1, columns_b1)).squeeze(1)
        if rows_b is None:
            return found_b
        tokens_B[rows_b] = found_b
    return tokens_B


def probabilities(logits_BV: Tensor, **how: float) -> Tensor:
    """The distribution to sample from, (B, V) in float32, given the fields of a `Sampling` for all rows."""
    rules = Rules.for_rows([Sampling(**{"temperature": 1.0, **how})] * len(logits_BV))  # type: ignore[arg-type]
    found_BV = torch.zeros_like(logits_BV, dtype=torch.float32)
    for rows_b, weights_bN, ids_bN in kept(logits_BV, rules):
        rows_bN = torch.arange(len(logits_BV)) if rows_b is None else rows_b
        ids_bN = torch.arange(logits_BV.shape[1]).expand_as(weights_bN) if ids_bN is None else ids_bN
        found_BV[rows_bN.unsqueeze(1), ids_bN] = weights_bN / weights_bN.sum(dim=-1, keepdim=True)
    return found_BV


Kept = tuple[Tensor | None, Tensor, Tensor | None]


def kept(logits_BV: Tensor, rules: Rules, seen_BV: Tensor | None = None) -> Iterator[Kept]:
    """The candidates of each row, for parts of the batch, each row in one part. Yields the rows of a part (None: all),
    their weights in (b, N), float32, not normalised, and the ids of the weights (None: 0 ... V - 1). Greedy rows have
    one candidate each."""
    logits_BV = logits_BV.float()
    if seen_BV is not None:
        logits_BV = penalised(logits_BV, seen_BV, rules.column("repetition_penalty", logits_BV.device))

    parts = rules.parts()
    for way, rows in parts:
        if len(parts) == 1:
            rows_b, logits_bV, rules_b = None, logits_BV, rules
        else:
            rows_b = torch.from_numpy(rows).to(logits_BV.device)
            logits_bV, rules_b = logits_BV[rows_b], rules.of(rows)
        if way == "greedy":
            ids_b1 = logits_bV.argmax(dim=-1, keepdim=True)
            yield rows_b, torch.ones_like(ids_b1, dtype=torch.float32), ids_b1
        elif way == "all":
            yield rows_b, kept_of_all(logits_bV, rules_b), None
        else:
            yield from kept_of_likeliest(logits_bV, rules_b, rows_b)


def penalised(logits_BV: Tensor, seen_BV: Tensor, penalty_B1: Tensor) -> Tensor:
    """Logits with the repetition penalty: of seen ids, positive ones divided by it and negative ones multiplied (Keskar
    et al. 2019, CTRL, 1909.05858, section 4.1, in the form of all implementations)."""
    less_BV = torch.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    return torch.where(seen_BV, less_BV, logits_BV)


def kept_of_all(logits_BV: Tensor, rules: Rules) -> Tensor:
    """The weights of all ids, for rows with neither top-k nor top-p, so that nothing has to be sorted."""
    p_BV = cooled(logits_BV, rules).softmax(dim=-1)
    if not rules.min_p.any():
        return p_BV
    return p_BV.masked_fill(p_BV < rules.column("min_p", p_BV.device) * p_BV.amax(dim=-1, keepdim=True), 0.0)


def kept_of_likeliest(logits_BV: Tensor, rules: Rules, rows_B: Tensor | None) -> Iterator[Kept]:
    """The candidates after top-k and then top-p, in descending order. Rows whose top-p reaches beyond the N largest
    logits are repeated with a larger N."""
    V = logits_BV.shape[1]
    logits_BV = cooled(logits_BV, rules)
    nucleus = rules.top_k == 0
    total_B1 = logits_BV.logsumexp(dim=-1, keepdim=True) if nucleus.any() else None
    N = min(V, max(FIRST_LOOK if nucleus.any() else 1, int(rules.top_k.max())))

    while True:
        logits_BN, ids_BN = descending(logits_BV, N)
        kept_BN, sums_B = within(logits_BN, total_B1, rules)
        if N == V or total_B1 is None:
            yield rows_B, kept_BN, ids_BN
            return

        short = (sums_B.cpu().numpy() < rules.top_p) & (rules.top_k == 0)
        if not short.any():
            yield rows_B, kept_BN, ids_BN
            return

        device = logits_BV.device
        done, again = (torch.from_numpy(np.flatnonzero(mask)).to(device) for mask in (~short, short))
        rows_B = torch.arange(len(logits_BV), device=device) if rows_B is None else rows_B
        if len(done):
            yield rows_B[done], kept_BN[done], ids_BN[done]
        rows_B, logits_BV, total_B1, rules = rows_B[again], logits_BV[again], total_B1[again], rules.of(short)
        N = min(16 * N, V)


def within(logits_BN: Tensor, total_B1: Tensor | None, rules: Rules) -> tuple[Tensor, Tensor]:
    """The weights of the N likeliest ids after top-k, top-p and min-p, and the total probability of the N.

    Args:
        logits_BN: descending.
        total_B1: logsumexp of all logits, for rows without top-k; None: there are none.
    """
    device = logits_BN.device
    if rules.top_k.any():
        top_k_B1 = rules.column("top_k", device)
        beyond_BN = (torch.arange(logits_BN.shape[1], device=device) >= top_k_B1) & (top_k_B1 > 0)
        logits_BN = logits_BN.masked_fill(beyond_BN, -torch.inf)
        inside_B1 = logits_BN.logsumexp(dim=-1, keepdim=True)
        total_B1 = inside_B1 if total_B1 is None else torch.where(top_k_B1 > 0, inside_B1, total_B1)
    assert total_B1 is not None
    p_BN = (logits_BN - total_B1).exp()

    kept_BN, sums_BN = p_BN, p_BN.cumsum(dim=-1)
    if (rules.top_p < 1.0).any():
        top_p_B1 = rules.column("top_p", device)
        kept_BN = kept_BN.masked_fill((sums_BN - p_BN >= top_p_B1) & (top_p_B1 < 1.0), 0.0)
    if rules.min_p.any():
        kept_BN = kept_BN.masked_fill(p_BN < rules.column("min_p", device) * p_BN[:, :1], 0.0)
    return kept_BN, sums_BN[:, -1]


def descending(logits_BV: Tensor, N: int) -> tuple[Tensor, Tensor]:
    """The N largest logits of each row and their ids, (B, N) each, descending; on a CPU the lower of equal ids first.

    Args:
        logits_BV: float32, none above 0.

    On a CPU a number and its id are sorted as one integer: non-negative floats are ordered like their bits, and numpy
    sorts integers with vector instructions, in a quarter of the time of torch's topk, which sorts pairs.
    """
    if logits_BV.device.type != "cpu":
        return logits_BV.topk(N, dim=-1)

    V = logits_BV.shape[1]
    keys_BV = ((0.0 - logits_BV).view(torch.int32).long() << 32).add_(torch.arange(V)).numpy()
    if N < V:
        keys_BV = np.partition(keys_BV, N - 1, axis=1)[:, :N]
    keys_BN = torch.from_numpy(np.sort(keys_BV, axis=1))
    return -(keys_BN >> 32).int().view(torch.float32), keys_BN & 0xFFFFFFFF


def cooled(logits_BV: Tensor, rules: Rules) -> Tensor:
    """Logits divided by the temperature; the largest is subtracted first, so that a small one cannot overflow."""
    return (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / rules.column("temperature", logits_BV.device)


def reached(weights_BN: Tensor, drawn_B: Tensor) -> Tensor:
    """The first column of each row, (B,) int64, at which the cumulative sum of weights reaches its share, in (0, 1], of
    the total; never a column of weight 0. Computed in float64, on the CPU for devices without it."""
    device = weights_BN.device
    exact_BN = (weights_BN if device.type != "mps" else weights_BN.cpu()).double()
    sums_BN = exact_BN.cumsum(dim=-1)
    wanted_B1 = drawn_B.to(sums_BN.device).unsqueeze(1) * sums_BN[:, -1:]
    return torch.searchsorted(sums_BN, wanted_B1).squeeze(1).to(device)


def check_arguments(
    prompt: str, tokens: int, temperature: float, top_k: int, top_p: float, seed: int, **further: float
) -> None:
    """`further`: the other fields of a `Sampling`.

    Raises:
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
    Sampling(temperature, top_k, top_p, **further).check()
