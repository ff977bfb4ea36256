"""The table of tasks, and what depends on its names."""

import pytest

from isoflop.errors import UserError
from isoflop.model.build import MODELS
from isoflop.report.words import MODEL_KINDS, model_kind
from isoflop.trainer.config import RunConfig
from isoflop.trainer.task import TASKS, make_task, task_named


def test_every_task_has_a_model_with_a_name():
    assert set(TASKS) == set(MODELS) == set(MODEL_KINDS)
    assert {name: trained.kind for name, trained in MODELS.items()} == MODEL_KINDS
    assert RunConfig.task in TASKS and model_kind(None) == "GPT" and model_kind("of another version") == "model"


def test_a_task_is_found_by_its_name():
    for name, task in TASKS.items():
        assert isinstance(make_task(RunConfig(task=name)), task) and isinstance(task_named(name), task)
    with pytest.raises(UserError, match="'causal' is not one of causal_lm, seq2seq"):
        task_named("causal")
