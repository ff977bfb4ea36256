"""What the blocks compute, against the formula written out or torch's own."""

import math

import pytest
import torch
from torch.nn import functional as F

from isoflop.errors import UserError
from isoflop.generate.cache import KVCache
from isoflop.model.blocks.attention import Attention
from isoflop.model.blocks.feed_forward import MLP, Gated, relu2
from isoflop.model.blocks.latent import Latent
from isoflop.model.blocks.norm import BatchNorm, LayerNorm, RMSNorm
from isoflop.model.blocks.position import Alibi, Position, Relative, Rotary, Sinusoidal, slopes
from isoflop.model.blocks.wiring import DeepNorm, NoResidual, Parallel, PostNorm, PreNorm, ReZero, Sandwich
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.gpt import GPT
from isoflop.model.init import GPT2, Modern
from isoflop.model.registry import FEED_FORWARDS, make

INIT = GPT2(layers=1, std=0.3)


@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rms_norm_equals_torch(gain, dtype):
    norm = RMSNorm(dim=24, eps=1e-3, gain=gain).to(dtype)
    if gain:
        torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 5, 24, dtype=dtype, requires_grad=True)
    dy = torch.randn_like(x)
    inputs = [x, *norm.parameters()]
    expected = F.rms_norm(x, (24,), norm.weight, 1e-3)
    torch.testing.assert_close(norm(x), expected)
    for ours, theirs in zip(
        torch.autograd.grad(norm(x), inputs, dy), torch.autograd.grad(expected, inputs, dy), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_rms_norm_of_zeros_is_zero():
    x = torch.zeros(2, 4, requires_grad=True)
    y = RMSNorm(dim=4)(x)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 4)) and x.grad.isfinite().all()


def test_rms_norm_gradient_by_differences():
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(RMSNorm(dim=6).double(), (x,))


