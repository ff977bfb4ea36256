"""One decoding step in few operations is the step of the model's own modules."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from isoflop.generate import fused
from isoflop.generate.batch import Batch, Order, next_logits
from isoflop.generate.cache import KVCache
from isoflop.generate.fused import FusedStep, fusible
from isoflop.generate.layout import joined, lay_out, narrow
from isoflop.generate.rules import Sampling
from isoflop.kernels import decoding
from isoflop.model.blocks.feed_forward import MLP
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.gpt import GPT

V, CONTEXT = 37, 24
GPT2 = {
    "norm": "layer",
    "position": "learned",
    "attention": "full",
    "feed_forward": Spec("mlp", activation="gelu_tanh"),
    "tied_head": True,
}
LLAMA = {"norm": "rms", "attention": Spec("full", kv_heads=2, bias=False), "feed_forward": "gated"}
CASES = {
    "modern": {},
    "gpt2": GPT2,
    "llama": LLAMA,
    "interleaved": {**LLAMA, "position": Spec("rotary", interleaved=True)},
    "scaled": {"position": Spec("rotary", factor=4.0, original=8, low_freq=1.0, high_freq=4.0)},
    "gains": {"attention": Spec("full", kv_heads=1, qk_norm=True)},
    "sharper": {"attention": Spec("full", kv_heads=2, qk_norm=True, qk_gain=False, qk_scale=1.3)},
    "banded": {"attention": Spec("banded", window=5)},
    "alternating": {"attention": Spec("alternating", pattern=(Spec("banded", window=3), Spec("full", kv_heads=2)))},
    "sinusoidal": {"position": "sinusoidal", "embedding_norm": True, "final_norm": False},
    "values": {"value_embedding": 1},
    "values without gate": {"value_embedding": 2, "value_gate": False, "attention": Spec("full", kv_heads=2)},
    "capped": {"logit_cap": 5.0, "norm": "none"},
    **{name: {"feed_forward": Spec("gated", activation=name, bias=True)} for name in ("relu", "relu2", "gelu", "silu")},
}
ELSE = [
    {"attention": "latent"},
    {"attention": Spec("full", soft_cap=2.0)},
    {"position": "alibi"},
    {"wiring": "post"},
    {"norm": "batch"},
    {"feed_forward": "moe"},
    {"embedding_shortcut": True},
    {"smear": True},
    {"backout": True},
]


def model_of(case, dtype=torch.float64):
    torch.manual_seed(0)
    model = GPT(ModelConfig(**{"vocab_size": V, "context": CONTEXT, "layers": 2, "d_model": 16, "heads": 4, **case}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model.eval().to(dtype)


def both(model, lengths, steps, rows=4):
    """The logits of each step by FusedStep and by the modules, on the same tokens, from prompts of these lengths."""
    longest = max(lengths)
    tokens = torch.randint(V, (len(lengths), longest + steps), generator=torch.Generator().manual_seed(1))
    caches = [KVCache(CONTEXT, slots=rows) for _ in range(2)]
    for cache in caches:
        cache.place(np.array(lengths) - longest)
        next_logits(model, tokens[:, :longest], cache)
    step = FusedStep(model, rows)
    for t in range(longest, longest + steps):
        ours = step(tokens[:, t], caches[0]).clone()
        yield ours, next_logits(model, tokens[:, t : t + 1], caches[1])


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize("narrowest", [1, 256])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_kernels_compute_the_same(case, narrowest, monkeypatch):
    monkeypatch.setattr("isoflop.generate.layout.NARROWEST", narrowest)
    model = model_of(case, torch.float32)
    step = FusedStep(model, 4)
    assert step.compiled and step.head.compiled == (narrowest == 1)
    for lengths in ([7, 7, 7], [2, 9, 1]):
        for ours, theirs in both(model, lengths, steps=9):
            torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(2, 16, 37), (8, 96, 288), (21, 130, 49), (64, 40, 100), (5, 7, 2), (33, 600, 11)]
)
def test_a_row_of_a_product_has_the_same_bits_whatever_its_neighbours(rows, inputs, outputs, threads):
    torch.set_num_threads(threads)
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    y = decoding.product_(torch.empty(rows, outputs), x, weight, bias)
    torch.testing.assert_close(y, torch.addmm(bias, x, weight.t()), rtol=1e-4, atol=1e-4)
    alone = [decoding.product_(torch.empty(1, outputs), x[i : i + 1], weight, bias) for i in range(rows)]
    assert torch.equal(y, torch.cat(alone))
    added = decoding.product_(y.clone(), x, weight, None, add=True)
    torch.testing.assert_close(added, y + x @ weight.t(), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize("threads", [1, 2])
def test_the_kernels_of_norm_and_activation_equal_torchs(threads):
    torch.set_num_threads(threads)
    x, gain, bias = torch.randn(3, 50) * 4 + 2, torch.randn(50), torch.randn(50)
    for shift in (bias, None):
        found = decoding.layer_norm_(torch.empty(3, 50), x, 1e-5, gain, shift)
        torch.testing.assert_close(found, F.layer_norm(x, (50,), gain, shift, 1e-5), rtol=1e-5, atol=1e-5)
    wanted = F.gelu(x * 30, approximate="tanh")
    torch.testing.assert_close(decoding.gelu_tanh_(x * 30), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("laid_out", [False, True], ids=["", "laid out"])
@pytest.mark.parametrize("many", [1, 10**9], ids=["products", "kernel"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_logits_are_those_of_the_modules(case, many, laid_out, monkeypatch):
    monkeypatch.setattr(fused, "MANY_QUERIES", many)
    model = model_of(case)
    if laid_out:
        lay_out(model)
    assert fusible(model)
    for lengths in ([7, 7, 7], [2, 9, 1], [4]):
        for ours, theirs in both(model, lengths, steps=9):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_weights_apart_and_too_large_to_copy_are_multiplied_one_by_one(monkeypatch):
    monkeypatch.setattr("isoflop.generate.product.COPIED", 0)
    for case in (GPT2, LLAMA):
        model = model_of(case)
        assert len(FusedStep(model, 1).layers[0].qkv.weights) == 3
        for ours, theirs in both(model, [2, 5], steps=2):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", [GPT2, LLAMA, {}], ids=["gpt2", "llama", "modern"])
def test_bfloat16_is_as_near_as_its_rounding(case):
    model = model_of(case, torch.float32)
    narrow(model)
    assert fusible(model)
    for ours, theirs in both(model, [2, 5, 3], steps=3):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("arrange", [lay_out, narrow])
def test_weights_of_one_input_lie_next_to_each_other_and_keep_their_values(arrange):
    model = model_of(LLAMA, torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layer = model.blocks[0]
    weights = [layer.attention.q.weight, layer.attention.k.weight, layer.attention.v.weight]
    assert joined(weights) is None
    arrange(model)
    one = joined(weights)
    assert torch.equal(one, torch.cat(list(weights))) and one.data_ptr() == weights[0].data_ptr()
    assert joined([layer.feed_forward.gate.weight, layer.feed_forward.up.weight]) is not None
    assert joined([layer.feed_forward.up.weight, layer.feed_forward.gate.weight]) is None
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name].to(tensor.dtype)), name


@pytest.mark.parametrize("case", ELSE, ids=lambda case: next(iter(case)))
def test_other_parts_are_left_to_their_modules(case):
    assert not fusible(model_of(case))


def test_subclasses_hooks_and_autocast_are_left_to_the_modules():
    class Halved(MLP):
        def forward(self, x_BTD):
            return super().forward(x_BTD) / 2

    model = model_of({})
    assert fusible(model)
    handle = model.blocks[1].register_forward_hook(lambda *_: None)
    assert not fusible(model)
    handle.remove()
    with torch.autocast("cpu", torch.bfloat16):
        assert not fusible(model)
    model.blocks[0].feed_forward.__class__ = Halved
    assert not fusible(model)


def test_rows_come_and_go_and_the_buffers_are_reused():
    """More prompts than slots, sampled: each row is what it is alone."""
    model = model_of({})
    prompts = [np.arange(n) % V for n in (3, 11, 1, 20, 6, 2, 9)]
    orders = [Order(ids, 12, seed, Sampling(0.9, top_p=0.9)) for seed, ids in enumerate(prompts)]

    def written(orders, slots):
        batch, rows = Batch(model, orders, slots=slots), {}
        assert batch.fused is not None
        for numbers, tokens in batch.run():
            for number, token in zip(numbers, tokens, strict=True):
                rows.setdefault(number, []).append(token)
        return rows

    together = written(orders, 3)
    assert together == {number: written([order], 1)[0] for number, order in enumerate(orders)}
