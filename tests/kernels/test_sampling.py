"""The kernel that chooses tokens does what torch's operations do, row by row."""

import numpy as np
import pytest
import torch

from isoflop.generate.rules import Rules, Sampling
from isoflop.generate.sample import choose, chosen_by_kernel

pytestmark = pytest.mark.usefixtures("used")

RULES = [
    Sampling(0.8),
    Sampling(0.8, top_p=0.95),
    Sampling(1.5, top_k=5),
    Sampling(0.7, top_k=20, top_p=0.45),
    Sampling(1.0, top_k=9999, top_p=0.999),
    Sampling(0.0),
    Sampling(0.9, min_p=0.05),
    Sampling(0.9, top_p=0.9, min_p=0.1),
    Sampling(0.8, top_k=3, min_p=0.3),
]


def a_batch(vocabulary, spread, each=30):
    """Logits, the sampling of each row, and random numbers. The logits are rounded, so that some are equal."""
    rows = each * len(RULES)
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(rows, vocabulary, generator=generator) * spread).round(decimals=2)
    logits[1::7, 0] = -torch.inf
    drawn = 1.0 - torch.rand(rows, dtype=torch.float64, generator=generator)
    return logits, [RULES[i % len(RULES)] for i in range(rows)], drawn


@pytest.mark.parametrize("vocabulary", [2, 63, 700, 5000])
@pytest.mark.parametrize("spread", [0.01, 3.0, 60.0])
def test_tokens_are_those_of_torchs_operations(vocabulary, spread, monkeypatch):
    """Up to rounding, which now and then moves a cumulative sum across a limit or a random number."""
    logits, how, drawn = a_batch(vocabulary, spread)
    assert chosen_by_kernel(logits, Rules.for_rows(how))
    ours = choose(logits, Rules.for_rows(how), drawn)

    monkeypatch.setenv("ISOFLOP_KERNELS", "0")
    theirs = choose(logits, Rules.for_rows(how), drawn)
    assert (ours != theirs).float().mean() <= 0.02


def test_a_row_does_not_depend_on_its_neighbours():
    logits, how, drawn = a_batch(700, 3.0, each=4)
    together = choose(logits, Rules.for_rows(how), drawn)
    alone = [choose(logits[i : i + 1], Rules.for_rows([how[i]]), drawn[i : i + 1]).item() for i in range(len(how))]
    assert together.tolist() == alone


def test_equal_logits_are_taken_in_the_order_of_ids():
    logits, shares = torch.zeros(8, 1000), (np.arange(8) + 0.5) / 8
    chosen = choose(logits, Rules.for_rows([Sampling(1.0, top_k=400)] * 8), torch.from_numpy(shares))
    assert chosen.tolist() == [int(np.ceil(400 * share)) - 1 for share in shares]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_numbers_still_give_an_id(value):
    logits = torch.zeros(len(RULES), 50)
    logits[:, 3] = value
    for rows in (logits, torch.full_like(logits, value)):
        tokens = choose(rows, Rules.for_rows(RULES), torch.full((len(RULES),), 0.7, dtype=torch.float64))
        assert ((tokens >= 0) & (tokens < 50)).all()


def test_draws_have_the_probabilities_of_the_weights():
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0, 0.0]).expand(20_000, 5).contiguous()
    shares = torch.from_numpy((np.arange(20_000) + 0.5) / 20_000)
    tokens = choose(logits, Rules.for_rows([Sampling(1.0, top_p=0.9)] * 20_000), shares)
    weights = torch.tensor([2.0, 1.0, 0.5, -torch.inf, 0.0]).softmax(dim=0)  # the fewest that reach 0.9
    assert torch.allclose(torch.bincount(tokens, minlength=5) / 20_000, weights, atol=1e-3)


def test_what_the_kernel_does_not_choose():
    logits = torch.randn(2, 9)
    assert not chosen_by_kernel(logits, Rules.for_rows([Sampling(0.0)] * 2))
    assert not chosen_by_kernel(logits.double(), Rules.for_rows([Sampling(0.8)] * 2))
