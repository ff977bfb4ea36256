"""The user's settings hold, whatever the planner chooses."""

import pytest

from isoflop.errors import UserError
from isoflop.plan.asked import NOTHING, Asked
from isoflop.trainer import RunConfig


def test_a_field_is_set_by_itself_or_with_its_object():
    asked = Asked(("batch.sequences=16", "model=gpt2", " optim.lr = 0.1"))
    assert asked.names("batch.sequences") and asked.names("model.layers") and asked.names("optim.lr")
    assert not asked.names("batch.micro_sequences") and not asked.names("optim") and not asked.names("steps")
    assert not NOTHING.names("steps")


def test_the_planner_chooses_around_it():
    asked = Asked(("batch.sequences=16", "steps=7"))
    config = asked.apply(RunConfig())
    config = asked.choose(config, "batch", sequences=64, micro_sequences=4)
    config = asked.choose(config, "", steps=100, seconds=9.0)
    assert (config.batch.sequences, config.batch.micro_sequences) == (16, 4)
    assert (config.steps, config.seconds) == (7, 9.0)
    assert NOTHING.choose(config, "batch", sequences=64).batch.sequences == 64


def test_values_incompatible_with_the_users_are_refused():
    asked = Asked(("batch.micro_sequences=5",))
    config = Asked(("batch.sequences=10", "batch.micro_sequences=5")).apply(RunConfig())
    with pytest.raises(UserError, match=r"batch\.micro_sequences = 5"):
        asked.choose(config, "batch", sequences=12)
