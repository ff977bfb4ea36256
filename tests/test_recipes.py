"""The recipes build, and what they resolve to is what was published."""

import re
from pathlib import Path

import pytest
import torch

from isoflop.data.corpus import parse_sources
from isoflop.model.count import build_on_meta
from isoflop.model.gpt import GPT
from isoflop.optim.build import build
from isoflop.recipe import load_recipe

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = [
    f"{path.name}:{name}"
    for path in sorted(FOLDER.glob("*.py"))
    for name in re.findall(r"^def (gpt\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
]

# GPT-3's table 2.1: batch in tokens and learning rate, as printed.
GPT3 = {
    "small": (0.5e6, 6.0e-4),
    "medium": (0.5e6, 3.0e-4),
    "large": (0.5e6, 2.5e-4),
    "xl": (1e6, 2.0e-4),
    "2_7b": (1e6, 1.6e-4),
    "6_7b": (2e6, 1.2e-4),
    "13b": (2e6, 1.0e-4),
    "175b": (3.2e6, 0.6e-4),
}


def recipe(name, *assignments):
    config = load_recipe(f"{FOLDER}/{name}", None, assignments)
    assert config is not None
    return config


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds(name):
    config = recipe(name)
    assert build_on_meta(config.model).config == config.model
    assert config.model.vocab_size == config.data.vocab_size
    assert parse_sources(config.data.sources) or not config.data.sources


def test_gpt1():
    config = recipe("gpt1.py:gpt1")
    assert (config.batch.sequences, config.model.context, config.tokens_per_step) == (64, 512, 32_768)
    assert config.optim.name == "adamw" and config.model.dropout == 0.1
    table = config.timetable()
    assert table.warmup_steps == 2_000
    assert config.optim.lr * table.scale(999) == pytest.approx(1.25e-4, rel=1e-3)
    assert config.optim.lr * table.scale(1_999) == pytest.approx(2.5e-4, rel=1e-3)
    assert table.scale(config.steps) == pytest.approx(0.0, abs=1e-12)
    assert config.tokens == pytest.approx(100e9, rel=1e-6)


def test_gpt1_decays_no_bias_and_no_gain():
    config = recipe("gpt1.py:gpt1", "model.layers=1", "model.d_model=24", "model.vocab_size=50")
    torch.manual_seed(0)
    model = GPT(config.model)
    (adam,) = build(model, config.optim)
    decays = {id(p): group["weight_decay"] for group in adam.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        assert decays[id(p)] == (0.0 if p.ndim == 1 else 0.01), name
    assert adam.param_groups[0]["betas"] == (0.9, 0.999) and adam.param_groups[0]["eps"] == 1e-8
    assert config.optim.clip == 1.0


@pytest.mark.parametrize("name", ["gpt2", "gpt2_medium", "gpt2_large", "gpt2_xl"])
def test_gpt2(name):
    config = recipe(f"gpt2.py:{name}")
    assert (config.batch.sequences, config.model.context, config.model.vocab_size) == (512, 1024, 50_257)


@pytest.mark.parametrize("name", GPT3)
def test_gpt3(name):
    config = recipe(f"gpt3.py:gpt3_{name}")
    batch, lr = GPT3[name]
    digits = 2 if batch == 3.2e6 else 1
    assert float(f"{config.tokens_per_step:.{digits - 1}e}") == batch
    optim = config.optim
    assert (optim.name, optim.lr, optim.betas, optim.eps) == ("adamw", lr, (0.9, 0.95), 1e-8)
    assert (optim.weight_decay, optim.clip) == (0.1, 1.0)
    assert 0 <= config.tokens - 300e9 < config.tokens_per_step


@pytest.mark.parametrize("name", ["small", "175b"])
def test_gpt3_rate_and_batch_follow_the_tokens(name):
    config = recipe(f"gpt3.py:gpt3_{name}")
    table, context = config.timetable(), config.model.context

    def step_at(tokens):
        return config.batch.steps_for(tokens / context)

    assert config.sizes.at(0) * context == 32_768
    assert config.tokens_before(table.warmup_steps) == pytest.approx(375e6, rel=1e-3)
    assert table.scale(step_at(187.5e6)) == pytest.approx(0.5, rel=2e-3)
    assert table.scale(step_at(375e6)) == pytest.approx(1.0, abs=1e-4)
    halfway = (375e6 + 260e9) / 2  # half of the cosine's way to a tenth, from the end of the warm-up
    assert table.scale(step_at(halfway)) == pytest.approx(0.55, abs=1e-4)
    assert table.scale(step_at(260e9)) == table.scale(config.steps - 1) == pytest.approx(0.1)
    assert table.scale(step_at(259e9)) > 0.1
    ramp = {"small": 4e9, "175b": 12e9}[name]
    halfway = config.sizes.at(step_at(ramp / 2)) / config.batch.sequences
    assert halfway == pytest.approx(0.5, abs=0.06)
    assert config.sizes.at(step_at(ramp * 1.001)) == config.batch.sequences
    assert config.sizes.at(step_at(ramp * 0.9)) < config.batch.sequences


def test_gpt3_mixture_is_table_2_2_divided_by_its_sum():
    sources = parse_sources(recipe("gpt3.py:gpt3_175b").data.sources)
    printed = {"common_crawl": 60, "webtext2": 22, "books1": 8, "books2": 8, "wikipedia": 3}
    assert {s.name: s.weight for s in sources} == pytest.approx({k: v / 101 for k, v in printed.items()})
