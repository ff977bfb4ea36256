"""A setting that has no effect is not dropped in silence."""

import pytest

from isoflop.config import override
from isoflop.plan.unused import NEEDS, TABLES, unused
from isoflop.trainer.config import RunConfig


@pytest.mark.parametrize(
    ("setting", "enabled_by"),
    [
        ("optim.momentum_from=0.5", ["optim.momentum_steps=10"]),
        ("optim.neuron_beta=0.9", ["optim.neurons=rows"]),
        ("optim.value_lr=0.1", ["model.value_embedding=1"]),
        ("average.share=0.2", ["average.name=tail"]),
        ("average.every=2", ["average.name=exponential"]),
        ("schedule.cosine_from=start", ["schedule.name=cosine"]),
        ("batch.rates=sqrt", ["batch.ramp_from=8", "batch.ramp_share=0.3"]),
        ("model.shortcut_residual=[1.1,1]", ["model.embedding_shortcut=true"]),
        ("suite.share=0.1", ["every.suite=10"]),
    ],
)
def test_a_setting_without_effect_is_named_until_what_it_needs_is_set(setting, enabled_by):
    (line,) = unused(override(RunConfig(), [setting]), [setting])
    assert line.startswith(f"note: {setting.partition('=')[0]} has no effect")
    assert unused(override(RunConfig(), [setting, *enabled_by]), [setting, *enabled_by]) == []


@pytest.mark.parametrize(
    ("setting", "disabled_by"),
    [
        ("optim.head_betas=[0.8,0.9]", "model.tied_head=true"),
        ("batch.document_mask=true", "model.attention=none"),
        ("runtime.kernels=compiled", "runtime.compile=true"),
    ],
)
def test_a_setting_that_another_one_disables_is_named(setting, disabled_by):
    assert unused(override(RunConfig(), [setting]), [setting]) == []
    (line,) = unused(override(RunConfig(), [setting, disabled_by]), [setting])
    assert setting.partition("=")[0] in line


def test_the_settings_of_another_entry_are_named_with_that_which_was_chosen():
    asked = ["optim.name=adamw", "optim.rounds=3", "optim.weight_decay=0.2", "optim.betas=[0.9,0.99]"]
    assert unused(override(RunConfig(), asked), asked) == ["note: optim.rounds has no effect with optim.name = adamw"]


def test_the_tables_name_fields_that_exist():
    config = RunConfig()
    for name in (*NEEDS, *(f"{part}.{field}" for part, names in TABLES.items() for field in names)):
        part, _, field = name.partition(".")
        assert hasattr(getattr(config, part), field), name
