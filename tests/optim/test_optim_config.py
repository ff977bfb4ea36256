import math

import pytest

from isoflop.config import describe, from_dict, override, to_dict
from isoflop.errors import UserError
from isoflop.optim.config import OptimConfig, ScheduleConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", -1),
        ("lr", 0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("matrix_lr", -0.5),
        ("eps", 0),
        ("weight_decay", -0.1),
        ("momentum", 1.0),
        ("momentum_from", -0.1),
        ("momentum_steps", -1),
        ("rounds", 0),
        ("neuron_beta", 1.0),
        ("value_lr", math.nan),
        ("clip", -1),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(UserError, match=rf"optim\.{field} = {value:g} .*must be"):
        OptimConfig(**{field: value})


def test_betas_are_checked_one_by_one():
    with pytest.raises(UserError, match=r"optim\.betas\[1\] = 1 "):
        OptimConfig(betas=(0.9, 1.0))


def test_the_iteration_and_the_betas_of_a_group_are_checked():
    with pytest.raises(UserError, match=r"optim\.iteration = 'polar' is not one of quintic, polar_express"):
        OptimConfig(iteration="polar")
    with pytest.raises(UserError, match=r"optim\.head_betas\[0\] = 1.5 "):
        override(OptimConfig(), ["head_betas=[1.5, 0.9]"])
    assert override(OptimConfig(), ["head_betas=[0.8, 0.9]"]).head_betas == (0.8, 0.9)
    with pytest.raises(UserError, match="neurons = 'columns' is not one of none, rows, longer"):
        override(OptimConfig(), ["neurons=columns"])


@pytest.mark.parametrize(("field", "value"), [("warmup", 1.5), ("decay", -0.1), ("floor", 2), ("floor", math.nan)])
def test_a_schedule_out_of_range_is_named(field, value):
    with pytest.raises(UserError, match=rf"schedule\.{field} = {value:g} "):
        ScheduleConfig(**{field: value})


def test_an_override_is_validated_too():
    assert override(OptimConfig(), ["name=adamw", "betas=[0.8, 0.9]"]).betas == (0.8, 0.9)
    with pytest.raises(UserError, match=r"optim\.lr = -1"):
        override(OptimConfig(), ["lr=-1"])
    with pytest.raises(UserError, match="adamw"):
        override(OptimConfig(), ["name=adamm"])


@pytest.mark.parametrize("config", [OptimConfig(name="adamw", lr=1e-4), ScheduleConfig(name="cosine", floor=0.1)])
def test_it_survives_json_and_every_field_has_a_docstring(config):
    assert from_dict(type(config), to_dict(config)) == config
    assert all(line.meaning for line in describe(type(config)))
