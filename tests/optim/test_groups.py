import pytest
import torch
from torch import nn

from isoflop.optim.groups import split


class Block(nn.Module):
    def __init__(self, width, buckets=0):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.experts = nn.Parameter(torch.randn(3, width, width))
        self.scale = nn.Parameter(torch.ones(()))
        if buckets:
            self.bias = nn.Embedding(buckets, 2)


class Model(nn.Module):
    def __init__(self, tied=False, buckets=0):
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.blocks = nn.ModuleList(Block(4, buckets) for _ in range(2))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def units(self):
        return list(self.blocks)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("buckets", [0, 5])
def test_every_trainable_parameter_is_in_exactly_one_group(tied, buckets):
    model = Model(tied, buckets)
    model.norm.bias.requires_grad_(False)
    placed = [id(p) for group in split(model) for p in group.parameters.values()]
    assert len(placed) == len(set(placed))
    assert set(placed) == {id(p) for p in model.parameters() if p.requires_grad}
    names = dict(model.named_parameters())
    assert all(names[name] is p for group in split(model) for name, p in group.parameters.items())


def test_which_parameters_are_in_which_group():
    groups = {group.name: set(group.parameters) for group in split(Model(buckets=5))}
    assert groups["matrices"] == {f"blocks.{i}.{name}" for i in (0, 1) for name in ("up.weight", "experts")}
    assert groups["embedding"] == {"embed.weight", "blocks.0.bias.weight", "blocks.1.bias.weight"}
    assert groups["head"] == {"head.weight"}
    assert {"norm.weight", "blocks.0.scale", "blocks.1.up.bias"} <= groups["vectors"]


def test_gains_and_biases_do_not_decay():
    for group in split(Model()):
        assert all(group.decay == (p.ndim >= 2) for p in group.parameters.values())


def test_a_tied_head_is_an_embedding_and_empty_groups_are_left_out():
    groups = {group.name: group.parameters for group in split(Model(tied=True))}
    assert "head" not in groups and list(groups["embedding"]) == ["embed.weight"]


def test_a_model_without_units_raises():
    with pytest.raises(TypeError, match="units"):
        split(nn.Linear(2, 2))
