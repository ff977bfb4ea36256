"""The encoder-decoder: equal to torch's own on the same weights, with the properties of law 3 for every entry."""

import math
from itertools import accumulate

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isoflop.errors import UserError
from isoflop.generate.cache import KVCache
from isoflop.model.blocks.cross_attention import Bidirectional
from isoflop.model.build import build_model
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.count import count, pair_flops_per_token
from isoflop.model.encoder_decoder import EncoderDecoder
from isoflop.model.registry import SLOTS

S, T = 9, 7
REFUSED = [("norm", "batch"), ("position", "alibi"), ("position", "relative"), ("wiring", "deepnorm")]
CASES = [{slot: Spec(name)} for slot, table in SLOTS.items() for name in table if (slot, name) not in REFUSED]
CASES += [
    {"attention": Spec("full", kv_heads=2, qk_norm=True, bias=False)},
    {"attention": Spec("full", qk_norm=True, qk_gain=False), "position": Spec("rotary")},
    {"encoder_layers": 1},
    {"tied_head": True, "embedding_norm": True, "final_norm": False, "logit_cap": 30.0},
    {"wiring": Spec("post"), "position": Spec("sinusoidal")},
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(f"{key}={value}" for key, value in case.items()))
def config(request):
    base = {
        "vocab_size": 19,
        "context": max(S, T) + 1,
        "layers": 2,
        "d_model": 16,
        "heads": 4,
        "norm": "layer",
        "position": "learned",
        "attention": "full",
        "feed_forward": "mlp",
        "init": "gpt2",
    }
    return ModelConfig(**{**base, **request.param})


def build(config, seed=0):
    torch.manual_seed(seed)
    return EncoderDecoder(config).eval()


def stirred(config):
    """A model with no weight at a special value, so that nothing hides behind a zero."""
    model = build(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


def some_pairs(config, batch=3):
    """Sources of S, S - 2, ... tokens, padded; targets of T."""
    g = torch.Generator().manual_seed(1)
    source = torch.randint(config.vocab_size, (batch, S), generator=g)
    target = torch.randint(config.vocab_size, (batch, T), generator=g)
    lengths = torch.tensor([S - 2 * row for row in range(batch)])
    return source, torch.arange(S) < lengths[:, None], target


def as_torch_names(own):
    """Where nn.Transformer keeps the weights of one of our blocks."""
    last = len(own.wiring.norms)
    names = {f"norm{number}": norm for number, norm in enumerate(own.wiring.norms, 1)}
    assert last == 2 + hasattr(own, "memory")
    attentions = {"self_attn": own.attention, "multihead_attn": getattr(own, "memory", None)}
    return names | {"linear1": own.feed_forward.up, "linear2": own.feed_forward.down}, attentions


@torch.no_grad()
def copy_into(theirs, own):
    plain, attentions = as_torch_names(own)
    for name, module in plain.items():
        getattr(theirs, name).load_state_dict(module.state_dict())
    for name, attention in attentions.items():
        if attention is not None:
            there = getattr(theirs, name)
            there.in_proj_weight.copy_(torch.cat([attention.q.weight, attention.k.weight, attention.v.weight]))
            there.in_proj_bias.copy_(torch.cat([attention.q.bias, attention.k.bias, attention.v.bias]))
            there.out_proj.load_state_dict(attention.out.state_dict())


@pytest.mark.parametrize("wiring", ["post", "pre"])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_equals_torchs_transformer(wiring):
    """nn.Transformer on copied weights, padding masked on both sides, in float64."""
    config = ModelConfig(
        vocab_size=23,
        context=S + 1,
        layers=3,
        encoder_layers=2,
        d_model=16,
        heads=4,
        norm=Spec("layer"),
        position=Spec("learned"),
        attention=Spec("full"),
        feed_forward=Spec("mlp", activation="relu"),
        wiring=Spec(wiring),
        init=Spec("gpt2"),
    )
    model = stirred(config).double()
    reference = nn.Transformer(
        16, 4, 2, 3, 64, dropout=0.0, activation="relu", batch_first=True, norm_first=wiring == "pre"
    ).double()
    for theirs, own in zip(
        [*reference.encoder.layers, *reference.decoder.layers], [*model.encoder, *model.decoder], strict=True
    ):
        copy_into(theirs, own)
    reference.encoder.norm.load_state_dict(model.memory_norm.state_dict())
    reference.decoder.norm.load_state_dict(model.norm.state_dict())
    reference.train()  # dropout is 0; in evaluation torch takes a path of its own that fills padding with zeros
    source, visible, target = some_pairs(config)
    there = torch.arange(T) < torch.tensor([T, T - 3, 2])[:, None]
    expected = reference(
        model.embed(source, 0),
        model.embed(target, 0),
        tgt_mask=torch.ones(T, T, dtype=torch.bool).triu(1),
        src_key_padding_mask=~visible,
        tgt_key_padding_mask=~there,
        memory_key_padding_mask=~visible,
    )
    found = model.hidden(source, visible, target)
    torch.testing.assert_close(found[there], expected[there], rtol=1e-10, atol=1e-10)


def test_padding_does_not_affect_the_output(config):
    model, (source, visible, target) = stirred(config).double(), some_pairs(config)
    other = torch.where(visible, source, (source + 1) % config.vocab_size)
    whole = model(source, visible, target)
    torch.testing.assert_close(model(other, visible, target), whole, rtol=1e-12, atol=1e-12)
    for row, length in enumerate(visible.sum(1)):
        alone = model(source[row : row + 1, :length], None, target[row : row + 1])
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-9, atol=1e-9)


