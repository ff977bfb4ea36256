"""From logits to tokens, as pure functions over a batch: repetition penalty, temperature, top-k, top-p, min-p, a draw.

The token of a row depends only on its own logits, rules and random number, never on other rows. Of a vocabulary of
fifty thousand a few dozen ids usually have nearly all the probability, so top-p first looks among the largest logits
and sorts everything only if it has to. On a CPU with compiled kernels one of them does all this without sorting.
"""

from collections.abc import Iterator
from copy import copy
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoflop.errors import UserError
from isoflop.generate.rules import Rules, Sampling
from isoflop.kernels import decoding
from isoflop.kernels.compiled import available

FIRST_LOOK = 256  # how many of the largest logits top-p sorts first
SORTED_WHOLE = 4096  # a vocabulary of at most so many is sorted whole, which takes little longer


@torch.inference_mode()
def choose(logits_BV: Tensor, rules: Rules, drawn_B: Tensor, seen_BV: Tensor | None = None) -> Tensor:
    """One token per row, (B,) int64 on the logits' device.

    Args:
        rules: of B rows.
        drawn_B: a random number in (0, 1] per row, float64: the token is the first at which the cumulative sum of the
            kept weights reaches this share of their total.
        seen_BV: True for the ids in a row's prompt or output, to which a repetition penalty applies.
    """
    if chosen_by_kernel(logits_BV, rules):
        if seen_BV is not None:
            logits_BV = penalised(logits_BV, seen_BV, rules.column("repetition_penalty", logits_BV.device))
        columns = (rules.column(name, logits_BV.device) for name in ("temperature", "top_k", "top_p", "min_p"))
        return decoding.choose(logits_BV.contiguous(), drawn_B, *columns)

    tokens_B = torch.empty(len(logits_BV), dtype=torch.int64, device=logits_BV.device)
    for rows_b, kept_bN, ids in kept(logits_BV, rules, seen_BV):
        if isinstance(ids, Tensor):
            chosen_b = ids[:, 0]
        else:
            chosen_b = reached(kept_bN, drawn_B if rows_b is None else drawn_B[rows_b.cpu()])
            chosen_b = chosen_b if ids is None else ids.at(chosen_b)
        if rows_b is None:
            return chosen_b
        tokens_B[rows_b] = chosen_b
    return tokens_B


def chosen_by_kernel(logits_BV: Tensor, rules: Rules) -> bool:
    """Whether the compiled kernel chooses the tokens. Greedy rows get the same token either way; where there are only
    such, numpy is as fast."""
    draws = any(way != "greedy" for way, _ in rules.parts())
    return draws and logits_BV.device.type == "cpu" and logits_BV.dtype == torch.float32 and available()


def probabilities(logits_BV: Tensor, **how: float) -> Tensor:
    """The distribution to sample from, (B, V) in float32, given the fields of a `Sampling` for all rows."""
    rules = Rules.for_rows([Sampling(**{"temperature": 1.0, **how})] * len(logits_BV))  # type: ignore[arg-type]
    p_BV = torch.zeros_like(logits_BV, dtype=torch.float32)
    for rows_b, weights_bN, ids in kept(logits_BV, rules):
        rows_bN = torch.arange(len(logits_BV)) if rows_b is None else rows_b
        if ids is None:
            ids_bN = torch.arange(logits_BV.shape[1]).expand_as(weights_bN)
        else:
            ids_bN = ids if isinstance(ids, Tensor) else ids.all()[:, : weights_bN.shape[1]]
        p_BV[rows_bN.unsqueeze(1), ids_bN] = weights_bN / weights_bN.sum(dim=-1, keepdim=True)
    return p_BV


