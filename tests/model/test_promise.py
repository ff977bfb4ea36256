"""Law 3: the properties of every entry of every table. A new entry is tested by being in its table."""

import math
from itertools import accumulate

import pytest
import torch
from safetensors.torch import load, save
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isoflop.generate.cache import KVCache
from isoflop.generate.layout import narrow
from isoflop.model.blocks.part import Linear, Part
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.count import count
from isoflop.model.gpt import GPT
from isoflop.model.registry import SLOTS

T = 11
ENTRIES = [(slot, Spec(name)) for slot, table in SLOTS.items() for name in table]
VARIANTS = [  # options that change what an entry computes
    ("norm", Spec("layer", bias=False)),
    ("norm", Spec("rms", gain=False)),
    ("norm", Spec("batch", over="batch_time", momentum=0.3)),
    ("position", Spec("rotary", interleaved=True, base=100.0)),
    ("position", Spec("sinusoidal", scale=0.1)),
    ("position", Spec("relative", base=100.0)),
    ("attention", Spec("full", kv_heads=2)),
    ("attention", Spec("full", kv_heads=1, qk_norm=True, bias=False)),
    ("attention", Spec("full", qk_norm=True, qk_gain=False)),
    ("attention", Spec("full", qk_norm=True, qk_scale=1.2)),
    ("attention", Spec("full", soft_cap=2.0, kv_heads=2)),
    ("attention", Spec("banded", window=4)),
    ("attention", Spec("banded", window=1)),
    ("attention", Spec("banded", window=3, kv_heads=2, soft_cap=2.0)),
    ("attention", Spec("alternating", pattern=(Spec("banded", window=3), "none"))),
    ("attention", Spec("latent", kv_rank=5, q_rank=7, rope_dim=6)),
    ("attention", Spec("latent", soft_cap=2.0)),
    ("feed_forward", Spec("mlp", activation="relu2", bias=False, ratio=3.0)),
    ("feed_forward", Spec("mlp", activation="gelu_tanh", d_ff=20)),
    ("feed_forward", Spec("gated", activation="gelu", bias=True)),
    ("feed_forward", Spec("moe", top_k=1, normalise=False, d_ff=8)),
    ("feed_forward", Spec("moe", experts=4, top_k=3, shared=2, gated=True, activation="silu", balance=0.0)),
]


def name_of(case):
    slot, spec = case
    return "-".join([slot, spec.name, *(f"{key}={value}" for key, value in spec.options)])


TOGETHER = [  # entries that act on each other
    {"position": position, "attention": attention}
    for position in ("rotary", "alibi", "relative")
    for attention in (
        Spec("full", kv_heads=2, qk_norm=True),
        Spec("full", soft_cap=2.0),
        Spec("banded", window=4),
        Spec("latent"),
    )
    if (position, attention.name) != ("relative", "latent")  # refused
]
BESIDE = [  # options beside the slots
    {"value_embedding": 1},
    {"value_embedding": 2, "value_gate": False, "attention": Spec("full", kv_heads=2, qk_norm=True)},
    {"value_embedding": 1, "attention": Spec("banded", window=3, kv_heads=1)},
    {"value_embedding": 1, "attention": Spec("alternating", pattern=(Spec("banded", window=4), "full"))},
    {"embedding_shortcut": True},
    {"embedding_shortcut": True, "embedding_norm": True, "wiring": "post"},
    {"embedding_shortcut": True, "shortcut_residual": (1.15, 1.05), "shortcut_embedding": (0.2, 0.05)},
    {"smear": True},
    {"backout": True},
    {"smear": True, "backout": True, "embedding_norm": True, "embedding_shortcut": True, "layers": 3},
    {"logit_cap": 30.0},
    {"logit_cap": 30.0, "value_embedding": 1, "embedding_shortcut": True, "wiring": "parallel", "tied_head": True},
]


def name_together(case):
    return "-".join(name_of(item) if isinstance(item[1], Spec) else f"{item[0]}={item[1]}" for item in case.items())


@pytest.fixture(
    params=[*({slot: spec} for slot, spec in ENTRIES + VARIANTS), *TOGETHER, *BESIDE],
    ids=name_together,
)
def config(request):
    base = {
        "vocab_size": 19,
        "context": T + 1,
        "layers": 2,
        "d_model": 16,
        "heads": 4,
        "norm": "layer",
        "position": "learned",
    }
    base |= {"norm": "layer", "position": "learned", "attention": "full", "feed_forward": "mlp", "init": "gpt2"}
    return ModelConfig(**{**base, **request.param})


def build(config, seed=0):
    torch.manual_seed(seed)
    return GPT(config).eval()


