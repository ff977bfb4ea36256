"""The whole model: presets, configuration, what a run relies on."""

import copy
import math

import pytest
import torch

from isoflop.config import from_dict, override, to_dict
from isoflop.errors import UserError
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.count import build_on_meta
from isoflop.model.cross_entropy import cross_entropy
from isoflop.model.gpt import GPT
from isoflop.model.presets import PRESETS, gpt2, modern
from isoflop.model.registry import POSITIONS, WIRINGS

TINY = {"vocab_size": 19, "context": 8, "layers": 2, "d_model": 16, "heads": 2}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    config = PRESETS[name]()
    assert from_dict(ModelConfig, to_dict(config)) == config
    assert hash(config) == hash(copy.deepcopy(config))


def test_modern_is_the_default():
    assert modern() == ModelConfig()


@pytest.mark.parametrize(("d_model", "heads"), [(32, 1), (64, 1), (128, 2), (192, 3), (200, 2), (512, 8)])
def test_modern_heads_are_about_64_wide_and_fit(d_model, heads):
    config = modern(d_model=d_model)
    assert config.heads == heads
    build_on_meta(config)


@pytest.mark.parametrize("tied", [False, True])
def test_modern_starts_at_the_loss_of_uniform_guessing(tied):
    torch.manual_seed(0)
    model = GPT(modern(**TINY, tied_head=tied))
    tokens = torch.randint(19, (4, 8))
    loss = cross_entropy(model.hidden(tokens), model.head_weight, tokens.roll(-1, 1))
    assert loss.item() == pytest.approx(math.log(19), abs=0.3 if tied else 1e-5)


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize(
    "fields",
    [{}, {"feed_forward": "moe"}, {"value_embedding": 1, "embedding_shortcut": True, "logit_cap": 15.0}],
    ids=["mlp", "moe", "options"],
)
def test_every_modern_weight_moves_within_two_steps(wiring, fields):
    """Heads and branches that start at zero must not stay there."""
    torch.manual_seed(0)
    model = GPT(modern(**TINY, wiring=wiring, **fields))
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    tokens = torch.randint(19, (4, 8))
    for _ in range(3):
        cross_entropy(model.hidden(tokens), model.head_weight, tokens.roll(-1, 1)).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_tied_head_is_the_embedding():
    model = GPT(gpt2(**TINY))
    assert model.head_weight is model.embedding.weight
    assert "head.weight" not in model.state_dict()


def test_initialisation_is_a_function_of_the_seed():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in GPT(ModelConfig(**TINY)).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_more_tokens_than_the_context_are_refused():
    with pytest.raises(ValueError, match="context of 8"):
        GPT(ModelConfig(**TINY))(torch.zeros(1, 9, dtype=torch.long))


def test_order_matters_only_with_positions():
    """The last token sees the others as a set without positions and as a sequence with them."""
    tokens = torch.tensor([[1, 2, 3, 4], [3, 2, 1, 4]])
    for name in POSITIONS:
        torch.manual_seed(0)
        config = ModelConfig(**{**TINY, "layers": 1}, position=Spec(name), init=Spec("gpt2", std=0.5, position_std=0.5))
        h = GPT(config).hidden(tokens)[:, -1]
        assert torch.allclose(h[0], h[1], atol=1e-6) == (name == "none"), name


def test_alternating_attention_does_not_appear_in_tensor_names():
    alternating = {"name": "alternating", "pattern": ["full", {"name": "banded", "window": 3}]}
    mixed, full = (GPT(ModelConfig(**{**TINY, "layers": 3}, attention=a)) for a in (alternating, "full"))
    assert [block.attention.window for block in mixed.blocks] == [0, 3, 0]
    assert list(mixed.state_dict()) == list(full.state_dict())


def test_a_private_head_width_needs_no_division():
    model = GPT(ModelConfig(**{**TINY, "heads": 3}, head_dim=10))
    assert model(torch.zeros(2, 8, dtype=torch.long)).shape == (2, 8, 19)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 3}, "model.heads = 3 does not divide model.d_model = 16"),
        ({"layers": -1}, "model.layers = -1 is not in 0 to"),
        ({"vocab_size": 0}, "model.vocab_size = 0 is not in 1 to"),
        ({"dropout": 1.0}, "model.dropout = 1.0 is not in"),
        ({"norm": {"eps": 1e-5}}, "model.norm = "),
        ({"head_dim": 3}, "model.position = rotary: model.head_dim = 3 is odd"),
        ({"attention": {"name": "full", "kv_heads": 3}}, "model.attention = full: kv_heads = 3 does not divide"),
        ({"attention": {"name": "alternating", "pattern": []}}, "model.attention = alternating: pattern is empty"),
        (
            {"attention": {"name": "alternating", "pattern": ["full", "banned"]}},
            "model.attention.pattern[1] = 'banned' is not one of full, banded, alternating, latent, none; did you mean",
        ),
        (
            {"attention": {"name": "alternating", "pattern": ["full", {"name": "banded", "widow": 3}]}},
            "model.attention.pattern[1].widow is not an option of banded: did you mean window?",
        ),
        (
            {"attention": "latent", "position": "relative"},
            "model.attention = latent: it needs a position encoding for a part of each head",
        ),
        ({"logit_cap": -1.0}, "model.logit_cap = -1 is negative"),
        ({"logit_cap": math.nan}, "model.logit_cap = nan is negative or not a number"),
        ({"value_embedding": -1}, "model.value_embedding = -1 is not in 0 to"),
        (
            {"value_embedding": 1, "attention": "latent"},
            "adds to the values of layer 0, and model.attention = 'latent'",
        ),
        ({"value_embedding": 2, "attention": "none"}, "model.value_embedding = 2 adds to the values of layer 1, and"),
        (
            {"value_embedding": 1, "attention": {"name": "alternating", "pattern": ["full", "none"]}},
            "adds to the values of layer 1, and model.attention = 'alternating' has no values there",
        ),
        ({"init": "gtp2"}, "model.init = 'gtp2' is not one of gpt2, normal, modern, xavier; did you mean gpt2?"),
    ],
)
def test_an_impossible_configuration_is_named(fields, message):
    with pytest.raises(UserError) as caught:
        build_on_meta(ModelConfig(**{**TINY, **fields}))
    assert message in str(caught.value)


def test_dotted_overrides_reach_a_slots_options():
    config = override(ModelConfig(), ["norm.eps=1e-3", "position.base=500", "feed_forward=gated"])
    assert config.norm == Spec("rms", gain=False, eps=1e-3)
    assert config.position == Spec("rotary", base=500)
    assert config.feed_forward == Spec("gated")
    assert GPT(config).blocks[0].attention.position.base == 500


def test_specs_in_json():
    assert Spec("rms").to_plain() == "rms"
    assert Spec("rms", eps=1e-6).to_plain() == {"name": "rms", "eps": 1e-6}
    nested = {"name": "mixed", "of": ["full", {"name": "full", "kv_heads": 1}], "every": [1, 2]}
    assert Spec.from_plain(nested).to_plain() == {"name": "mixed", "every": [1, 2], "of": nested["of"]}
    assert hash(Spec.from_plain(nested)) == hash(Spec.from_plain(nested))
