"""A batch and a context that grow."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isoflop import checkpoint
from isoflop.config import override
from isoflop.data.prepare import prepare
from isoflop.errors import UserError
from isoflop.model.config import ModelConfig
from isoflop.optim.timetable import Decision
from isoflop.records import read_run
from isoflop.trainer.batch import BatchConfig
from isoflop.trainer.config import RunConfig
from isoflop.trainer.loop import train
from small import TINY, CutAt, PowerCut

CONTEXT = 64


def sizes_of(batch, steps=1000):
    return batch.sizes(CONTEXT, steps)


@st.composite
def ramps(draw):
    start = draw(st.integers(1, 8))
    sequences = start * draw(st.integers(1, 12))
    return BatchConfig(sequences, ramp_from=start, ramp_sequences=draw(st.integers(1, 3000)))


@st.composite
def shares(draw):
    """A batch whose ramp and context grow over shares of the run, and the run's steps."""
    batch = draw(ramps())
    more = {"ramp_sequences": 0, "ramp_share": draw(st.floats(0.05, 1.0))}
    more |= {"context_from": draw(st.sampled_from([8, 16, 32, 64])), "context_share": draw(st.floats(0.05, 1.0))}
    return replace(batch, **more), draw(st.integers(1, 400))


@given(ramps())
def test_the_ramp_is_linear_in_the_tokens_read(batch):
    sizes = sizes_of(batch)
    each = [sizes.at(step) for step in range(sizes.levels[-1][0] + 3)]
    assert each == sorted(each) and each[-1] == batch.sequences
    assert each[0] == batch.ramp_from and all(size % batch.ramp_from == 0 for size in each)
    read = list(itertools.accumulate(each, initial=0))
    assert [sizes.before(step) for step in range(len(read))] == read
    ramped = sizes.levels[-1][1]
    assert ramped == 0 or ramped >= batch.ramp_sequences
    stages = len(sizes.levels) - 1
    for stage, (_, before, size) in enumerate(sizes.levels[:-1]):
        due = batch.ramp_sequences * stage / stages  # where the straight line from ramp_from reaches this size
        linear = batch.ramp_from + (batch.sequences - batch.ramp_from) * due / batch.ramp_sequences
        assert size == pytest.approx(linear) and before >= due - 1e-9
        if batch.ramp_sequences >= stages * batch.sequences:  # each level has room for a step at least
            assert before - due < max(size, 1)


@given(ramps(), st.integers(1, 5000))
def test_steps_for_is_the_fewest_that_read_enough(batch, sequences):
    sizes = sizes_of(batch)
    steps = sizes.steps_for(sequences)
    assert sizes.before(steps) >= sequences > sizes.before(steps - 1)
    assert batch.steps_for(sequences) == steps


