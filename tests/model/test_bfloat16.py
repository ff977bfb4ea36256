"""The faster paths for bfloat16 on a CPU equal the plain ones (law 8)."""

import pytest
import torch
from torch.nn import functional as F

from isoflop.model.blocks import attend
from isoflop.model.blocks.attention import Attention
from isoflop.model.blocks.cross_attention import CrossAttention
from isoflop.model.blocks.part import FEW_ROWS, Linear, product
from isoflop.model.blocks.position import Position

ROUNDING = 2**-7  # two roundings to bfloat16, relative to the whole


def rough(x, exact):
    return float((x.double() - exact).norm() / exact.norm())


def some(*shape):
    return torch.randn(*shape).bfloat16()


@pytest.fixture
def calls(monkeypatch):
    real, seen = attend.attend_unfused, []
    monkeypatch.setattr(attend, "attend_unfused", lambda *a: seen.append(a) or real(*a))
    return seen


SHAPES = {  # B, H, G, T, S, K, V, window
    "plain": (3, 4, 4, 64, 64, 32, 32, 0),
    "one head": (2, 1, 1, 256, 256, 96, 96, 0),
    "keys shared": (2, 6, 2, 33, 33, 16, 16, 0),
    "wide values": (2, 2, 2, 20, 20, 8, 24, 0),
    "window": (2, 4, 2, 40, 40, 16, 16, 7),
    "window in blocks": (1, 2, 2, 300, 300, 16, 16, 130),
    "last queries": (2, 2, 1, 5, 30, 16, 16, 0),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_unfused_attention_equals_fused(shape, scale, calls):
    B, H, G, T, S, K, V, window = shape
    torch.manual_seed(0)
    q, k, v, dy = some(B, T, H, K), some(B, S, G, K), some(B, S, G, V), some(B, H, T, V)
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        given = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        y = attend.attend(*(x.transpose(1, 2) for x in given), None, window=window, scale=scale)
        results.append([y.detach(), *torch.autograd.grad(y, given, dy.to(dtype))])
        assert bool(calls) == (dtype == torch.bfloat16), "float64 goes the plain way"
        calls.clear()
    for mine, exact in zip(*results, strict=True):
        assert mine.dtype == torch.bfloat16
        assert rough(mine, exact) < 2 * ROUNDING


@pytest.mark.parametrize("offset", [0.0, 4.0, 16.0])
def test_a_common_offset_of_scores_costs_no_precision(offset):
    """A softmax is invariant to it, so that it must not use up the eight bits of the scores."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 128, 64) for _ in range(3))
    q[..., 0], k[..., 0] = 8.0, k[..., 0] + offset  # adds `offset` to every score
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        given = [x.bfloat16().to(dtype).requires_grad_() for x in (q, k, v)]
        y = attend.attend(*given, None)
        results.append([y.detach(), *torch.autograd.grad(y.float().square().sum(), given)])
    for mine, exact in zip(*results, strict=True):
        assert rough(mine, exact) < 4 * ROUNDING


@pytest.mark.parametrize(
    ("change", "used"),
    [
        ({}, True),
        ({"T": attend.FEW_KEYS}, True),
        ({"T": attend.FEW_KEYS + 1}, False),
        ({"T": 1}, False),
        ({"dtype": torch.float32}, False),
        ({"grad": False}, False),
        ({"dropout": 0.1}, False),
        ({"soft_cap": 5.0}, False),
        ({"bias": True}, False),
    ],
    ids=str,
)
def test_unfused_attention_is_used_only_where_faster_and_equal(change, used, calls):
    case = {"T": 16, "dtype": torch.bfloat16, "grad": True, "dropout": 0.0, "soft_cap": 0.0, "bias": False} | change
    T = case["T"]
    x = torch.randn(1, 1, T, 8, dtype=case["dtype"], requires_grad=True)
    bias = torch.zeros(T, T, dtype=case["dtype"]) if case["bias"] else None
    with torch.set_grad_enabled(case["grad"]):
        attend.attend(x, x, x, bias, dropout=case["dropout"], soft_cap=case["soft_cap"])
    assert bool(calls) == used


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_one_product_for_queries_keys_and_values_equals_three(bias, kv_heads):
    torch.manual_seed(0)

    def fill(weight, role):
        torch.nn.init.normal_(weight, std=0.3)

    full = Attention(
        d_model=32,
        heads=4,
        head_dim=8,
        layer=0,
        dropout=0.0,
        position=lambda width: Position(),
        init=fill,
        kv_heads=kv_heads,
        bias=bias,
    )
    for each in (full.q, full.k, full.v):
        if bias:
            torch.nn.init.normal_(each.bias)
    x = torch.randn(2, 5, 32, requires_grad=True)
    weights = [p for each in (full.q, full.k, full.v) for p in each.parameters()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together, apart = full.project(x), [each(x) for each in (full.q, full.k, full.v)]
    dy = [torch.randn_like(y) for y in together]
    for mine, plain in zip(together, apart, strict=True):
        assert mine.equal(plain)
    gradients = [torch.autograd.grad(y, [x, *weights], dy) for y in (together, apart)]
    for mine, plain in zip(*gradients, strict=True):
        assert rough(mine, plain.double()) < ROUNDING
    assert [y.equal(each(x)) for y, each in zip(full.project(x), (full.q, full.k, full.v), strict=True)] == [True] * 3


@pytest.mark.parametrize("rows", [(1,), (1, 1), (2, 3), (FEW_ROWS,), (FEW_ROWS + 1,), (0, 4), ()], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_the_product_of_few_rows_equals_the_plain_product(rows, bias):
    torch.manual_seed(0)
    x, weight, b = some(*rows, 40), some(24, 40), some(24) if bias else None
    with torch.no_grad():
        y = product(x, weight, b)
    exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
    assert y.shape == exact.shape
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous()
    assert torch.allclose(y.double(), exact, rtol=2**-7, atol=2**-5)


def test_a_product_that_needs_gradients_has_them():
    linear = Linear(8, 4, bias=True, init=lambda weight, role: torch.nn.init.ones_(weight)).bfloat16()
    linear(torch.ones(1, 8, dtype=torch.bfloat16)).sum().backward()
    assert linear.weight.grad.equal(torch.ones(4, 8, dtype=torch.bfloat16))


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_unfused_cross_attention_equals_fused(kv_heads, masked):
    """With as many sequences as queries, so that no mask is taken for another."""
    torch.manual_seed(0)
    cross = CrossAttention(
        d_model=32,
        heads=4,
        head_dim=8,
        dropout=0.0,
        position=Position(),
        init=lambda weight, role: torch.nn.init.normal_(weight, std=0.3),
        kv_heads=kv_heads,
        bias=False,
    )
    x, memory = torch.randn(5, 5, 32), torch.randn(5, 7, 32)
    visible = torch.rand(5, 7) > 0.4 if masked else None
    if masked:
        visible[:, 0] = True
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        cross.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16):
            y = cross(x, *cross.remember(memory), visible)
        y.float().square().sum().backward()
        found.append([y.detach(), *(p.grad for p in cross.parameters())])
    for mine, exact in zip(*found, strict=True):
        assert rough(mine, exact.double()) < 3 * ROUNDING
