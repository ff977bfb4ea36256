import pytest
import torch
from torch import nn
from torch.nn import functional as F

from isoflop.optim.build import build, clip_gradients, set_lr
from isoflop.optim.config import OptimConfig
from isoflop.optim.muon import Muon


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(13, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(2))
        self.head = nn.Linear(8, 13, bias=False)

    def units(self):
        return list(self.blocks)

    def forward(self, tokens):
        h = self.embed(tokens)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h)


def groups(optimizers):
    return [group for optimizer in optimizers for group in optimizer.param_groups]


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_every_parameter_is_trained_once_at_its_rate_and_decay(name):
    model = Model()
    config = OptimConfig(name=name, lr=0.01, matrix_lr=0.03, weight_decay=0.2)
    optimizers = build(model, config)
    owned = [id(p) for group in groups(optimizers) for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())
    for group in groups(optimizers):
        muon = name == "muon" and group["name"] == "matrices"
        assert group["lr"] == group["base_lr"] == (0.03 if muon else 0.01)
        assert group["weight_decay"] == (0.0 if group["name"] == "vectors" else 0.2)
    assert any(isinstance(o, Muon) for o in optimizers) == (name == "muon")


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_the_head_may_have_its_own_rate(name):
    rates = {group["name"]: group["base_lr"] for group in groups(build(Model(), OptimConfig(name=name, head_lr=0.002)))}
    assert rates["head"] == 0.002
    assert rates["embedding"] == rates["vectors"] == OptimConfig().lr


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_the_embedding_may_have_its_own_rate(name):
    config = OptimConfig(name=name, embedding_lr=0.05)
    rates = {group["name"]: group["base_lr"] for group in groups(build(Model(), config))}
    assert rates["embedding"] == 0.05
    assert rates["head"] == rates["vectors"] == config.lr


class WithValues(Model):
    def __init__(self):
        super().__init__()
        self.values = nn.Embedding(13, 8)
        self.values.role = "value"


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_value_embeddings_may_have_their_own_rate(name):
    for own, expected in ((0.0, 0.05), (0.02, 0.02)):
        config = OptimConfig(name=name, embedding_lr=0.05, value_lr=own)
        rates = {group["name"]: group["base_lr"] for group in groups(build(WithValues(), config))}
        assert (rates["embedding"], rates["value"]) == (0.05, expected)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_tables_and_head_may_have_their_own_betas(name):
    config = OptimConfig(name=name, embedding_betas=(0.8, 0.995), head_betas=(0.8, 0.96))
    betas = {group["name"]: group.get("betas") for group in groups(build(WithValues(), config))}
    assert betas["embedding"] == betas["value"] == (0.8, 0.995) and betas["head"] == (0.8, 0.96)
    assert betas["vectors"] == config.betas and (betas["matrices"] == config.betas) == (name == "adamw")


def test_momentum_rises_from_one_value_to_another_over_its_steps():
    optimizers = build(Model(), OptimConfig(momentum=0.95, momentum_from=0.75, momentum_steps=4))
    for step, expected in ((0, 0.75), (1, 0.8), (4, 0.95), (5, 0.95), (2, 0.85)):
        set_lr(optimizers, 1.0, step)
        found = {group["name"]: group.get("momentum") for group in groups(optimizers)}
        assert found.pop("matrices") == pytest.approx(expected) and set(found.values()) == {None}


def test_weight_decay_has_its_factor():
    for course in ("constant", "with_lr", "linear", "cosine"):
        optimizers = build(Model(), OptimConfig(weight_decay=0.2, weight_decay_factor=3.0, weight_decay_course=course))
        set_lr(optimizers, 1.0, 0, 0.0)
        assert max(group["weight_decay"] for group in groups(optimizers)) == pytest.approx(0.6)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_weight_decay_follows_its_course(name):
    for course, factor in (("constant", 1.0), ("with_lr", 0.5), ("linear", 0.75), ("cosine", 0.853553)):
        optimizers = build(Model(), OptimConfig(name=name, weight_decay=0.2, weight_decay_course=course))
        set_lr(optimizers, 0.5, 3, 0.25)
        for group in groups(optimizers):
            assert group["weight_decay"] == pytest.approx(0.0 if group["name"] == "vectors" else 0.2 * factor)
        set_lr(optimizers, 0.0, 9, 1.0)
        assert course == "constant" or all(group["weight_decay"] == 0 for group in groups(optimizers))


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_it_learns(name):
    torch.manual_seed(0)
    model = Model()
    optimizers = build(model, OptimConfig(name=name, lr=0.01, matrix_lr=0.02))
    tokens = torch.arange(13)
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(model(tokens), (tokens * 5 + 1) % 13)
        loss.backward()
        clip_gradients(model, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_set_lr_depends_on_nothing_but_its_arguments():
    optimizers = build(Model(), OptimConfig(lr=0.01, matrix_lr=0.04))
    for scale in (0.5, 0.0, 0.25):
        set_lr(optimizers, scale)
        assert [g["lr"] for g in groups(optimizers)] == [g["base_lr"] * scale for g in groups(optimizers)]


def test_clipping_bounds_the_global_norm_and_returns_the_one_before():
    model = nn.Linear(3, 2)
    for factor, limit, after in ((10.0, 1.0, 1.0), (0.01, 1.0, None), (10.0, 0.0, None)):
        for p in model.parameters():
            p.grad = torch.full_like(p, factor)
        before = factor * 8**0.5
        norm = clip_gradients(model, limit)
        assert norm.shape == () and norm.item() == pytest.approx(before)
        total = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
        assert total == pytest.approx(after or before, rel=1e-4)


@pytest.mark.parametrize("norm", [0.5, 0.999_999, 1.0, 1.000_001, 2.0])
def test_clipping_gives_the_bits_that_torch_gives(norm):
    """Gradients that are small already are not multiplied by 1."""
    gradient = torch.randn(64)
    gradient *= norm / gradient.norm()
    ours, theirs = nn.Linear(64, 1, bias=False), nn.Linear(64, 1, bias=False)
    for model in (ours, theirs):
        model.weight.grad = gradient.clone().view(1, 64)
    clip_gradients(ours, 1.0)
    nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    assert ours.weight.grad.equal(theirs.weight.grad)


def test_a_nan_gradient_gives_a_nan_norm():
    model = nn.Linear(2, 2)
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    assert clip_gradients(model, 1.0).isnan()