def test_layer_norm_has_zero_mean_and_unit_variance():
    y = LayerNorm(dim=64)(torch.randn(3, 64) * 5 + 2)
    torch.testing.assert_close(y.mean(-1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(-1, correction=0), torch.ones(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("over", ["batch", "batch_time"])
def test_batch_norm_equals_torch(over):
    """One BatchNorm1d over all positions, or one a position that shares gain and bias."""
    B, T, D = 4, 5, 3
    norm = BatchNorm(dim=D, context=T, over=over, momentum=0.3).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    theirs = torch.nn.BatchNorm1d(T * D if over == "batch" else D, momentum=0.3).double()
    with torch.no_grad():
        theirs.weight.copy_(norm.weight.repeat(T if over == "batch" else 1))
        theirs.bias.copy_(norm.bias.repeat(T if over == "batch" else 1))
    for _ in range(3):
        x = torch.randn(B, T, D, dtype=torch.float64) * 3 + 1
        rows = x.flatten(1) if over == "batch" else x.flatten(0, 1)
        torch.testing.assert_close(norm(x), theirs(rows).view_as(x))
    torch.testing.assert_close(norm.mean.flatten(), theirs.running_mean)
    torch.testing.assert_close(norm.var.flatten(), theirs.running_var)
    torch.testing.assert_close(norm.eval()(x), theirs.eval()(rows).view_as(x))


def test_batch_norm_is_the_formula_position_by_position():
    norm = BatchNorm(dim=3, context=6).double()
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    expected = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), expected)
    assert torch.equal(norm.mean[5], torch.zeros(3)) and torch.equal(norm.var[5], torch.ones(3))  # not seen: as made


def test_batch_norm_in_evaluation_uses_the_positions_statistics():
    norm = BatchNorm(dim=3, context=6).double()
    norm(torch.randn(4, 6, 3, dtype=torch.float64) * torch.arange(1, 7).view(1, 6, 1))
    x = torch.randn(1, 6, 3, dtype=torch.float64)
    whole = norm.eval()(x)
    torch.testing.assert_close(norm(x[:, 4:], 4), whole[:, 4:])
    assert not torch.allclose(norm(x[:, 4:]), whole[:, 4:])


def test_batch_norm_keeps_float32_statistics_under_autocast():
    norm = BatchNorm(dim=16, context=4)
    x = torch.randn(64, 4, 16) + 100
    with torch.autocast("cpu", dtype=torch.bfloat16):
        norm(x)
        norm(x.bfloat16())
    assert norm.mean.dtype == torch.float32
    torch.testing.assert_close(norm.mean, 0.19 * x.mean(0), rtol=2e-3, atol=0)


@pytest.mark.parametrize("over", ["batch", "batch_time"])
def test_batch_norm_of_one_value_is_refused_in_training_alone(over):
    norm, x = BatchNorm(dim=3, context=4, over=over), torch.randn(1, 1, 3)
    with pytest.raises(UserError, match=r"raise batch\.sequences"):
        norm(x)
    norm.eval()(x)


def test_squared_relu_and_its_gradient():
    x = torch.tensor([-2.0, -0.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    assert relu2(x).tolist() == [0.0, 0.0, 0.25, 9.0]
    assert torch.autograd.grad(relu2(x).sum(), x)[0].tolist() == [0.0, 0.0, 1.0, 6.0]


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_rotates_pairs_by_their_angle(interleaved):
    K, base, start = 8, 50.0, 3
    rotary = Rotary(head_dim=K, context=16, base=base, interleaved=interleaved).double()
    x = torch.randn(1, 1, 5, K, dtype=torch.float64)
    y = rotary.rotate(x, start)
    for t in range(5):
        for i in range(K // 2):
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + K // 2)
            turn = (start + t) / base ** (2 * i / K)
            turned = complex(x[0, 0, t, a], x[0, 0, t, b]) * complex(math.cos(turn), math.sin(turn))
            assert abs(complex(y[0, 0, t, a], y[0, 0, t, b]) - turned) < 1e-6


def test_rotary_scores_depend_on_distance_alone():
    rotary = Rotary(head_dim=16, context=4096)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    near = (rotary.rotate(q, 10) * rotary.rotate(k, 3)).sum()
    far = (rotary.rotate(q, 4010) * rotary.rotate(k, 4003)).sum()
    torch.testing.assert_close(near, far, atol=1e-4, rtol=1e-4)


def test_sinusoidal_is_the_papers_table():
    table = Sinusoidal(d_model=6, context=9).table_TD
    for t in (0, 1, 8):
        for i in range(3):
            turn = t / 10_000 ** (2 * i / 6)
            assert table[t, 2 * i].item() == pytest.approx(math.sin(turn), abs=1e-6)
            assert table[t, 2 * i + 1].item() == pytest.approx(math.cos(turn), abs=1e-6)


def make_attention(heads=4, position=None, kind=Attention, **options):
    shapes = {"d_model": 16, "heads": heads, "head_dim": 4, "layer": 0, "dropout": 0.0, "init": INIT}
    return kind(position=lambda width: position or Position(), **shapes, **options).double()


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_is_the_formula(kv_heads):
    """Head by head, position by position, with plain Python sums over the keys."""
    torch.manual_seed(0)
    attention = make_attention(kv_heads=kv_heads)
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    q, k, v = (layer(x)[0].unflatten(-1, (-1, 4)) for layer in (attention.q, attention.k, attention.v))
    rows = []
    for t in range(5):
        heads = []
        for h in range(4):
            g = h // (4 // kv_heads)
            weights = torch.stack([(q[t, h] * k[s, g]).sum() / 2 for s in range(t + 1)]).softmax(0)
            heads.append(sum(w * v[s, g] for s, w in enumerate(weights)))
        rows.append(torch.cat(heads))
    torch.testing.assert_close(attention(x)[0], attention.out(torch.stack(rows)))


def test_with_qk_norm_scores_do_not_depend_on_the_size_of_queries():
    torch.manual_seed(0)
    attention = make_attention(qk_norm=True, bias=False)
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    before = attention(x)
    with torch.no_grad():
        attention.q.weight.mul_(100.0)
    torch.testing.assert_close(attention(x), before, rtol=1e-4, atol=1e-6)


class Distance(Position):
    """A bias that depends on the query, as Transformer-XL's does: q_0 * (t - s)."""

    def bias(self, q_BHTK, S):
        t_T1 = torch.arange(S - q_BHTK.shape[2], S).unsqueeze(1)
        return q_BHTK[..., :1] * (t_T1 - torch.arange(S))


def test_a_position_may_add_a_bias_to_the_scores():
    torch.manual_seed(0)
    attention = make_attention(position=Distance())
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (attention.q, attention.k, attention.v))
    scores = q @ k.transpose(-1, -2) / 2 + Distance().bias(q, 5)
    weights = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf).softmax(-1)
    torch.testing.assert_close(attention(x), attention.out((weights @ v).transpose(1, 2).flatten(2)))


def naive_attention(scores, v, window=5):
    """Softmax over the visible keys and weighted values, one query at a time: scores[h][t][s], v[h] (S, K)."""
    rows = []
    for t in range(5):
        first = max(0, t - window + 1)
        heads = [torch.stack(scores[h][t][first : t + 1]).softmax(0) @ v[h][first : t + 1] for h in range(len(v))]
        rows.append(torch.cat(heads))
    return torch.stack(rows)


def heads_of(x, width=4):
    return x[0].unflatten(-1, (-1, width)).transpose(0, 1)


def test_banded_attention_sees_a_window_and_no_more():
    torch.manual_seed(0)
    banded = make_attention(window=3)
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    q, k, v = (heads_of(layer(x)) for layer in (banded.q, banded.k, banded.v))
    scores = [[[q[h, t] @ k[h, s] / 2 for s in range(5)] for t in range(5)] for h in range(4)]
    torch.testing.assert_close(banded(x)[0], banded.out(naive_attention(scores, v, window=3)))


def test_a_window_of_the_whole_context_is_full_attention():
    torch.manual_seed(0)
    banded, full = make_attention(window=5), make_attention()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    full.load_state_dict(banded.state_dict())
    torch.testing.assert_close(banded(x), full(x))


@pytest.mark.parametrize("options", [{}, {"kv_heads": 2}, {"soft_cap": 2.0}])
@pytest.mark.parametrize("position", [None, Distance()])
def test_blocked_banded_attention_equals_masked(monkeypatch, options, position):
    torch.manual_seed(0)
    banded = make_attention(window=3, position=position, **options)
    x = torch.randn(2, 23, 16, dtype=torch.float64)
    at_once = banded(x)
    monkeypatch.setattr("isoflop.model.blocks.attend.BLOCK", 4)
    torch.testing.assert_close(banded(x), at_once)
    cache = KVCache(23)
    parts = []
    for start, end in ((0, 7), (7, 23)):
        parts.append(banded(x[:, start:end], cache))
        cache.advance(end - start)
    torch.testing.assert_close(torch.cat(parts, dim=1), at_once)


def test_soft_cap_is_the_formula_and_bounds_the_scores():
    torch.manual_seed(0)
    capped, x = make_attention(soft_cap=0.5, kv_heads=2), torch.randn(1, 5, 16, dtype=torch.float64) * 3
    q, k, v = (heads_of(layer(x)) for layer in (capped.q, capped.k, capped.v))
    k, v = k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)
    scores = [[[0.5 * torch.tanh(q[h, t] @ k[h, s] / 2 / 0.5) for s in range(5)] for t in range(5)] for h in range(4)]
    assert (q @ k.transpose(-1, -2) / 2).abs().max() > 1.0  # the cap has something to do
    torch.testing.assert_close(capped(x)[0], capped.out(naive_attention(scores, v)))
    wide = make_attention(soft_cap=1e6, kv_heads=2)
    plain = make_attention(kv_heads=2)
    plain.load_state_dict(wide.state_dict())
    torch.testing.assert_close(wide(x), plain(x))


def test_transformer_xl_positions_are_the_papers_equation():
    """1901.02860, section 3.3: (a) + (b) + (c) + (d), term by term."""
    torch.manual_seed(0)
    position = Relative(d_model=16, heads=4, head_dim=4, context=6, init=INIT, base=50.0)
    torch.nn.init.normal_(position.u)
    torch.nn.init.normal_(position.v)
    attention = make_attention(position=position)
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    q, k, values = (heads_of(layer(x)) for layer in (attention.q, attention.k, attention.v))
    u, v = position.u.view(4, 4), position.v.view(4, 4)

    def far(h, distance):
        turns = [distance / 50.0 ** (2 * i / 16) for i in range(8)]
        r = torch.tensor([f(turn) for turn in turns for f in (math.sin, math.cos)], dtype=torch.float64)
        return position.project.weight[4 * h : 4 * h + 4] @ r

    def score(h, t, s):
        a, b = q[h, t] @ k[h, s], q[h, t] @ far(h, t - s)
        c, d = u[h] @ k[h, s], v[h] @ far(h, t - s)
        return (a + b + c + d) / 2

    scores = [[[score(h, t, s) for s in range(t + 1)] for t in range(5)] for h in range(4)]
    expected = attention.out(naive_attention(scores, values))
    torch.testing.assert_close(attention(x)[0], expected, atol=1e-6, rtol=1e-5)  # the table is kept in float32


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (8, [2.0**-i for i in range(1, 9)]),
        (4, [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]),
        (6, [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]),
        (12, [2.0**-i for i in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]),
        (1, [2.0**-8]),
    ],
)
def test_alibi_slopes_are_the_papers(heads, expected):
    assert slopes(heads) == pytest.approx(expected, rel=1e-12)