def stirred(config):
    """A model with no weight at a special value, so that nothing hides behind a zero, and statistics of some tokens."""
    model = build(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
        model.train()(some_tokens(config, batch=3))
    return model.eval()


def some_tokens(config, batch=2):
    return torch.randint(config.vocab_size, (batch, T), generator=torch.Generator().manual_seed(1))


def test_maps_the_residual_stream_to_itself(config):
    model, tokens = stirred(config), some_tokens(config)
    x = torch.randn(2, T, config.d_model)
    for unit in model.units():
        assert unit(x, **model.extra_inputs(tokens, x)).shape == x.shape
    assert model.hidden(tokens).shape == x.shape


def test_meta_then_reset_equals_construction(config):
    with torch.device("meta"):
        late = GPT(config)
    tensors = [*late.parameters(), *late.buffers()]
    assert all(t.is_meta for t in tensors)
    late.to_empty(device="cpu")
    with torch.no_grad():
        for t in [*late.parameters(), *late.buffers()]:
            t.fill_(math.nan)  # whatever reset_parameters forgets shows
    torch.manual_seed(7)
    late.reset_parameters()
    after = torch.rand(1)
    direct = build(config, seed=7)
    assert torch.equal(after, torch.rand(1)), "construction and reset draw differently from the global generator"
    pairs = zip([*late.parameters(), *late.buffers()], [*direct.parameters(), *direct.buffers()], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_models_share_no_tensors(config):
    one, other = stirred(config), stirred(config)
    tokens = some_tokens(config)
    before = one(tokens)
    with torch.no_grad():
        for t in [*other.parameters(), *other.buffers()]:
            t.fill_(0.5)
    other.train()(tokens)
    assert torch.equal(one(tokens), before)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_is_causal_by_gradient(config, training):
    model = stirred(config).train(training)
    seen = {}
    model.embedding.register_forward_hook(lambda m, i, out: seen.update(x=out.detach().requires_grad_()) or seen["x"])
    h = model.hidden(some_tokens(config, batch=4))
    direction = torch.randn_like(h)
    leaks = 0.0
    for t in range(T):
        (grad,) = torch.autograd.grad((h * direction)[:, t].sum(), seen["x"], retain_graph=True)
        assert grad[:, t].abs().sum() > 0
        leaks += grad[:, t + 1 :].abs().sum().item()
    assert (leaks == 0) == declared_causal(model)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_is_causal_by_changing_a_token(config, training):
    """What a gradient does not see: a choice, such as a router's, that a later token turns over."""
    model, tokens = stirred(config).train(training), some_tokens(config, batch=4)
    with torch.no_grad():
        before = model(tokens)
        moved = 0.0
        for t in range(T - 1):
            changed = tokens.clone()
            changed[:, t + 1] = (changed[:, t + 1] + 7) % config.vocab_size
            after = model(changed)
            assert not torch.allclose(after[:, t + 1], before[:, t + 1], atol=1e-4)
            moved = max(moved, (after - before)[:, : t + 1].abs().max().item())
    assert (moved < 1e-5 * before.abs().max()) == declared_causal(model)


def declared_causal(model):
    parts = [m for m in model.modules() if isinstance(m, Part)]
    return all(m.causal and (m.causal_in_training or not model.training) for m in parts)


def test_cached_decode_equals_the_full_forward(config):
    model = stirred(config).double()
    tokens = some_tokens(config)
    full = model(tokens)
    for pieces in ([1] * T, [4, 1, 3, 1, 2], [T]):
        cache = KVCache(config.context)
        ends = list(accumulate(pieces))
        parts = [model(tokens[:, end - n : end], cache) for n, end in zip(pieces, ends, strict=True)]
        torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=1e-9, atol=1e-9)


def test_gradients_exist_and_are_finite(config):
    model = stirred(config).train()
    torch.nn.functional.cross_entropy(
        model(some_tokens(config)).flatten(0, 1), some_tokens(config).flatten()
    ).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, f"{name} is not used"
        assert p.grad.isfinite().all(), name


def test_runs_in_bfloat16(config):
    model, tokens = stirred(config), some_tokens(config)
    exact = model(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(tokens).float()
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_its_gradient_in_bfloat16_is_close_to_float32s(config):
    if config.norm.name == "batch":
        pytest.skip("where two sequences have the same token its variance is a rounding error")
    model, tokens = stirred(config).train(), some_tokens(config)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        model.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            loss = torch.nn.functional.cross_entropy(model(tokens).float().flatten(0, 1), tokens.flatten())
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    exact, rough = gradients
    assert (rough - exact).norm() < 0.1 * exact.norm()


def test_decodes_rounded_to_bfloat16(config):
    """What `sample --dtype bfloat16` does: the same model, nearly."""
    model, tokens = stirred(config), some_tokens(config)
    with torch.no_grad():
        exact = model(tokens)
        narrow(model)
        cache = KVCache(config.context)
        rough = torch.cat([model(tokens[:, t : t + 1], cache) for t in range(tokens.shape[1])], dim=1).float()
    assert (rough - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_counts_are_those_of_the_executed_operations(config):
    """What the parts declare, against torch's own counter of the products that ran (which does not halve attention)."""
    model = stirred(config)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(some_tokens(config, batch=1))
    parts = [m for m in model.modules() if isinstance(m, Part)]
    leaves = [m for m in model.modules() if isinstance(m, (Part, Linear))]
    matmul = sum(m.matmul_weights() for m in leaves)
    assert counter.get_total_flops() == T * (2 * matmul + sum(4 * m.score_width * T for m in parts))
    seen = {m: sum(min(t, m.window or T) for t in range(1, T + 1)) / T for m in parts}
    assert model.flops(T) == pytest.approx(2 * matmul + sum(4 * m.score_width * seen[m] for m in parts))
    counted = count(model)
    assert counted.matmul == matmul
    statistics = sum(t.numel() for name, t in model.named_buffers() if name in model.state_dict())
    assert counted.total == sum(t.numel() for t in save_and_load(model).values()) - statistics


def save_and_load(model):
    return load(save(model.state_dict()))


def test_saves_and_loads(config):
    model, other = stirred(config), build(config, seed=99)
    other.load_state_dict(save_and_load(model))
    tokens = some_tokens(config)
    assert torch.equal(other(tokens), model(tokens))