@given(shares())
def test_shares_of_a_run_grow_its_batch_and_its_context(drawn):
    batch, steps = drawn
    sizes = sizes_of(batch, steps)
    total, one = sizes.before(steps), batch.sequences
    stages = len(sizes.levels) - 1
    if stages:  # each level has at least one step, and ends with a whole one
        assert abs(sizes.levels[-1][1] - batch.ramp_share * total) <= one * (stages + 2)
    assert abs(batch.steps_for(total) - steps) <= stages + 2

    contexts = [sizes.context(step) for step in range(steps + 2)]
    assert contexts == sorted(contexts) and set(contexts) <= {8, 16, 32, 64}
    for context in (8, 16, 32):
        if context < batch.context_from or context not in contexts:
            continue
        doublings = (CONTEXT // batch.context_from).bit_length() - 1
        due = batch.context_share * total * ((2 * context // batch.context_from).bit_length() - 1) / doublings
        over = sizes.before(contexts.index(context) + contexts.count(context))
        assert over >= due - 1e-6 or contexts[-1] == context
    assert CONTEXT % sizes.context(0) == 0
    assert [sizes.windows_per_sequence(step) * contexts[step] for step in range(steps)] == [CONTEXT] * steps


@given(shares())
def test_the_work_and_the_shares_of_sizes_are_those_of_the_steps(drawn):
    batch, steps = drawn
    sizes = sizes_of(batch, steps)
    each = [(sizes.at(step), sizes.context(step)) for step in range(steps)]
    assert sizes.work(steps) == sum(sequences * context for sequences, context in each)
    assert {key: round(steps * share) for key, share in sizes.shares(steps).items()} == dict(Counter(each))
    first = [next(i for i in range(steps) if each[i] == one) for one in each]
    assert [sizes.since(step) for step in range(steps)] == first


def test_without_a_ramp_all_steps_are_alike():
    sizes = sizes_of(BatchConfig(6))
    assert [sizes.before(step) for step in (0, 1, 10**6)] == [0, 6, 6 * 10**6] and sizes.at(3) == 6
    assert sizes.shares(10) == {(6, CONTEXT): 1.0} and sizes.rates(0) == 1.0


def test_rates_follow_the_square_root_of_the_batch_if_asked():
    config = RunConfig(batch=BatchConfig(16, ramp_from=4, ramp_share=0.5), steps=100)
    asked = replace(config, batch=replace(config.batch, rates="sqrt"))
    for step in range(100):
        share = config.sizes.at(step) / 16
        assert asked.timetable().scale(step) == config.timetable().scale(step) * math.sqrt(share)
    assert config.sizes.at(0) == 4 and config.sizes.at(99) == 16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sequences": 12, "ramp_from": 5, "ramp_sequences": 9}, "batch.ramp_from = 5 does not divide"),
        ({"sequences": 12, "ramp_from": 4}, "a ramp needs both"),
        ({"sequences": 12, "ramp_sequences": 4}, "a ramp needs both"),
        ({"sequences": 12, "micro_sequences": 6, "ramp_from": 4, "ramp_sequences": 40}, "batch.micro_sequences = 6"),
        ({"sequences": 12, "ramp_from": 4, "ramp_sequences": 40, "ramp_share": 0.5}, "set one of them to 0"),
        ({"sequences": 12, "ramp_from": 4, "ramp_share": 30.0}, "batch.ramp_share = 30 is not between 0 and 1"),
        ({"sequences": 12, "context_from": 32}, "a context that grows needs both"),
        ({"sequences": 12, "context_share": 0.5}, "a context that grows needs both"),
    ],
)
def test_a_ramp_that_does_not_fit_is_named(fields, message):
    with pytest.raises(UserError) as caught:
        BatchConfig(**fields)
    assert message in str(caught.value)


def test_a_size_that_does_not_fit_names_one_that_does():
    with pytest.raises(UserError) as caught:
        BatchConfig(14, ramp_from=4, ramp_share=0.5)
    sequences = int(str(caught.value).rpartition("batch.sequences=")[2])
    BatchConfig(sequences, ramp_from=4, ramp_share=0.5)
    for context, start in ((256, 48), (96, 10), (256, 512)):
        config = RunConfig(model=ModelConfig(context=context))
        with pytest.raises(UserError, match=f"batch.context_from = {start} does not become") as caught:
            replace(config, batch=BatchConfig(8, context_from=start, context_share=0.5))
        for fitting in str(caught.value).rpartition("one of ")[2].split(", "):
            replace(config, batch=BatchConfig(8, context_from=int(fitting), context_share=0.5))


@pytest.mark.parametrize(
    "fields",
    [
        {"ramp_from": 4, "ramp_sequences": 40},
        {"ramp_from": 4, "ramp_share": 0.5, "rates": "sqrt"},
        {"context_from": 64, "context_share": 0.5},
        {"windows": "documents"},
        {"document_mask": True},
    ],
)
def test_pairs_have_none_of_it(fields):
    BatchConfig(12).refuse_pairs()
    with pytest.raises(UserError, match="not for pairs; leave out ") as caught:
        BatchConfig(12, **fields).refuse_pairs()
    assert {name.removeprefix("batch.") for name in str(caught.value).rpartition("out ")[2].split(" and ")} == set(
        fields
    )


def test_a_run_with_a_ramp_counts_its_tokens(corpus, tmp_path):
    changes = [*TINY, f'data.sources=["{corpus}"]', "batch.ramp_from=2", "batch.ramp_sequences=12", "steps=7"]
    config = override(RunConfig(), changes)
    sizes = [2, 2, 4, 6, 8, 8, 8]
    result = train(config, tmp_path / "run")
    lines = read_run(tmp_path / "run").training
    assert [line.tokens for line in lines] == [64 * n for n in itertools.accumulate(sizes)]
    assert result.tokens == config.tokens == 64 * sum(sizes)
    assert result.flops == pytest.approx(lines[-1].flops)


GROWING = ["batch.ramp_from=2", "batch.ramp_share=0.4", "batch.rates=sqrt"]
GROWING += ["batch.context_from=16", "batch.context_share=0.6"]


def test_a_run_in_seconds_whose_steps_grow_can_be_repeated_and_resumed(corpus, tmp_path):
    """Its clock moves the end; a run that takes these decisions, cut and resumed, has the same bits."""
    changes = [*TINY, f'data.sources=["{corpus}"]', "steps=600", "seconds=1", *GROWING, "every.checkpoint=40"]
    config = override(RunConfig(), [*changes, "guard.preflight=false"])
    data = prepare(config.data)
    result = train(config, tmp_path / "first", prepared=data)
    first = read_run(tmp_path / "first")
    decisions = [Decision.from_dict(line.to_dict()) for line in first.decisions]
    assert 0 < result.step < 600 and decisions
    sizes = [(b.tokens - a.tokens) // 64 for a, b in itertools.pairwise(first.training)]
    assert sizes == [config.sizes.at(step) for step in range(1, result.step)]

    again = replace(config, seconds=0.0)
    with pytest.raises(PowerCut):
        train(again, tmp_path / "again", prepared=data, decisions=decisions, hooks=[CutAt(result.step // 2)])
    train(again, tmp_path / "again", prepared=data, resume=True)
    one, other = (weights_of(tmp_path / name) for name in ("first", "again"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def weights_of(run):
    return checkpoint.read(run).weights
