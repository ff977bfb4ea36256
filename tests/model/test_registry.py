"""Choosing parts by name, by option, by dotted path."""

import sys
import types

import pytest
import torch
from torch import nn

from isoflop.config import describe
from isoflop.errors import UserError
from isoflop.model.blocks.norm import LayerNorm
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.gpt import GPT
from isoflop.model.registry import INITS, NORMS, SLOTS, make, trust_code


class Scale(nn.Module):
    """A private block: what a user would write."""

    def __init__(self, *, dim: int, start: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), start))

    def forward(self, x):
        return x * self.weight


@pytest.fixture
def private(monkeypatch):
    """`private_blocks.norms.Scale`, importable, and a sibling whose import would be noticed."""
    package, module = types.ModuleType("private_blocks"), types.ModuleType("private_blocks.norms")
    module.Scale, module.helper = Scale, len
    monkeypatch.setitem(sys.modules, "private_blocks", package)
    monkeypatch.setitem(sys.modules, "private_blocks.norms", module)
    return "private_blocks.norms.Scale"


def refusal(spec, **shapes):
    with pytest.raises(UserError) as caught:
        make(NORMS, spec, "model.norm", **(shapes or {"dim": 8}))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_shapes_come_from_the_parent_and_options_from_the_spec():
    norm = make(NORMS, Spec("layer", eps=1e-3), "model.norm", dim=8, heads=2)  # heads: not asked for, not passed
    assert isinstance(norm, LayerNorm) and norm.eps == 1e-3 and norm.weight.shape == (8,)


def test_an_unknown_entry_names_the_nearest_and_all():
    assert refusal(Spec("lyer")) == "model.norm = 'lyer' is not one of layer, rms, batch, none; did you mean layer?"


def test_an_unknown_option_names_the_nearest():
    assert refusal(Spec("rms", epz=1)) == "model.norm.epz is not an option of rms: did you mean eps?"
    assert refusal(Spec("none", eps=1)) == "model.norm.eps is not an option of none: it has none"


def test_an_entry_may_be_a_class_with_other_defaults():
    """`banded` is full attention with a window: the default is the name's, and any option may be set."""
    shape = {"vocab_size": 19, "context": 8, "layers": 3, "d_model": 16, "heads": 2}

    def windows(attention):
        return [block.attention.window for block in GPT(ModelConfig(**shape, attention=attention)).blocks]

    assert windows("full") == [0] * 3 and windows("banded") == [256] * 3
    assert windows(Spec("banded", window=4, kv_heads=1)) == windows(Spec("full", window=4)) == [4] * 3
    assert windows("alternating") == [0, 256, 0]
    assert windows(Spec("alternating", pattern=(Spec("banded", window=2), "full"))) == [2, 0, 2]
    with pytest.raises(UserError, match="window = 0 is not positive"):
        windows(Spec("banded", window=0))
    with pytest.raises(UserError, match="activation is silu in swiglu"):
        GPT(ModelConfig(**shape, feed_forward=Spec("swiglu", activation="relu")))


def test_help_names_every_entry():
    meanings = {line.name: line.meaning for line in describe(ModelConfig)}
    for slot, table in {**SLOTS, "init": INITS}.items():
        assert meanings[slot] == ", ".join(table)


def test_a_shape_is_not_an_option():
    assert "model.norm.dim is not an option of rms" in refusal(Spec("rms", dim=3))


def test_an_option_of_the_wrong_type_is_named():
    assert refusal(Spec("rms", eps="small")) == "model.norm.eps = 'small' is not a number"


def test_code_from_outside_is_refused_unless_trusted(private):
    assert refusal(Spec(private)).endswith("if you trust it, pass --trust-code private_blocks")
    with trust_code("private_blocks"):
        assert make(NORMS, Spec(private, start=2.0), "model.norm", dim=8).weight.tolist() == [2.0] * 8
    refusal(Spec(private))


def test_refusing_imports_nothing():
    assert "private_untrusted" not in sys.modules
    refusal(Spec("antigravity.fly"))
    assert "antigravity" not in sys.modules


def test_trust_is_for_a_package_and_not_for_similar_names(private):
    with trust_code("private"), trust_code("private_blocks.other"):
        assert "--trust-code" in refusal(Spec(private))


def test_a_path_must_lead_to_a_module_class(private):
    assert "is not a torch.nn.Module class" in refusal(Spec("isoflop.files.write_text"))
    assert "is not a torch.nn.Module class" in refusal(Spec("isoflop.model.blocks.norm.Any"))
    assert "cannot be imported" in refusal(Spec("isoflop.nowhere.Norm"))
    with trust_code("private_blocks"):
        assert "is not a torch.nn.Module class" in refusal(Spec("private_blocks.norms.helper"))


def test_paths_into_isoflop_need_no_trust():
    assert isinstance(make(NORMS, Spec("isoflop.model.blocks.norm.LayerNorm"), "model.norm", dim=8), LayerNorm)


def test_a_private_block_works_in_a_whole_model(private):
    config = ModelConfig(vocab_size=19, context=8, layers=2, d_model=16, heads=2, norm=private)
    with trust_code("private_blocks"):
        model = GPT(config)
    assert isinstance(model.norm, Scale)
    assert model(torch.zeros(2, 8, dtype=torch.long)).shape == (2, 8, 19)
