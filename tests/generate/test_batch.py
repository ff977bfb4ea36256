"""Continuous batching: for every entry of every table, each row gets the tokens that it gets alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from isoflop.errors import UserError
from isoflop.generate import batch as batching
from isoflop.generate import memory
from isoflop.generate.batch import Batch, Order, groups
from isoflop.generate.cache import KVCache
from isoflop.generate.engine import stream_all
from isoflop.generate.memory import bytes_of_row, not_ragged, slots_for
from isoflop.generate.prefix import families
from isoflop.generate.rules import Draws, Sampling
from isoflop.model.blocks.attention import Attention
from isoflop.model.blocks.norm import BatchNorm
from isoflop.model.blocks.position import Position, Rotary
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.gpt import GPT
from isoflop.model.registry import SLOTS, trust_code

V, CONTEXT = 19, 24
BASE = {"norm": "layer", "position": "learned", "attention": "full", "feed_forward": "mlp", "init": "gpt2"}
WINDOW = Spec("banded", window=3)
POSITIONED = [
    {"position": position, "attention": attention}
    for position in ("rotary", "alibi", "relative", "sinusoidal", "none")
    for attention in (Spec("full", kv_heads=2), Spec("full", soft_cap=2.0), WINDOW, Spec("latent"))
    if (position, attention.name) != ("relative", "latent")  # refused
]
CASES = [
    *({slot: name} for slot, table in SLOTS.items() for name in table),
    {"norm": Spec("batch", over="batch_time")},
    {"norm": Spec("batch"), "wiring": "post", "embedding_norm": True},
    {"position": Spec("rotary", interleaved=True)},
    {"attention": Spec("full", kv_heads=1, qk_norm=True)},
    {"attention": Spec("full", soft_cap=2.0, kv_heads=2)},
    {"attention": WINDOW},
    {"attention": Spec("banded", window=1)},
    {"attention": Spec("banded", window=11, kv_heads=2, soft_cap=2.0)},
    {"attention": Spec("alternating", pattern=(WINDOW, "full"))},
    {"attention": Spec("alternating", pattern=(WINDOW, "none"))},
    {"attention": Spec("latent", q_rank=7, soft_cap=2.0)},
    *POSITIONED,
    {"feed_forward": Spec("moe", experts=4, top_k=3, shared=2)},
    {"value_embedding": 1, "embedding_shortcut": True, "logit_cap": 30.0, "wiring": "parallel"},
    {"value_embedding": 1, "attention": Spec("banded", window=3, kv_heads=1)},
    {"smear": True, "backout": True, "attention": Spec("full", qk_norm=True, qk_scale=1.5)},
    {"smear": True, "embedding_norm": True, "attention": WINDOW},
]


def name_of(case):
    return "-".join(
        f"{key}={getattr(value, 'name', value)}" + "".join(f",{k}={v}" for k, v in getattr(value, "options", ()))
        for key, value in case.items()
    )


def model_of(case, context=CONTEXT):
    torch.manual_seed(0)
    shape = {"vocab_size": V, "context": context, "layers": 2, "d_model": 16, "heads": 4}
    model = GPT(ModelConfig(**{**shape, **BASE, **case}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.4)
        model.train()(torch.randint(V, (3, context)))  # statistics, where a norm has some
    return model.eval().double()


def written(model, prompts, tokens=10, **how):
    rows = [[] for _ in prompts]
    for row, token in stream_all(model, prompts, tokens, **how):
        rows[row].append(token)
    return rows


def alone(model, prompts, tokens=10, seed=0, **how):
    return [written(model, [prompt], tokens, seed=seed + i, **how)[0] for i, prompt in enumerate(prompts)]


def some_prompts(seed=0):
    """Of all lengths, one past the context; some begin alike, two are the same."""
    rng = np.random.default_rng(seed)
    common = rng.integers(V, size=13).tolist()
    prompts = [rng.integers(V, size=n).tolist() for n in (1, 5, 2, CONTEXT, CONTEXT + 9, 3)]
    return [*prompts, common, [*common, 1, 2], [*common[:11], 4], common]


GREEDY, DRAWN = {"temperature": 0.0, "repetition_penalty": 4.0}, {"temperature": 1.0, "top_p": 0.9}


@pytest.mark.parametrize(
    ("case", "how"),
    [
        pytest.param(
            case,
            how,
            id=f"{name_of(case)}-{'greedy' if how is GREEDY else 'drawn'}",
            # of drawing every sixth case, and of pairs with a position the logits alone (below)
            marks=[pytest.mark.slow] if case in POSITIONED or (how is DRAWN and number % 6) else [],
        )
        for number, case in enumerate(CASES)
        for how in (GREEDY, DRAWN)
    ],
)
def test_each_row_is_what_it_is_alone(case, how, monkeypatch):
    monkeypatch.setattr("isoflop.generate.prefix.LEAST_SAVED", 1)
    monkeypatch.setattr(batching, "WORTH_A_PASS", 12)
    model, prompts = model_of(case), some_prompts()
    expected = alone(model, prompts, **how)
    assert written(model, prompts, **how) == expected
    assert written(model, prompts, **how, slots=4) == expected
    assert len({tuple(row) for row in expected}) > 2


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_logits_of_rows_of_different_lengths_are_those_of_the_full_forward(case):
    """Prefilled together and decoded together; a row leaves, others join, behind the longest and longer than all."""
    model, lengths = model_of(case), [5, 1, 9]
    ids = torch.randint(V, (6, CONTEXT), generator=torch.Generator().manual_seed(3))

    def compare(logits, rows):
        for i, row in enumerate(rows):
            torch.testing.assert_close(
                logits[i], model(ids[row : row + 1, : lengths[row]])[0, -1], rtol=1e-9, atol=1e-9
            )

    def read(cache, rows, T):
        at = torch.tensor([[max(0, lengths[row] - T + t) for t in range(T)] for row in rows])
        return batching.next_logits(model, ids[torch.tensor(rows).unsqueeze(1), at], cache)

    cache = KVCache(CONTEXT, slots=4, spare=3)
    cache.place(np.array(lengths) - 9)
    with torch.no_grad():
        compare(read(cache, [0, 1, 2], 9), [0, 1, 2])
        rows = [0, 1, 2]
        for step in range(14):
            if step == 4:
                rows = [rows[i] for i in cache.drop(np.array([2]))]
            if step in (2, 6):
                lengths.append(4 if step == 2 else 14)
                new = KVCache(lengths[-1])
                new.place(np.zeros(1, np.int64))
                compare(read(new, [len(lengths) - 1], lengths[-1]), [len(lengths) - 1])
                cache.join(new)
                rows.append(len(lengths) - 1)
            lengths = [n + (row in rows) for row, n in enumerate(lengths)]
            if max(lengths[row] for row in rows) > CONTEXT:
                break
            compare(read(cache, rows, 1), rows)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_prompts_any_slots(data):
    case = data.draw(st.sampled_from(CASES))
    model, ids = model_of(case, context=8), st.lists(st.integers(0, 3), min_size=1, max_size=10)
    prompts = data.draw(st.lists(ids, min_size=1, max_size=9))
    how = {"temperature": data.draw(st.sampled_from([0.0, 0.7])), "seed": data.draw(st.integers(0, 9))}
    how |= {"min_p": 0.05, "repetition_penalty": data.draw(st.sampled_from([1.0, 1.3]))}
    tokens, slots = data.draw(st.integers(1, 20)), data.draw(st.integers(0, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isoflop.generate.prefix.LEAST_SAVED", data.draw(st.sampled_from([1, 5, 1000])))
        patch.setattr(batching, "WORTH_A_PASS", data.draw(st.sampled_from([0, 3, 100])))
        assert written(model, prompts, tokens, slots=slots, **how) == alone(model, prompts, tokens, **how)


def orders_of(prompts, tokens=9, samplings=None):
    samplings = samplings or [Sampling(0.9)] * len(prompts)
    return [Order(np.array(ids), tokens, i, samplings[i]) for i, ids in enumerate(prompts)]


def all_steps(batch):
    rows = {}
    for numbers, tokens in batch.run():
        for number, token in zip(numbers, tokens, strict=True):
            rows.setdefault(number, []).append(token)
    return rows


def test_each_row_has_its_own_rules_and_length():
    """Every way of choosing in one batch, in float32 too."""
    samplings = [
        Sampling(0.0),
        Sampling(0.9),
        Sampling(0.9, top_k=3),
        Sampling(1.2, top_p=0.8),
        Sampling(0.9, min_p=0.2),
        Sampling(0.7, top_k=5, top_p=0.5, repetition_penalty=1.5),
        Sampling(0.0, repetition_penalty=2.0),
        Sampling(1.5, top_k=1),
    ]
    model, prompts = model_of({"position": "rotary"}), some_prompts()[:8]
    together = all_steps(Batch(model, orders_of(prompts, samplings=samplings)))
    for i, order in enumerate(orders_of(prompts, samplings=samplings)):
        assert all_steps(Batch(model, [order]))[0] == together[i]


def test_draws_are_the_rows_own_bit_for_bit():
    draws = Draws(3)
    for slot, seed in enumerate((5, 6, 2**62)):
        draws.seed(slot, seed)
    together = [draws.next(np.array(slots))[-1].item() for slots in [[0], [1, 0], [2, 1, 0]] * 60]
    generator = torch.Generator().manual_seed(5)
    assert together == [1.0 - torch.rand(1, generator=generator, dtype=torch.float64).item() for _ in range(180)]


def test_a_row_can_be_stopped_and_another_takes_its_slot():
    model, prompts = model_of({}), some_prompts()
    batch, rows = Batch(model, orders_of(prompts), slots=2), {}
    for numbers, tokens in batch.run():
        for number, token in zip(numbers, tokens, strict=True):
            rows.setdefault(number, []).append(token)
            if number % 2 and len(rows[number]) == 3:
                batch.end(number)
    whole = all_steps(Batch(model, orders_of(prompts)))
    assert rows == {number: row[:3] if number % 2 else row for number, row in whole.items()}


def test_shared_prefixes_are_computed_once():
    model, seen = model_of({"position": "rotary"}, context=120), []
    common = list(range(19)) * 5
    model.embedding.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    prompts = [[*common, i, *([i] * (i % 3))] for i in range(6)]
    together = written(model, prompts, 2, temperature=0.0)
    assert seen == [(1, 95), (6, 3), (6, 1)]
    assert together == alone(model, prompts, 2, temperature=0.0)
    seen.clear()
    assert written(model, prompts, 2, temperature=0.0, slots=2) == together
    assert seen.count((1, 95)) == 1  # kept for those who come later


@pytest.mark.parametrize(
    ("prompts", "found"),
    [
        ([[1, 2, 3]], [([0], 0)]),
        ([[1] * 80, [1] * 80], [([0, 1], 79)]),
        ([[1] * 70 + [2], [3], [1] * 70 + [4], [1] * 70 + [5, 6]], [([0, 2, 3], 70), ([1], 0)]),
        ([[1] * 80 + [2], [1] * 80 + [3], [1]], [([0, 1], 80), ([2], 0)]),
        ([], []),
    ],
)
def test_families(prompts, found):
    assert [(f.members, f.shared) for f in families([np.array(p) for p in prompts])] == found


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60))
def test_groups_are_all_rows_once_and_bounded(lengths):
    found = groups(lengths)
    assert sorted(i for group in found for i in group) == list(range(len(lengths)))
    for group in found:
        size = max(lengths[i] for i in group) * len(group)
        assert len(group) == 1 or size <= memory.READ_AT_ONCE
        padding = size - sum(lengths[i] for i in group)
        assert padding <= max(batching.WORTH_A_PASS, batching.PADDING * size)


def test_memory_is_estimated_and_too_many_slots_are_refused_with_a_number_that_fits(monkeypatch):
    model = model_of({})
    row = bytes_of_row(model, CONTEXT)
    batch = Batch(model, orders_of([[1] * 10] * 5, tokens=15))
    list(batch.run())
    held = sum(x.numel() * x.element_size() for h in batch.cache.layers.values() for x in (h.keys, h.values))
    assert held == 5 * row
    monkeypatch.setattr(memory, "free_memory", lambda device: 4_000_000)
    arguments = (model, 500, CONTEXT, 1, 0)
    fits = slots_for(*arguments, 0, False)
    assert 1 <= fits < 256
    with pytest.raises(UserError, match=f"slots = 300 .* at most {fits} fit") as error:
        slots_for(*arguments, 300, False)
    assert "\n" not in str(error.value)
    assert slots_for(*arguments, fits, False) == fits
    monkeypatch.setattr(memory, "free_memory", lambda device: 10_000)
    with pytest.raises(UserError, match="fewer --tokens"):
        slots_for(*arguments, 0, False)


class Odd(Position):
    def rotate(self, x_BHTK, start):
        return x_BHTK * (1 + 0.01 * torch.arange(start, start + x_BHTK.shape[2]).view(-1, 1))


class Turned(Rotary):
    def rotate(self, x_BHTK, start):
        return super().rotate(x_BHTK, start + 0)


class Knows(Turned):
    ragged = True

    def rotate(self, x_BHTK, start):
        return super().rotate(x_BHTK, start)


class Halved(Attention):
    def forward(self, x_BTD, cache=None, added_BTC=None):
        return super().forward(x_BTD, cache, added_BTC) / 2


class Shifted(BatchNorm):
    def forward(self, x_BTD, start=0):
        return super().forward(x_BTD, start) + start


class Flip(nn.Module):
    def __init__(self, *, dim: int) -> None:
        super().__init__()

    def forward(self, x_BTD):
        return -x_BTD


@pytest.mark.parametrize(
    ("case", "named"),
    [
        ({"position": f"{__name__}.Odd"}, "Odd"),
        ({"position": f"{__name__}.Turned"}, "Turned"),
        ({"attention": f"{__name__}.Halved"}, "Halved"),
        ({"norm": f"{__name__}.Shifted"}, "Shifted"),
        ({"position": f"{__name__}.Knows"}, ""),
        ({"norm": f"{__name__}.Flip"}, ""),
        *((case, "") for case in CASES),
    ],
    ids=lambda value: name_of(value) if isinstance(value, dict) else value or "ragged",
)
def test_a_block_without_ragged_positions_is_decoded_row_by_row(case, named):
    with trust_code(__name__):
        model = model_of(case)
    assert not_ragged(model) == named
    if __name__ in str(case):
        prompts = some_prompts()
        assert written(model, prompts, 5, temperature=0.0) == alone(model, prompts, 5, temperature=0.0)


def test_masked_positions_never_make_a_row_nan():
    """Cached values of rows that have left, however large, are hidden from rows that join."""
    model, cache = model_of({"position": "rotary"}), KVCache(8, slots=2, spare=2)
    cache.place(np.array([-3, 0]))
    tokens = torch.randint(V, (2, 4))
    with torch.no_grad():
        first = model(tokens, cache)[:, -1]
        torch.testing.assert_close(first[0], model(tokens[:1, 3:])[0, -1])
        torch.testing.assert_close(first[1], model(tokens[1:])[0, -1])
