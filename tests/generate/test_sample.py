"""Sampling: the kept candidates and the drawn tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isoflop.errors import UserError
from isoflop.generate.rules import Draws, Rules, Sampling
from isoflop.generate.sample import FIRST_LOOK, check_arguments, choose, probabilities, reached


def pick(p, generator):
    return reached(p, 1.0 - torch.rand(len(p), generator=generator, dtype=torch.float64))


LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]).log()


def kept(**arguments):
    return (probabilities(LOGITS, **arguments) > 0).tolist()


def test_probabilities_are_the_softmax():
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
    torch.testing.assert_close(probabilities(LOGITS, temperature=0.7, top_k=3, top_p=0.8).sum(-1), torch.ones(2))


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.1, 8.0])
def test_partial_sorting_equals_full_sorting(top_p, spread):
    """Flat logits, of which thousands are kept, and steep ones, of which a few are."""
    logits = torch.randn(3, 20 * FIRST_LOOK, generator=torch.Generator().manual_seed(0)) * spread
    p, ids = logits.softmax(-1).sort(dim=-1, descending=True)
    wanted = torch.zeros_like(p).scatter_(1, ids, p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0))
    found = probabilities(logits, top_p=top_p)
    torch.testing.assert_close(found, wanted / wanted.sum(-1, keepdim=True), atol=1e-6, rtol=1e-4)
    assert ((wanted > 0).sum(-1) > FIRST_LOOK).tolist() == [spread < 1.0] * 3


def test_tokens_of_probability_zero_are_never_picked():
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
        ({"prompt": None}, "the prompt None is not a string"),
        ({"tokens": 2.5}, "--tokens 2.5 is not positive"),
        ({"seed": 1.5}, "--seed 1.5 is not a whole number"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, named):
    with pytest.raises(UserError, match=named):
        usual = {"prompt": "", "tokens": 5, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0}
        check_arguments(**{**usual, **arguments})


def transformers_way(logits, temperature, top_k, top_p, min_p):
    """In float64, by sorting everything."""
    p = (logits.double() / temperature).softmax(-1)
    order = p.argsort(dim=-1, descending=True, stable=True)
    p = p.gather(1, order)
    if top_k:
        p[:, top_k:] = 0
        p = p / p.sum(-1, keepdim=True)
    if top_p < 1:
        p[p.cumsum(-1) - p >= top_p] = 0
    p[p < min_p * p[:, :1]] = 0
    return torch.zeros_like(p).scatter_(1, order, p / p.sum(-1, keepdim=True))


@given(data=st.data())
def test_rules_of_a_batch_equal_those_of_single_rows_and_the_formula(data):
    rows = data.draw(st.integers(1, 5))
    V = data.draw(st.sampled_from([2, 30, 700]))
    spread = data.draw(st.sampled_from([0.01, 1.0, 9.0]))
    logits = torch.randn(rows, V, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))) * spread
    sampling = st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        top_k=st.sampled_from([0, 1, 5, 999]),
        top_p=st.sampled_from([0.1, 0.9, 0.999, 1.0]),
        min_p=st.sampled_from([0.0, 0.02, 1.0]),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
    )
    how = data.draw(st.lists(sampling, min_size=rows, max_size=rows))
    drawn = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    seen = torch.rand(rows, V, generator=torch.Generator().manual_seed(2)) < 0.5
    together = choose(logits, Rules.for_rows(how), drawn, seen)
    for i, one in enumerate(how):
        alone = choose(logits[i : i + 1], Rules.for_rows([one]), drawn[i : i + 1], seen[i : i + 1])
        assert alone.item() == together[i]
        if one.temperature and one.repetition_penalty == 1.0:
            plain = {"temperature": one.temperature, "top_k": one.top_k, "top_p": one.top_p, "min_p": one.min_p}
            wanted = transformers_way(logits[i : i + 1], **plain)
            found = probabilities(logits[i : i + 1], **plain).double()
            assert (wanted - found).abs().sum() < 1e-3 or abs(int((wanted > 0).sum()) - int((found > 0).sum())) <= 1


def test_a_seed_gives_the_same_text_as_in_earlier_versions():
    """The random numbers are those of one torch.rand per token, and the candidates are the same."""
    logits = torch.randn(200, 600, generator=torch.Generator().manual_seed(0)) * 3
    generator, expected = torch.Generator().manual_seed(7), []
    for row in logits:
        p, ids = ((row - row.max()) / 0.8).softmax(-1).sort(descending=True)
        p = p.masked_fill(p.cumsum(0) - p >= 0.95, 0.0)
        sums = (p / p.sum()).double().cumsum(0)
        drawn = 1.0 - torch.rand(1, generator=generator, dtype=torch.float64)
        expected.append(ids[torch.searchsorted(sums, drawn * sums[-1])].item())
    draws = Draws(1)
    draws.seed(0, 7)
    rules = Rules.for_rows([Sampling(0.8, top_p=0.95)])
    assert [choose(row.unsqueeze(0), rules, draws.next(np.array([0]))).item() for row in logits] == expected
