"""Sampling: what is kept, what is drawn."""

import pytest
import torch

from isoflop.errors import UserError
from isoflop.generate.sample import FIRST_LOOK, check_arguments, pick, probabilities

LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]).log()


def kept(**arguments):
    return (probabilities(LOGITS, **arguments) > 0).tolist()


def test_plain_probabilities():
    torch.testing.assert_close(probabilities(LOGITS), LOGITS.exp())


def test_temperature_sharpens_and_flattens():
    torch.testing.assert_close(
        probabilities(LOGITS, temperature=0.5), LOGITS.exp() ** 2 / (LOGITS.exp() ** 2).sum(-1, True)
    )
    assert probabilities(LOGITS, temperature=1e6).std() < 1e-5


@pytest.mark.parametrize("temperature", [0.0, 1e-30])
def test_no_temperature_is_greedy(temperature):
    assert probabilities(LOGITS * 1e4, temperature=temperature).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]


def test_top_k_keeps_k_each_row():
    assert kept(top_k=2) == [[True, True, False, False], [False, False, True, True]]
    assert kept(top_k=99) == kept()
    assert (probabilities(torch.zeros(1, 5), top_k=2) > 0).sum() == 2


@pytest.mark.parametrize(("top_p", "count"), [(1e-9, 1), (0.45, 1), (0.55, 2), (0.79, 2), (0.9, 3), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_reach_p(top_p, count):
    assert kept(top_p=top_p) == [[i < count for i in range(4)], [i >= 4 - count for i in range(4)]]


def test_top_p_counts_what_top_k_left():
    assert kept(top_k=2, top_p=0.6) == [[True, False, False, False], [False, False, False, True]]


def test_what_is_kept_sums_to_one():
    torch.testing.assert_close(probabilities(LOGITS, 0.7, 3, 0.8).sum(-1), torch.ones(2))


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.1, 8.0])
def test_a_few_looked_at_are_what_sorting_everything_gives(top_p, spread):
    """Flat logits, of which thousands are kept, and steep ones, of which a few are."""
    logits = torch.randn(3, 20 * FIRST_LOOK, generator=torch.Generator().manual_seed(0)) * spread
    p, ids = logits.softmax(-1).sort(dim=-1, descending=True)
    wanted = torch.zeros_like(p).scatter_(1, ids, p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0))
    found = probabilities(logits, top_p=top_p)
    torch.testing.assert_close(found, wanted / wanted.sum(-1, keepdim=True), atol=1e-6, rtol=1e-4)
    assert ((wanted > 0).sum(-1) > FIRST_LOOK).tolist() == [spread < 1.0] * 3


def test_what_has_no_probability_is_never_picked():
    p = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).expand(1000, 5)
    assert set(pick(p, torch.Generator().manual_seed(0)).tolist()) == {1, 3}


def test_pick_draws_in_proportion_and_by_its_generator_alone():
    p = LOGITS[:1].exp().expand(4000, 4)
    state = torch.get_rng_state()
    drawn = pick(p, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn, pick(p, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(drawn.bincount(minlength=4) / 4000, p[0], atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"temperature": -1.0}, "--temperature -1"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"temperature": float("inf")}, "--temperature inf"),
        ({"top_p": 0.0}, "--top-p 0"),
        ({"top_p": 1.5}, "--top-p 1.5"),
        ({"top_k": -2}, "--top-k -2"),
        ({"tokens": 0}, "--tokens 0"),
        ({"seed": -1}, "--seed -1"),
        ({"prompt": "\ud800"}, "--prompt"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, named):
    with pytest.raises(UserError, match=named):
        usual = {"prompt": "", "tokens": 5, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0}
        check_arguments(**{**usual, **arguments})