def test_alibi_subtracts_the_distance_times_the_slope():
    bias = Alibi(heads=4).bias(torch.zeros(1, 4, 2, 8), 5)
    assert bias.shape == (4, 2, 5)
    for h, slope in enumerate((2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8)):
        for i, t in enumerate((3, 4)):
            assert [bias[h, i, s].item() for s in range(t + 1)] == [-slope * (t - s) for s in range(t + 1)]


def make_latent(position, **options):
    shapes = {"d_model": 16, "heads": 4, "head_dim": 4, "layer": 0, "dropout": 0.0, "init": INIT}
    return Latent(position=position, **shapes, **options).double()


def test_latent_attention_is_the_papers_equations():
    """2405.04434, equations 9 to 19, head by head."""
    torch.manual_seed(0)
    latent = make_latent(lambda width: Rotary(head_dim=width, context=8), kv_rank=6, q_rank=5, rope_dim=2)
    for norm in (latent.kv_norm, latent.q_norm):
        torch.nn.init.normal_(norm.weight)
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    c = latent.kv_norm(x @ latent.kv_down.weight.T)
    c_q = latent.q_norm(x @ latent.q_down.weight.T)
    k, v, q = (heads_of(h @ layer.weight.T) for h, layer in ((c, latent.k_up), (c, latent.v_up), (c_q, latent.q_up)))
    q_turned = heads_of(c_q @ latent.q_rope.weight.T, 2)
    k_turned = (x @ latent.k_rope.weight.T)[0]

    def turned(pair, t):  # one pair of dimensions, so that its angle is the position itself
        turned = complex(*pair.tolist()) * complex(math.cos(t), math.sin(t))
        return torch.tensor([turned.real, turned.imag], dtype=torch.float64)

    def score(h, t, s):
        content, position = q[h, t] @ k[h, s], turned(q_turned[h, t], t) @ turned(k_turned[s], s)
        return (content + position) / math.sqrt(4 + 2)

    scores = [[[score(h, t, s) for s in range(t + 1)] for t in range(5)] for h in range(4)]
    expected = latent.out(naive_attention(scores, v))
    torch.testing.assert_close(latent(x)[0], expected, atol=1e-6, rtol=1e-5)


