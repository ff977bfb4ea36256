"""The options outside the slots equal their formulas: value embeddings, shortcut, smear, backout, logit soft cap."""

import math

import pytest
import torch
from torch.nn import functional as F

from isoflop.errors import UserError
from isoflop.generate.cache import KVCache
from isoflop.generate.engine import prefill
from isoflop.measure import measure
from isoflop.model.blocks.norm import RMSNorm
from isoflop.model.build import build_model
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.count import flops_per_token, parameters
from isoflop.model.gpt import GPT
from isoflop.model.presets import modern
from isoflop.optim.groups import split
from isoflop.runtime import make_runtime
from isoflop.trainer.seq2seq import Seq2Seq

TINY = {"vocab_size": 19, "context": 8, "layers": 2, "d_model": 16, "heads": 4}
TOKENS = torch.randint(19, (3, 8), generator=torch.Generator().manual_seed(0))


def stirred(**fields):
    torch.manual_seed(0)
    model = GPT(ModelConfig(**{**TINY, **fields})).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.eval()


def test_tables_are_in_every_nth_layer_counted_from_the_last():
    def layers(depth, every):
        model = GPT(ModelConfig(**{**TINY, "layers": depth}, value_embedding=every))
        return [number for number, block in enumerate(model.blocks) if block.values is not None]

    assert layers(4, 0) == []
    assert layers(4, 1) == [0, 1, 2, 3]
    assert layers(4, 2) == [1, 3]
    assert layers(5, 2) == [0, 2, 4]
    assert layers(3, 7) == [2]


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_value_is_its_projection_plus_its_tokens_row(gate, kv_heads):
    """One layer of attention, position by position and head by head."""
    model = stirred(
        layers=1,
        position="none",
        attention=Spec("full", kv_heads=kv_heads, bias=False),
        feed_forward="none",
        final_norm=False,
        value_embedding=1,
        value_gate=gate,
    )
    block, x = model.blocks[0], model.embedding(TOKENS)
    attention, values = block.attention, block.values
    h = RMSNorm(dim=16, gain=False)(x)
    expected = torch.zeros_like(x)
    for b in range(3):
        for t in range(8):
            heads = []
            for head in range(4):
                group = slice(4 * (head * kv_heads // 4), 4 * (head * kv_heads // 4) + 4)
                q = attention.q.weight[4 * head : 4 * head + 4] @ h[b, t]
                scores = torch.stack([attention.k.weight[group] @ h[b, s] @ q / 2 for s in range(t + 1)])
                v = []
                for s in range(t + 1):
                    g = 1.0
                    if gate:
                        g = 2 * torch.sigmoid(values.gate.weight[head * kv_heads // 4] @ h[b, s, :12])
                    v.append(attention.v.weight[group] @ h[b, s] + g * values.table.weight[TOKENS[b, s], group])
                heads.append(scores.softmax(0) @ torch.stack(v))
            expected[b, t] = x[b, t] + attention.out.weight @ torch.cat(heads)
    torch.testing.assert_close(model.hidden(TOKENS), expected)


def test_the_shortcut_mixes_the_embedding_into_each_blocks_input():
    model, plain = stirred(embedding_shortcut=True, embedding_norm=True), stirred(embedding_norm=True)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "shortcut" not in k})
    x = x0 = plain.embed(TOKENS, 0)
    for mixing, block in zip(model.blocks, plain.blocks, strict=True):
        a, b = mixing.shortcut.mix
        assert abs(b) > 0.01
        x = block(a * x + b * x0)
    torch.testing.assert_close(model.hidden(TOKENS), plain.norm(x))


def test_the_shortcut_starts_as_the_identity():
    def made(**fields):
        torch.manual_seed(0)
        return GPT(ModelConfig(**TINY, init="gpt2", **fields))(TOKENS)

    assert torch.equal(made(embedding_shortcut=True), made())


def test_the_shortcuts_first_values_are_linear_over_the_depth():
    fields = {"shortcut_residual": (1.15, 1.05), "shortcut_embedding": (0.2, 0.05)}
    blocks = GPT(ModelConfig(**{**TINY, "layers": 3}, embedding_shortcut=True, **fields)).blocks
    expected = [[1.15, 0.2], [1.1, 0.125], [1.05, 0.05]]
    torch.testing.assert_close(torch.stack([block.shortcut.mix for block in blocks]), torch.tensor(expected))
    (alone,) = GPT(ModelConfig(**{**TINY, "layers": 1}, embedding_shortcut=True, **fields)).blocks
    torch.testing.assert_close(alone.shortcut.mix, torch.tensor([1.15, 0.2]))
    with pytest.raises(UserError, match=r"model\.shortcut_embedding = \[nan, 0"):
        ModelConfig(**TINY, shortcut_embedding=(math.nan, 0.0))


@pytest.mark.parametrize("normed", [True, False])
def test_smear_adds_the_previous_tokens_embedding_by_a_gate(normed):
    model, plain = stirred(smear=True, embedding_norm=normed), stirred(embedding_norm=normed)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "smear" not in k})
    x = plain.embed(TOKENS, 0)
    expected = x.clone()
    for t in range(1, 8):
        gate = torch.sigmoid((x[:, t] * model.smear.gate).sum(-1, keepdim=True))  # 16 features are fewer than 24
        expected[:, t] += model.smear.share * gate * x[:, t - 1]
    torch.testing.assert_close(model.embed(TOKENS, 0), expected)


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_backout_subtracts_the_stream_after_half_of_the_blocks(layers):
    model, plain = stirred(backout=True, layers=layers), stirred(layers=layers)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "backout" not in k})
    streams = [plain.embed(TOKENS, 0)]
    for block in plain.blocks:
        streams.append(block(streams[-1]))
    middle = streams[{1: 0, 2: 1, 3: 1, 4: 2}[layers]]
    torch.testing.assert_close(model.hidden(TOKENS), plain.norm(streams[-1] - model.backout.share * middle))


