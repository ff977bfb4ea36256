import dataclasses
import re

import pytest

from isoflop.config import added_fields, describe, from_dict, override, to_dict, to_key
from isoflop.errors import UserError
from isoflop.model.config import Spec
from isoflop.model.presets import PRESETS
from isoflop.trainer.config import RunConfig


def test_a_config_survives_json():
    config = override(RunConfig(), ["model.norm.eps=1e-5", "optim.betas=[0.8, 0.9]", 'sample.prompts=["a", "b"]'])
    assert from_dict(RunConfig, to_dict(config)) == config


def test_an_override_changes_only_its_field():
    config = override(RunConfig(), ["model.layers=7", "seed=3"])
    assert (config.model.layers, config.seed) == (7, 3)
    assert dataclasses.replace(config, seed=0, model=RunConfig().model) == RunConfig()


def test_a_slot_is_swapped_with_one_word_and_its_options_set_with_a_dot():
    assert override(RunConfig(), ["model.norm=layer"]).model.norm == Spec("layer")
    assert dict(override(RunConfig(), ["model.norm=layer", "model.norm.eps=0.1"]).model.norm.options) == {"eps": 0.1}


def test_a_preset_replaces_the_whole_model():
    assert override(RunConfig(), ["model.layers=7", "model=gpt2-medium"]).model == PRESETS["gpt2-medium"]()
    changed = override(RunConfig(), ["model=gpt2-medium", "model.layers=7", "model.attention.kv_heads=4"])
    assert changed.model == PRESETS["gpt2-medium"](layers=7, attention=Spec("full", kv_heads=4))
    assert changed.data == RunConfig().data
    assert from_dict(RunConfig, {"model": "gpt1", "steps": 3}).model == PRESETS["gpt1"]()


@pytest.mark.parametrize(
    ("assignment", "names"),
    [
        ("model.layer=3", "model.layers"),
        ("modle.layers=3", "model"),
        ("optim.learning_rate=3", "optim"),
        ("steps", "dotted.field=value"),
        ("steps=many", "steps = 'many'"),
        ("steps=0", "steps = 0"),
        ("seed.x=1", "seed"),
        ("optim.name=mun", "muon"),
        ("model=gpt2-medum", "did you mean gpt2-medium?"),
        ("model=3", "model = 3 is not an object of fields"),
        ("optim.lr=-1", "optim.lr"),
        ("batch.sequences=0", "batch.sequences"),
    ],
)
def test_a_wrong_override_names_the_field_and_the_nearest_right_one(assignment, names):
    with pytest.raises(UserError) as caught:
        override(RunConfig(), [assignment])
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "advice"),
    [
        ("optim.lr=.3", "0.3"),
        ("optim.rounds=2.5", "2"),
        ("model.smear=yes", "true"),
        ("model.smear=1", "true"),
        ("model.backout=False", "false"),
        ("optim.betas=0.8,0.9", "[0.8,0.9]"),
        ("model.shortcut_residual=1", "[1,1]"),
        ("sample.prompts=Once, twice", '["Once","twice"]'),
        ("data.text_column=3", '"3"'),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_value_that_was_probably_meant(assignment, advice):
    """The advice can be copied: with it the assignment is accepted."""
    field = assignment.partition("=")[0]
    with pytest.raises(UserError, match=re.escape(f"{field} = ")) as caught:
        override(RunConfig(), [assignment])
    assert f"write {advice}" in str(caught.value).replace("'", "")
    override(RunConfig(), [f"{field}={advice}"])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("batch.ramp_share=nan", "batch.ramp_share = 'nan' is not a number"),
        ("optim.rounds=true", "optim.rounds = true is not a whole number"),
        ("optim.embedding_betas=[0.8]", "optim.embedding_betas = [0.8] is not a list of 2 values"),
        ("optim.embedding_betas=a,b,c", "optim.embedding_betas = 'a,b,c' is not a list"),
        ("average=tail", "average = 'tail' is not an object of fields; did you mean average.name=tail?"),
    ],
)
def test_messages_spell_values_as_they_are_written(assignment, message):
    with pytest.raises(UserError) as caught:
        override(RunConfig(), [assignment])
    assert str(caught.value) == message


def test_every_field_has_a_docstring():
    lines = describe(RunConfig)
    assert len({line.name for line in lines}) == len(lines) > 50
    assert [line.name for line in lines if not line.meaning] == []


def test_fields_that_came_later_are_in_a_key_only_if_they_are_set():
    """Keys on record (of timings, runs of a ladder, recipes) were made without them and still hold."""
    parts = ("model", "optim", "runtime", "batch")
    added = {f"{part}.{name}" for part in parts for name in added_fields(type(getattr(RunConfig(), part)))}
    assert {"optim.rounds", "model.smear"} <= added and added_fields(RunConfig) == {"average": RunConfig().average}
    plain, key = to_dict(RunConfig()), to_key(RunConfig())
    assert [field for field in added if field.partition(".")[2] in key[field.partition(".")[0]]] == []
    for dotted in (*added, "average"):
        part, _, name = dotted.partition(".")
        plain[part].pop(name) if name else plain.pop(part)
    assert key == plain

    changed = override(RunConfig(), ["optim.rounds=6", "average.name=tail", "model.attention.qk_scale=1.2"])
    assert to_key(changed)["optim"] == {**key["optim"], "rounds": 6}
    assert to_key(changed)["average"] == to_dict(changed.average)
    assert to_key(changed)["model"]["attention"] == to_dict(changed.model.attention)