def test_decoder_is_causal_and_encoder_is_not(config):
    model, (source, visible, target) = stirred(config), some_pairs(config)
    seen = []

    def keep(module, inputs, out):
        seen.append(out.detach().requires_grad_())
        return seen[-1]

    model.embedding.register_forward_hook(keep)
    h = model.hidden(source, visible, target)
    x_source, x_target = seen
    direction = torch.randn(config.d_model)  # not the squares: after a norm without gain their sum does not change
    for t in range(T):
        read, written = torch.autograd.grad((h[:, t] @ direction).sum(), seen, retain_graph=True)
        assert (read.abs().sum(-1) > 0).equal(visible)  # every position sees the whole source and no padding
        assert written[:, t].abs().sum() > 0
        assert written[:, t + 1 :].abs().sum() == 0
    k, _ = model.read(source, visible).layers[0]
    (grad,) = torch.autograd.grad((k[0, :, 0] @ direction[: config.head_width]).sum(), seen[-1])
    assert grad[0, 1:].abs().sum() > 0  # the first position of the encoder sees what comes after it
    assert not any(block.causal for block in model.encoder) and all(block.causal for block in model.decoder)
    assert not Bidirectional.causal
    assert x_source.shape[1] == S and x_target.shape[1] == T


def test_cached_decode_equals_the_full_forward(config):
    model, (source, visible, target) = stirred(config).double(), some_pairs(config)
    full = model(source, visible, target)
    for pieces in ([1] * T, [3, 1, 2, 1], [T]):
        cache, memory = KVCache(config.context), model.read(source, visible)
        ends = list(accumulate(pieces))
        parts = [model.write(target[:, end - n : end], memory, cache) for n, end in zip(pieces, ends, strict=True)]
        torch.testing.assert_close(model.logits(torch.cat(parts, dim=1)), full, rtol=1e-9, atol=1e-9)


def test_meta_then_reset_equals_construction(config):
    with torch.device("meta"):
        late = EncoderDecoder(config)
    assert all(t.is_meta for t in [*late.parameters(), *late.buffers()])
    late.to_empty(device="cpu")
    with torch.no_grad():
        for t in [*late.parameters(), *late.buffers()]:
            t.fill_(math.nan)
    torch.manual_seed(7)
    late.reset_parameters()
    after = torch.rand(1)
    direct = build(config, seed=7)
    assert torch.equal(after, torch.rand(1)), "construction and reset draw differently from the global generator"
    pairs = zip([*late.parameters(), *late.buffers()], [*direct.parameters(), *direct.buffers()], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_gradients_exist_and_are_finite(config):
    model, (source, visible, target) = stirred(config).train(), some_pairs(config)
    nn.functional.cross_entropy(model(source, visible, target).flatten(0, 1), target.flatten()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, f"{name} is not used"
        assert p.grad.isfinite().all(), name


def test_runs_in_bfloat16(config):
    model, pairs = stirred(config), some_pairs(config)
    exact = model(*pairs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(*pairs).float()
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_counts_are_those_of_the_executed_operations(config):
    """What the model declares, against torch's own counter of the products that ran (which does not halve the causal
    attention of the decoder)."""
    model, (source, _, target) = stirred(config), some_pairs(config, batch=1)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(source, None, target)
    halved = sum(
        block.attention.score_flops(T) * T * (2 * T / (T + 1) - 1)
        for block in model.decoder
        if not block.attention.absent
    )
    assert counter.get_total_flops() == pytest.approx(model.pair_flops(S, T) + halved, rel=1e-12)
    read, written = model.weights_by_side()
    counted = count(model)
    assert counted.matmul == read + written
    assert counted.total == sum(p.numel() for p in model.parameters())
    assert counted.total == sum(t.numel() for t in load(save(model.state_dict())).values())
    training = pair_flops_per_token(config, S, T)
    assert training == pytest.approx(6 * (read * S + written * T) / (S + T))


def test_saves_and_loads(config):
    model, other = stirred(config), build(config, seed=99)
    other.load_state_dict(load(save(model.state_dict())))
    pairs = some_pairs(config)
    assert torch.equal(other(*pairs), model(*pairs))


@pytest.mark.parametrize(("slot", "name"), REFUSED)
def test_entries_without_bidirectional_or_padded_attention_are_refused(slot, name):
    with pytest.raises(UserError, match=f"model.{slot}"):
        EncoderDecoder(ModelConfig(layers=1, d_model=16, heads=4, **{slot: Spec(name)}))


def test_an_impossible_configuration_is_refused():
    with pytest.raises(UserError, match="encoder_layers"):
        ModelConfig(encoder_layers=-1)
    with pytest.raises(UserError, match="seq2seq"):
        build_model("seq2sec", ModelConfig())