def test_a_latent_cache_holds_the_latent_and_the_shared_key_alone():
    latent, cache = make_latent(lambda width: Rotary(head_dim=width, context=8), kv_rank=6, rope_dim=2), KVCache(8)
    latent(torch.randn(1, 5, 16, dtype=torch.float64), cache)
    held = cache.layers[0]  # numbers a position, where full has 2 H K = 32
    assert held.keys[:, :, :1].numel() + held.values[:, :, :1].numel() == 6 + 2


def test_gated_has_as_many_weights_as_an_mlp():
    weights = [
        sum(p.numel() for p in block.parameters() if p.ndim == 2)
        for block in (Gated(d_model=384, dropout=0.0, init=INIT), MLP(d_model=384, dropout=0.0, init=INIT))
    ]
    assert weights[0] == weights[1]


def test_gated_is_the_formula():
    block = Gated(d_model=8, dropout=0.0, init=INIT, activation="identity", d_ff=5)
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(block(x), ((x @ block.gate.weight.T) * (x @ block.up.weight.T)) @ block.down.weight.T)


def test_wirings_are_their_formulas():
    def halve():
        return torch.nn.Hardtanh(-0.5, 0.5)  # stands for a norm: easy to tell apart

    def f(x):
        return 2 * x + 1

    def g(x):
        return x * x

    n, x = halve(), torch.randn(2, 3, 4)
    pre = x + f(n(x))
    post = n(x + f(x))
    torch.testing.assert_close(PreNorm(branches=2, norm=halve)(x, f, g), pre + g(n(pre)))
    torch.testing.assert_close(PostNorm(branches=2, norm=halve)(x, f, g), n(post + g(post)))
    torch.testing.assert_close(Parallel(branches=2, norm=halve)(x, f, g), x + f(n(x)) + g(n(x)))
    sandwich, bare = x + n(f(n(x))), f(n(x))
    torch.testing.assert_close(Sandwich(branches=2, norm=halve)(x, f, g), sandwich + n(g(n(sandwich))))
    torch.testing.assert_close(NoResidual(branches=2, norm=halve)(x, f, g), g(n(bare)))
    deep = n(24**0.25 * x + f(x))
    torch.testing.assert_close(DeepNorm(branches=2, norm=halve, layers=12)(x, f, g), n(24**0.25 * deep + g(deep)))
    rezero = ReZero(branches=2)
    assert torch.equal(rezero(x, f, g), x)
    with torch.no_grad():
        rezero.scale.copy_(torch.tensor([0.5, -2.0]))
    torch.testing.assert_close(rezero(x, f, g), x + 0.5 * f(x) - 2.0 * g(x + 0.5 * f(x)))