class Largest:
    """The N largest logits of each row in descending order, and their ids, of equal logits the lower id first (on a
    CPU).

    On a CPU only the numbers are sorted, which numpy does with vector instructions, and the one id per row that is
    wanted is looked up by its logit; torch's topk sorts pairs.

    Attributes:
        values_BN: the logits.
    """

    def __init__(self, logits_BV: Tensor, N: int) -> None:
        self.logits_BV = logits_BV
        self.ids_BN: Tensor | None = None
        if logits_BV.device.type != "cpu":
            self.values_BN, self.ids_BN = logits_BV.topk(N, dim=-1)
            return
        negative_BV = logits_BV.detach().neg().numpy()
        if logits_BV.shape[1] > N:
            negative_BV = np.partition(negative_BV, N - 1, axis=1)[:, :N]
        self.values_BN = torch.from_numpy(np.sort(negative_BV, axis=1)).neg_()

    def of(self, rows_b: Tensor) -> "Largest":
        """Those of some rows."""
        part = copy(self)
        part.logits_BV, part.values_BN = self.logits_BV[rows_b], self.values_BN[rows_b]
        part.ids_BN = None if self.ids_BN is None else self.ids_BN[rows_b]
        return part

    def at(self, columns_B: Tensor) -> Tensor:
        """The ids (B,) in these columns."""
        columns_B1 = columns_B.unsqueeze(1)
        if self.ids_BN is not None:
            return self.ids_BN.gather(1, columns_B1).squeeze(1)
        value_B1 = self.values_BN.gather(1, columns_B1)
        equal_BV = (self.logits_BV == value_B1).numpy()
        ids_B = equal_BV.argmax(axis=1)

        # where several ids have this logit
        before_B = columns_B - (self.values_BN > value_B1).sum(dim=1)
        rows = before_B.numpy().nonzero()[0]
        if len(rows):
            ids_B[rows] = (equal_BV[rows].cumsum(axis=1) > before_B.numpy()[rows, None]).argmax(axis=1)
        return torch.from_numpy(ids_B)

    def all(self) -> Tensor:
        """The ids (B, N) of all columns."""
        if self.ids_BN is not None:
            return self.ids_BN
        order_BV = self.logits_BV.sort(dim=-1, descending=True, stable=True).indices
        return order_BV[:, : self.values_BN.shape[1]]  # at least as many as there are weights


Kept = tuple[Tensor | None, Tensor, Tensor | Largest | None]


def kept(logits_BV: Tensor, rules: Rules, seen_BV: Tensor | None = None) -> Iterator[Kept]:
    """The candidates of each row, for parts of the batch, each row in one part. Yields the rows of a part (None: all),
    their weights in (b, N), float32, not normalised, and the ids of the weights (None: 0 ... V - 1). Greedy rows have
    one candidate each, whose ids are a tensor (b, 1)."""
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
            ids_b1 = likeliest(logits_bV).unsqueeze(1)
            yield rows_b, torch.ones_like(ids_b1, dtype=torch.float32), ids_b1
        elif way == "all":
            yield rows_b, kept_of_all(logits_bV, rules_b), None
        else:
            yield from kept_of_likeliest(logits_bV, rules_b, rows_b)


def likeliest(logits_BV: Tensor) -> Tensor:
    """The id of the largest logit of each row, (B,), the first of equal ones. numpy's argmax uses vector instructions,
    torch's on a CPU does not."""
    if logits_BV.device.type != "cpu":
        return logits_BV.argmax(dim=-1)
    return torch.from_numpy(logits_BV.detach().numpy().argmax(axis=1))


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
    total_B1 = logits_BV.exp().sum(dim=-1, keepdim=True).log_() if nucleus.any() else None  # the largest is 0
    N = min(V, max(FIRST_LOOK if nucleus.any() else 1, int(rules.top_k.max())))
    if nucleus.any() and V <= SORTED_WHOLE:
        N = V

    while True:
        largest = Largest(logits_BV, N)
        kept_BN, sums_B = within(largest.values_BN, total_B1, rules)
        if N == V or total_B1 is None:
            yield rows_B, kept_BN, largest
            return

        short = (sums_B.cpu().numpy() < rules.top_p) & (rules.top_k == 0)
        if not short.any():
            yield rows_B, kept_BN, largest
            return

        device = logits_BV.device
        done, again = (torch.from_numpy(np.flatnonzero(mask)).to(device) for mask in (~short, short))
        rows_B = torch.arange(len(logits_BV), device=device) if rows_B is None else rows_B
        if len(done):
            yield rows_B[done], kept_BN[done], largest.of(done)
        rows_B, logits_BV, total_B1, rules = rows_B[again], logits_BV[again], total_B1[again], rules.of(short)
        N = min(16 * N, V)


