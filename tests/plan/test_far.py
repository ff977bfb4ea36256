"""Settings far from the plan get a note of one line."""

from isoflop.config import override
from isoflop.plan.far import check_against_plan
from isoflop.plan.settings import with_batch, with_rates
from isoflop.trainer import RunConfig
from isoflop.trainer.causal_lm import TextWorkload
from isoflop.trainer.workload import Text


def test_the_plans_own_choices_give_no_note():
    for width, steps in ((64, 300), (512, 20_000)):
        config = override(RunConfig(), [f"model.d_model={width}", f"steps={steps}"])
        assert check_against_plan(with_rates(with_batch(config, config.tokens, TextWorkload(Text(1e6, b""))))) == []


def test_each_far_setting_is_named_with_both_numbers():
    config = override(RunConfig(), ["model.d_model=128", "optim.lr=1", "optim.matrix_lr=1e-4", "batch.sequences=4000"])
    lr, matrix_lr, batch = check_against_plan(config)
    assert "optim.lr = 1 is 100 times the 0.01 that" in lr
    assert "optim.matrix_lr = 0.0001 is 1/150 of the 0.015 that" in matrix_lr
    assert batch.startswith("note: the batch, in tokens, =")
    assert len(check_against_plan(override(config, ["optim.name=adamw"]))) == 2  # matrix_lr is not used
