"""The mixture of experts, against loops over tokens and published formulas."""

import math

import pytest
import torch
from torch.nn import functional as F

from isoflop.errors import UserError
from isoflop.model.blocks.feed_forward import MLP
from isoflop.model.blocks.moe import MoE
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.count import flops_per_token, parameters
from isoflop.model.gpt import GPT
from isoflop.model.init import GPT2
from isoflop.optim.build import build
from isoflop.optim.config import OptimConfig

INIT = GPT2(layers=1, std=0.5)
TINY = {"vocab_size": 19, "context": 8, "layers": 2, "d_model": 16, "heads": 2}


def make_moe(seed=0, **options):
    torch.manual_seed(seed)
    return MoE(d_model=8, dropout=0.0, init=INIT, **options).double()


def tokens(seed=1):
    return torch.randn(3, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def expert(moe, e, x):
    stacks = moe.experts
    h = stacks.up_EFD[e] @ x
    if stacks.gate_EFD is None:
        return stacks.down_EDF[e] @ F.gelu(h)
    return stacks.down_EDF[e] @ (F.gelu(stacks.gate_EFD[e] @ x) * h)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("shared", [0, 2])
def test_equals_a_loop_over_tokens(gated, normalise, shared):
    moe = make_moe(experts=5, top_k=2, gated=gated, normalise=normalise, shared=shared)
    x = tokens().requires_grad_()
    rows = []
    for x_D in x.flatten(0, 1):
        p = (moe.router.weight @ x_D).softmax(0)
        chosen = p.topk(2).indices
        scale = p[chosen].sum() if normalise else 1.0
        row = sum(p[e] / scale * expert(moe, e, x_D) for e in chosen)
        rows.append(row + moe.shared(x_D) if shared else row)
    expected = torch.stack(rows).view_as(x)
    y = moe(x)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-12)
    inputs, dy = [x, *moe.parameters()], torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(out, inputs, dy) for out in (y, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_with_every_expert_it_is_the_softmax_weighted_sum_of_all():
    moe, x = make_moe(experts=4, top_k=4), tokens()
    p = (x @ moe.router.weight.T).softmax(-1)
    outputs = torch.stack(
        [F.gelu(x @ up.T) @ down.T for up, down in zip(moe.experts.up_EFD, moe.experts.down_EDF, strict=True)], -1
    )
    torch.testing.assert_close(moe(x), (outputs * p.unsqueeze(-2)).sum(-1))


def test_the_balance_loss_of_an_even_load_is_its_coefficient():
    """Four tokens, each sure of an expert of its own: f and P are both even."""
    moe = make_moe(experts=4, top_k=1, normalise=False, balance=0.3, z=0.0)
    with torch.no_grad():
        moe.router.weight.copy_(50 * torch.eye(4, 8))
    moe(torch.eye(4, 8, dtype=torch.float64).unsqueeze(0))
    assert moe.auxiliary.item() == pytest.approx(0.3, rel=1e-9)
    assert moe.readings() == {"load_entropy": pytest.approx(1.0)}
    moe(torch.eye(4, 8, dtype=torch.float64)[:1].expand(1, 6, 8))
    assert moe.auxiliary.item() == pytest.approx(0.3 * 4, rel=1e-9)  # all to one: E f P = E
    assert moe.readings() == {"load_entropy": pytest.approx(0.0)}


def test_auxiliary_losses_are_the_formulas():
    moe, x = make_moe(experts=4, top_k=2, balance=0.7, z=0.2), tokens()
    moe(x)
    logits = x.flatten(0, 1) @ moe.router.weight.T
    p = logits.softmax(-1)
    f = F.one_hot(p.topk(2).indices, 4).sum((0, 1)) / (2 * len(p))
    expected = 0.7 * 4 * (f.double() * p.mean(0)).sum() + 0.2 * logits.exp().sum(-1).log().square().mean()
    torch.testing.assert_close(moe.auxiliary, expected, rtol=1e-6, atol=0)
    (ours,) = torch.autograd.grad(moe.auxiliary, moe.router.weight)
    (theirs,) = torch.autograd.grad(expected, moe.router.weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)


def test_the_balance_loss_evens_out_an_uneven_router():
    moe, x = make_moe(experts=4, top_k=1, normalise=False, balance=1.0, z=0.0), tokens()
    with torch.no_grad():
        moe.router.weight[0] += x.flatten(0, 1).mean(0)
    optimizer = torch.optim.SGD(moe.parameters(), lr=0.5)
    moe(x)
    first, before = moe.auxiliary.item(), moe.readings()["load_entropy"]
    for _ in range(60):
        moe(x)
        moe.auxiliary.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert moe.auxiliary.item() < first and moe.readings()["load_entropy"] > before


def test_evaluation_has_no_auxiliary_loss_and_training_gives_each_once():
    torch.manual_seed(0)
    model = GPT(ModelConfig(**TINY, feed_forward="moe"))
    ids = torch.randint(19, (2, 8))
    model(ids)
    each = [block.feed_forward.auxiliary for block in model.blocks]
    assert model.auxiliary_loss() == sum(each) and sum(each) > 0
    assert model.auxiliary_loss() == 0.0
    model.eval()(ids)
    assert model.auxiliary_loss() == 0.0
    assert 0 < model.mean_readings()["load_entropy"] <= 1


def test_active_and_total_parameters():
    """8 experts of which each token uses 2 have 4 times the weights of an MLP of equal cost, plus the router."""
    moe = ModelConfig(**TINY, feed_forward=Spec("moe", experts=8, top_k=2))
    mlp = ModelConfig(**TINY, feed_forward=Spec("mlp", bias=False))
    router = 2 * 8 * 16
    assert parameters(moe).matmul == parameters(mlp).matmul + router
    assert parameters(moe).total == parameters(mlp).total + router + 2 * 3 * (2 * 4 * 16 * 16)
    assert flops_per_token(moe) == 6 * parameters(moe).matmul


@pytest.mark.parametrize("experts", [4, 16])
@pytest.mark.parametrize("options", [{"top_k": 1, "normalise": False}, {"top_k": 3}, {"top_k": 2, "shared": 1}])
def test_the_cost_per_token_does_not_depend_on_the_number_of_experts(experts, options):
    moe = MoE(d_model=24, dropout=0.0, init=INIT, experts=experts, **options)
    mlp = MLP(d_model=24, dropout=0.0, init=INIT, bias=False)
    assert moe.flops(1) == mlp.flops(1) + 2 * experts * 24


def test_the_optimizer_trains_every_expert_that_received_a_token():
    torch.manual_seed(0)
    model = GPT(ModelConfig(**TINY, feed_forward="moe", init="gpt2"))
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizers = build(model, OptimConfig())
    model(torch.randint(19, (8, 8))).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    for i, block in enumerate(model.blocks):
        moe = block.feed_forward
        moved = (moe.experts.up_EFD - before[f"blocks.{i}.feed_forward.experts.up_EFD"]).flatten(1).norm(dim=1)
        assert ((moved > 1e-3) >= (moe.load_E > 0)).all()


def test_router_stays_in_float32_under_autocast():
    moe = make_moe().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert moe.route(tokens().bfloat16()[0]).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 1}, "experts = 1 leaves no choice to the router"),
        ({"top_k": 9}, "top_k = 9 is not between 1 and experts = 8"),
        ({"top_k": 0}, "top_k = 0 is not between"),
        ({"shared": -1}, "shared = -1 is negative"),
        ({"top_k": 1}, "set normalise=false"),
        ({"balance": -0.1}, "balance = -0.1 is negative"),
        ({"activation": "glu"}, "activation = 'glu' is not one of"),
        ({"d_ff": -3}, "d_ff = -3 gives a hidden width"),
    ],
)
def test_incompatible_numbers_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        make_moe(**options)


def test_entropy_of_an_uneven_load():
    moe = make_moe(experts=4, top_k=2)
    moe.load_E = torch.tensor([2, 1, 1, 0])
    expected = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25)) / math.log(4)
    assert moe.readings()["load_entropy"] == pytest.approx(expected)