def weights_of(wiring, init="gpt2", layers=8):
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=19, context=8, layers=layers, d_model=32, heads=2, wiring=wiring, init=init, feed_forward="swiglu"
    )
    return dict(GPT(config).named_parameters())


def test_deepnorm_scales_values_outputs_and_feed_forward_only():
    plain, deep = weights_of("post"), weights_of("deepnorm")
    for name, weight in deep.items():
        scaled = name.startswith("blocks.") and not any(part in name for part in (".q.", ".k.", "norm"))
        torch.testing.assert_close(weight, plain[name] * (64**-0.25 if scaled else 1.0), msg=name)


@pytest.mark.parametrize("wiring", ["sandwich", "none", "rezero"])
def test_wirings_that_need_nonzero_branches_initialise_the_last_matrix(wiring):
    weights = weights_of(wiring, init="modern")
    assert weights["blocks.0.attention.out.weight"].std().item() == pytest.approx(32**-0.5, rel=0.1)
    assert not weights_of("pre", init="modern")["blocks.0.attention.out.weight"].any()


@pytest.mark.parametrize(
    ("name", "f"),
    [("swiglu", F.silu), ("geglu", F.gelu), ("reglu", F.relu), ("bilinear", lambda x: x)],
)
def test_gated_networks_by_name(name, f):
    block = make(FEED_FORWARDS, Spec(name, d_ff=6), "model.feed_forward", d_model=8, dropout=0.0, init=INIT)
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(block(x), (f(x @ block.gate.weight.T) * (x @ block.up.weight.T)) @ block.down.weight.T)
    with pytest.raises(UserError, match=rf"feed_forward\.activation is \w+ in {name}"):
        make(FEED_FORWARDS, Spec(name, activation="relu"), "model.feed_forward", d_model=8, dropout=0.0, init=INIT)


def test_linear_equals_one_matrix():
    block = make(FEED_FORWARDS, Spec("linear", bias=False), "model.feed_forward", d_model=8, dropout=0.0, init=INIT)
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(block(x), x @ (block.down.weight @ block.up.weight).T)


def test_dropout_acts_in_training_alone():
    block = MLP(d_model=8, dropout=0.5, init=INIT)
    x = torch.randn(4, 8)
    assert not torch.equal(block.train()(x), block(x))
    assert torch.equal(block.eval()(x), block(x))


def test_modern_keeps_activations_at_one_scale_at_every_width():
    torch.manual_seed(0)
    for width in (64, 1024):
        weight = torch.empty(512, width)
        Modern()(weight, "matrix")
        assert (torch.randn(64, width) @ weight.T).std().item() == pytest.approx(1.0, rel=0.05)


def test_gpt2_scales_residual_projections_by_depth():
    torch.manual_seed(0)
    plain, residual = torch.empty(500, 500), torch.empty(500, 500)
    init = GPT2(layers=8)
    init(plain, "matrix")
    init(residual, "residual")
    assert plain.std().item() == pytest.approx(0.02, rel=0.02)
    assert residual.std().item() == pytest.approx(0.02 / 4, rel=0.02)


@pytest.mark.parametrize("build", [
    lambda: make_attention(kv_heads=3),
    lambda: make_attention(soft_cap=-1.0),
    lambda: make_attention(window=0),
    lambda: make_latent(lambda width: Position(), rope_dim=3),
    lambda: make_latent(lambda width: Position(), kv_rank=-1),
    lambda: make_latent(lambda width: Relative(d_model=16, heads=4, head_dim=width, context=4, init=INIT)),
    lambda: Relative(d_model=3, heads=1, head_dim=3, context=4, init=INIT),
    lambda: Rotary(head_dim=3, context=4),
    lambda: Sinusoidal(d_model=3, context=4),
    lambda: MLP(d_model=8, dropout=0.0, init=INIT, ratio=0.0),
    lambda: MLP(d_model=8, dropout=0.0, init=INIT, activation="rleu"),
    lambda: Gated(d_model=8, dropout=0.0, init=INIT, d_ff=-1),
    lambda: BatchNorm(dim=8, context=4, over="time"),
    lambda: BatchNorm(dim=8, context=4, momentum=0.0),
])  # fmt: skip
def test_incompatible_shapes_are_refused(build):
    with pytest.raises(UserError):
        build()