def within(logits_BN: Tensor, total_B1: Tensor | None, rules: Rules) -> tuple[Tensor, Tensor]:
    """The weights of the N likeliest ids after top-k, top-p and min-p, up to the last column in which any row keeps an
    id, and the total probability of the N.

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
    p_BN = (logits_BN - total_B1).exp_()

    kept_BN, sums_BN = p_BN, p_BN.cumsum(dim=-1)
    if (rules.top_p < 1.0).any():
        top_p_B1 = rules.column("top_p", device)
        outside_BN = sums_BN - p_BN >= top_p_B1
        if (rules.top_p == 1.0).any():
            outside_BN &= top_p_B1 < 1.0
        kept_BN = kept_BN.masked_fill(outside_BN, 0.0)
    if rules.min_p.any():
        kept_BN = kept_BN.masked_fill(p_BN < rules.column("min_p", device) * p_BN[:, :1], 0.0)
    columns = int(kept_BN.any(dim=0).sum())  # p descends, so that each row keeps its first ids
    return kept_BN[:, : max(1, columns)], sums_BN[:, -1]


def cooled(logits_BV: Tensor, rules: Rules) -> Tensor:
    """Logits divided by the temperature; the largest is subtracted first, so that a small one cannot overflow."""
    return (logits_BV - logits_BV.amax(dim=-1, keepdim=True)).div_(rules.column("temperature", logits_BV.device))


def reached(weights_BN: Tensor, drawn_B: Tensor) -> Tensor:
    """The first column of each row, (B,) int64, at which the cumulative sum of weights reaches its share, in (0, 1], of
    the total; never a column of weight 0. Computed in float64, on the CPU for devices without it."""
    device = weights_BN.device
    exact_BN = (weights_BN if device.type != "mps" else weights_BN.cpu()).double()
    sums_BN = exact_BN.cumsum(dim=-1)
    wanted_B1 = drawn_B.to(sums_BN.device).unsqueeze(1) * sums_BN[:, -1:]
    return torch.searchsorted(sums_BN, wanted_B1).squeeze(1).to(device)


def check_arguments(
    prompt: Any, tokens: Any, temperature: float, top_k: int, top_p: float, seed: Any, **further: float
) -> None:
    """`further`: the other fields of a `Sampling`.

    Raises:
        UserError: naming the option whose value makes no sense.
    """
    if not isinstance(prompt, str):
        raise UserError(f"the prompt {prompt!r} is not a string; decode bytes first")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"--prompt {ascii(prompt)[:80]} is not valid UTF-8 at character {error.start}") from None
    check_seed(seed)
    if not isinstance(tokens, Integral) or int(tokens) < 1:
        raise UserError(f"--tokens {tokens} is not positive; ask for at least 1")
    Sampling(temperature, top_k, top_p, **further).check()


def check_seed(seed: Any, rows: int = 1) -> None:
    """Raise UserError for a seed out of range. Each of `rows` texts has the seed after that of the one before."""
    if not isinstance(seed, Integral) or not 0 <= int(seed) < 2**63:
        raise UserError(f"--seed {seed} is not a whole number between 0 and 2^63 - 1")
    if int(seed) + rows > 2**63:
        raise UserError(f"--seed {seed} and the {rows - 1} after it go beyond 2^63 - 1; take a smaller one")