def test_smear_starts_as_the_identity_and_backout_at_a_fifth():
    def made(**fields):
        torch.manual_seed(0)
        return GPT(modern(**TINY, **fields))

    assert torch.equal(made(smear=True).embed(TOKENS, 0), made().embed(TOKENS, 0))
    assert made(backout=True).backout.share.item() == pytest.approx(0.2)
    vectors = next(group for group in split(made(smear=True, backout=True)) if group.name == "vectors")
    assert list(vectors.parameters) == ["smear.share", "smear.gate", "backout.share"] and not vectors.decay


def test_a_scale_multiplies_normalised_queries_and_keys():
    scaled, gained = (
        stirred(attention=Spec("full", qk_norm=True, qk_gain=True, bias=False, **options))
        for options in ({"qk_scale": 1.2}, {})
    )
    gained.load_state_dict(scaled.state_dict())
    with torch.no_grad():
        for block in gained.blocks:
            for norm in (block.attention.q_norm, block.attention.k_norm):
                norm.weight.mul_(1.2)
    torch.testing.assert_close(scaled.hidden(TOKENS), gained.hidden(TOKENS))
    for options, message in (({"qk_scale": 1.2}, "set qk_norm"), ({"qk_scale": 0.0, "qk_norm": True}, "not above 0")):
        with pytest.raises(UserError, match=message):
            GPT(ModelConfig(**TINY, attention=Spec("full", **options)))


def test_the_gate_starts_at_one_and_the_table_small():
    torch.manual_seed(0)
    values = GPT(modern(**{**TINY, "vocab_size": 4096}, value_embedding=2)).blocks[1].values
    h = torch.randn(3, 8, 16)
    assert torch.equal(values(TOKENS, h), values.table(TOKENS))
    assert values.table.weight.std().item() == pytest.approx(1 / math.sqrt(16), rel=0.02)


def test_tables_are_a_group_of_their_own_and_mixing_scalars_vectors():
    model = GPT(ModelConfig(**TINY, value_embedding=1, embedding_shortcut=True))
    groups = {group.name: group for group in split(model)}
    assert list(groups["value"].parameters) == [f"blocks.{i}.values.table.weight" for i in (0, 1)]
    assert list(groups["embedding"].parameters) == ["embedding.weight"]
    assert "blocks.0.values.gate.weight" in groups["matrices"].parameters
    assert "blocks.0.shortcut.mix" in groups["vectors"].parameters and not groups["vectors"].decay


def test_looked_up_weights_are_not_in_n():
    plain, added = (ModelConfig(**TINY, value_embedding=n, value_gate=False, logit_cap=n) for n in (0, 1))
    one, other = parameters(plain), parameters(added)
    assert other.matmul == one.matmul
    assert other.total - one.total == other.blocks - one.blocks == 2 * 19 * 16
    for convention in ("6n", "6n_blocks", "palm", "executed"):
        assert flops_per_token(added, convention=convention) == flops_per_token(plain, convention=convention)
    gated = ModelConfig(**TINY, value_embedding=1, embedding_shortcut=True)
    assert parameters(gated).matmul - one.matmul == 2 * 4 * 12
    assert parameters(gated).total - other.total == 2 * (4 * 12 + 2)


def test_logits_are_capped_in_loss_evaluation_and_decoding():
    model, plain = stirred(logit_cap=1.0), stirred()
    free = plain(TOKENS)
    assert free.abs().max() > 3
    capped = torch.tanh(free)
    torch.testing.assert_close(model(TOKENS), capped)
    cache = KVCache(8)
    torch.testing.assert_close(prefill(model, TOKENS[:, :5], cache), capped[:, 4])
    torch.testing.assert_close(prefill(model, TOKENS[:, 5:6], cache), capped[:, 5])


def test_evaluation_and_sampling_use_the_same_logits():
    model = stirred(logit_cap=2.0)
    ids = TOKENS[0].numpy()
    found = measure(model, ids, torch.ones(19).numpy(), 0, make_runtime("cpu", "float32"))
    inputs = torch.cat([torch.zeros(1, dtype=torch.long), TOKENS[0, :-1]])
    expected = F.cross_entropy(model(inputs[None])[0], TOKENS[0], reduction="sum")
    assert found.nats == pytest.approx(expected.item(), rel=1e-6)


def test_an_encoder_decoder_has_the_cap_and_refuses_decoder_only_options():
    torch.manual_seed(0)
    model = build_model("seq2seq", ModelConfig(**TINY, init=Spec("gpt2", std=1.0), logit_cap=2.0)).double()
    seen, logits = torch.ones_like(TOKENS, dtype=torch.bool), model(TOKENS, None, TOKENS)
    assert 1.5 < logits.abs().max() <= 2
    loss = Seq2Seq().loss(model, TOKENS, seen, TOKENS, TOKENS.flip(0))
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), TOKENS.flip(0).flatten()))
    refused = [{"value_embedding": 2}, {"embedding_shortcut": True}, {"smear": True}, {"backout": True}]
    for fields in refused:
        ((name, value),) = fields.items()
        setting = f"{name} = {str(value).lower()}"
        with pytest.raises(UserError, match=f"{setting} is for task causal_lm"):
            build_model("seq2seq", ModelConfig(**TINY, **fields))
