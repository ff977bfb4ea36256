"""A batch that grows: GPT-3's ramp."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.config import override
from isoflop.errors import UserError
from isoflop.records import read_run
from isoflop.trainer.config import BatchConfig, RunConfig
from isoflop.trainer.loop import train
from small import TINY


@st.composite
def ramps(draw):
    start = draw(st.integers(1, 8))
    sequences = start * draw(st.integers(1, 12))
    return BatchConfig(sequences, ramp_from=start, ramp_sequences=draw(st.integers(1, 3000)))


@given(ramps())
def test_the_ramp_is_linear_in_the_tokens_read(batch):
    sizes = [batch.at(step) for step in range(batch.levels[-1][0] + 3)]
    assert sizes == sorted(sizes) and sizes[-1] == batch.sequences
    assert sizes[0] == batch.ramp_from and all(size % batch.ramp_from == 0 for size in sizes)
    read = list(itertools.accumulate(sizes, initial=0))
    assert [batch.before(step) for step in range(len(read))] == read
    ramped = batch.levels[-1][1]
    assert ramped == 0 or ramped >= batch.ramp_sequences
    stages = len(batch.levels) - 1
    for stage, (_, before, size) in enumerate(batch.levels[:-1]):
        due = batch.ramp_sequences * stage / stages  # where the straight line from ramp_from reaches this size
        linear = batch.ramp_from + (batch.sequences - batch.ramp_from) * due / batch.ramp_sequences
        assert size == pytest.approx(linear) and before >= due - 1e-9
        if batch.ramp_sequences >= stages * batch.sequences:  # each level has room for a step at least
            assert before - due < max(size, 1)


@given(ramps(), st.integers(1, 5000))
def test_steps_for_is_the_fewest_that_read_enough(batch, sequences):
    steps = batch.steps_for(sequences)
    assert batch.before(steps) >= sequences > batch.before(steps - 1)


def test_without_a_ramp_all_steps_are_alike():
    batch = BatchConfig(6)
    assert [batch.before(step) for step in (0, 1, 10**6)] == [0, 6, 6 * 10**6] and batch.at(3) == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sequences": 12, "ramp_from": 5, "ramp_sequences": 9}, "batch.ramp_from = 5 does not divide"),
        ({"sequences": 12, "ramp_from": 4}, "a ramp needs both"),
        ({"sequences": 12, "ramp_sequences": 4}, "a ramp needs both"),
        ({"sequences": 12, "micro_sequences": 6, "ramp_from": 4, "ramp_sequences": 40}, "batch.micro_sequences = 6"),
    ],
)
def test_a_ramp_that_does_not_fit_is_named(fields, message):
    with pytest.raises(UserError) as caught:
        BatchConfig(**fields)
    assert message in str(caught.value)


def test_a_ramp_does_not_combine_with_a_budget_in_seconds():
    batch = BatchConfig(8, ramp_from=2, ramp_sequences=20)
    with pytest.raises(UserError, match="cannot be combined"):
        RunConfig(batch=batch, seconds=5.0)


def test_a_run_with_a_ramp_counts_its_tokens(corpus, tmp_path):
    changes = [*TINY, f'data.sources=["{corpus}"]', "batch.ramp_from=2", "batch.ramp_sequences=12", "steps=7"]
    config = override(RunConfig(), changes)
    sizes = [2, 2, 4, 6, 8, 8, 8]
    result = train(config, tmp_path / "run")
    lines = read_run(tmp_path / "run").training
    assert [line.tokens for line in lines] == [64 * n for n in itertools.accumulate(sizes)]
    assert result.tokens == config.tokens == 64 * sum(sizes)
    assert result.flops == pytest.approx(lines[-1].flops)
