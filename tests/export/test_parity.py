"""Equality with transformers in logits, loss and gradients, for import and export."""

import json

import pytest
import torch
from torch.nn import functional as F

from isoflop import export
from isoflop.data.tokenizer import PROBE
from isoflop.export import gguf
from isoflop.export.architectures import HUGGING_FACE
from isoflop.export.bundle import Bundle, halved, weights_of
from isoflop.export.fit import ANY, anatomy_of
from isoflop.export.huggingface import read_folder, write_folder
from isoflop.export.names import keys, to_theirs
from isoflop.generate.engine import generate
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.gpt import GPT
from isoflop.model.presets import gpt2, modern

transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'isoflop[test]'")

V, T = 320, 24
GPT_SHAPE = {"vocab_size": V, "n_positions": 32, "n_embd": 48, "n_layer": 2, "n_head": 3}
LLAMA_SHAPE = {
    "vocab_size": V,
    "max_position_embeddings": 32,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}
THEIRS = {
    "gpt2": ("GPT2", {**GPT_SHAPE, "n_inner": 100}),
    "gpt2 untied": ("GPT2", {**GPT_SHAPE, "tie_word_embeddings": False, "activation_function": "relu"}),
    "openai-gpt": ("OpenAIGPT", GPT_SHAPE),
    "llama": ("Llama", {**LLAMA_SHAPE, **THETA, "rms_norm_eps": 1e-5}),
    "llama tied, wide heads": ("Llama", {**LLAMA_SHAPE, "head_dim": 12, "tie_word_embeddings": True}),
    "llama 3": (
        "Llama",
        {
            **LLAMA_SHAPE,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "llama linear": ("Llama", {**LLAMA_SHAPE, "hidden_act": "linear"}),
    "llama biases": ("Llama", {**LLAMA_SHAPE, "attention_bias": True, "mlp_bias": True}),
    "qwen3": ("Qwen3", {**LLAMA_SHAPE, **THETA, "head_dim": 16, "rms_norm_eps": 1e-6}),
    "arcee": ("Arcee", {**LLAMA_SHAPE, "hidden_act": "relu2", "rms_norm_eps": 1e-5}),
    "apertus": (  # a padding token would get no gradient
        "Apertus",
        {**LLAMA_SHAPE, **THETA, "hidden_act": "relu2", "rms_norm_eps": 1e-6, "pad_token_id": None},
    ),
}
LLAMA3 = {"base": 500.0, "factor": 4.0, "low_freq": 1.0, "high_freq": 4.0, "original": 16}
OURS = {
    "gpt2": gpt2(vocab_size=V, context=32, layers=2, d_model=48, heads=3),
    "gpt1": gpt2(
        vocab_size=V, context=32, layers=2, d_model=48, heads=3, wiring=Spec("post"), final_norm=False, dropout=0.1
    ),
    "no biases": gpt2(vocab_size=V, context=32, layers=2, d_model=48, heads=3, attention=Spec("full", bias=False)),
    "modern": modern(vocab_size=V, context=32, layers=2, d_model=48, heads=3),
    "modern tied": modern(vocab_size=V, context=32, layers=2, d_model=48, heads=3, tied_head=True),
    "interleaved": modern(
        vocab_size=V, context=32, layers=2, d_model=48, heads=3, position=Spec("rotary", interleaved=True, base=500.0)
    ),
    "sharper": modern(
        vocab_size=V,
        context=32,
        layers=2,
        d_model=48,
        heads=3,
        attention=Spec("full", qk_norm=True, qk_gain=False, qk_scale=1.2, bias=False),
    ),
    "scaled": modern(vocab_size=V, context=32, layers=2, d_model=48, heads=3, position=Spec("rotary", **LLAMA3)),
    "qwen3": ModelConfig(
        vocab_size=V,
        context=32,
        layers=2,
        d_model=48,
        heads=6,
        head_dim=16,
        norm=Spec("rms"),
        position=Spec("rotary", interleaved=True),
        attention=Spec("full", qk_norm=True, qk_gain=True, kv_heads=2, bias=False),
        feed_forward=Spec("gated", activation="gelu"),
    ),
    "llama": ModelConfig(
        vocab_size=V,
        context=32,
        layers=2,
        d_model=48,
        heads=6,
        norm=Spec("rms", eps=1e-5),
        attention=Spec("full", kv_heads=3, bias=True),
        feed_forward=Spec("gated", bias=True),
    ),
}


def stir(model, seed, size=0.3):
    """Random values in every parameter, gains and biases too."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * size * (0.2 if p.ndim == 2 else 1.0) + (1.0 if p.ndim == 1 else 0.0))
    return model


def their_model(kind, seed, **fields):
    name, shape = THEIRS[kind]
    config = getattr(transformers, f"{name}Config")(**{**shape, **fields})
    cls = getattr(
        transformers, {"OpenAIGPT": "OpenAIGPTLMHeadModel", "GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM")
    )
    return stir(cls(config), seed).eval()


def assert_alike(ours: GPT, theirs, tokens, context=None):
    """Logits within 1e-4, loss within 1e-5, gradients within 1e-4 of each tensor's largest entry."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    logits, their_logits = ours(inputs), theirs(inputs).logits
    assert (logits - their_logits).abs().max() < 1e-4
    losses = [F.cross_entropy(x.flatten(0, 1), targets.flatten()) for x in (logits, their_logits)]
    assert abs(losses[0] - losses[1]) < 1e-5
    for loss in losses:
        loss.backward()
    anatomy = anatomy_of(ours.config, ANY, "a test")
    interleaved = dict(ours.config.position.options).get("interleaved")  # theirs lie in halves
    gradients = {
        name: halved(name, p.grad, ours.config.head_width) if interleaved else p.grad
        for name, p in weights_of(ours).items()
    }
    table = keys(HUGGING_FACE[anatomy.family].names, ours.config.layers, gradients)
    mine = to_theirs(table, gradients, ours.config.head_width)
    for name, p in theirs.named_parameters():
        if name in mine:
            assert (p.grad - mine[name]).abs().max() <= 1e-4 * p.grad.abs().max(), name
    return set(mine) == {name for name, _ in theirs.named_parameters()}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", THEIRS)
def test_isoflop_reads_what_transformers_saves(kind, seed, tmp_path, tokenizer):
    theirs = their_model(kind, seed)
    theirs.save_pretrained(tmp_path)
    bundle = read_folder(tmp_path, tokenizer.to_json())
    assert bundle.config.context == 32
    assert assert_alike(bundle.model(), theirs, torch.randint(V, (2, T)))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", OURS)
def test_transformers_reads_what_isoflop_writes(kind, seed, tmp_path, tokenizer):
    ours = stir(GPT(OURS[kind]), seed).eval()
    weights = {name: p.detach().clone() for name, p in weights_of(ours).items()}
    write_folder(Bundle(ours.config, weights, tokenizer.to_json()), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert_alike(ours, theirs, torch.randint(V, (2, T)))
    again = read_folder(tmp_path)
    tokens = torch.randint(V, (2, T))
    torch.testing.assert_close(again.model()(tokens), ours(tokens), atol=1e-4, rtol=0)


def test_sharded_folders_and_openais_bare_names_are_read(tmp_path, tokenizer):
    theirs = their_model("gpt2", 0)
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    theirs.transformer.save_pretrained(tmp_path / "bare")
    tokens = torch.randint(V, (2, T))
    for name in ("sharded", "bare"):
        ours = read_folder(tmp_path / name, tokenizer.to_json()).model()
        assert (ours(tokens) - theirs(tokens).logits).abs().max() < 1e-4


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_gpt2_in_its_own_shape(seed, tmp_path, tokenizer):
    torch.manual_seed(seed)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    theirs.save_pretrained(tmp_path)
    bundle = read_folder(tmp_path, tokenizer.to_json())
    ours = bundle.model()
    assert sum(p.numel() for p in ours.parameters()) == 124_439_808
    assert assert_alike(ours, theirs, torch.randint(50_257, (1, 64)))
    (tmp_path / "back").mkdir()
    write_folder(bundle, tmp_path / "back")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32).eval()
    for (name, p), (_, q) in zip(theirs.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(p, q), name


def test_the_tokenizer_is_exported_and_imported(tmp_path, tokenizer):
    bundle = Bundle(OURS["modern"], weights_of(GPT(OURS["modern"])), tokenizer.to_json())
    write_folder(bundle, tmp_path)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (PROBE.strip(), " a  fox\n", "", "naïve 中文 \U0001f600"):
        assert auto(text).input_ids == [tokenizer.start, *tokenizer.encode(text)]
        assert auto.decode(tokenizer.encode(text)) == text
    assert auto.eos_token_id == tokenizer.eot


PROMPTS = ("Once upon a time there was", "12,345 things", "")


@pytest.mark.parametrize("kind", ["modern", "gpt2", "gpt1", "qwen3", "llama", "scaled"])
def test_a_prompt_is_continued_as_isoflop_does(kind, tmp_path, tokenizer):
    """With the exported tokenizer: the same greedy text, of one prompt and of a batch that has to be padded."""
    ours = stir(GPT(OURS[kind]), 0).eval()
    weights = {name: p.detach().clone() for name, p in weights_of(ours).items()}
    write_folder(Bundle(ours.config, weights, tokenizer.to_json()), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert auto.pad_token_id == theirs.generation_config.pad_token_id == tokenizer.eot

    wanted = [generate(ours, tokenizer, prompt, 8, temperature=0.0) for prompt in PROMPTS]
    for prompt, text in zip(PROMPTS, wanted, strict=True):
        asked = auto(prompt, return_tensors="pt")
        assert asked.input_ids[0].tolist() == [tokenizer.start, *tokenizer.encode(prompt)]
        made = theirs.generate(asked.input_ids, max_new_tokens=8, do_sample=False)
        assert auto.decode(made[0, asked.input_ids.shape[1] :], skip_special_tokens=True) == text
    if kind == "gpt1":
        return  # its transformers model counts positions from the padding on
    batch = auto(list(PROMPTS), return_tensors="pt", padding=True)
    made = theirs.generate(batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=8, do_sample=False)
    assert auto.batch_decode(made[:, batch.input_ids.shape[1] :], skip_special_tokens=True) == wanted


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_an_independent_reader_reads_our_gguf(kind, tmp_path, tokenizer):
    pytest.importorskip("gguf", reason="needs the gguf package: pip install 'isoflop[gguf]'")
    pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate")
    shape = {"context": 32, "layers": 2, "d_model": 64, "heads": 4}
    config = {  # transformers takes qwen3's head width from its own default
        "gpt2": gpt2(**shape, vocab_size=V),
        "llama": ModelConfig(
            vocab_size=V,
            **shape,
            norm=Spec("rms", eps=1e-5),
            position=Spec("rotary", base=5000.0),
            attention=Spec("full", kv_heads=2, bias=False),
            feed_forward=Spec("gated"),
        ),
        "qwen3": ModelConfig(
            vocab_size=V,
            **shape,
            head_dim=128,
            norm=Spec("rms"),
            position=Spec("rotary", interleaved=True),
            attention=Spec("full", qk_norm=True, qk_gain=True, kv_heads=2, bias=False),
            feed_forward=Spec("gated"),
        ),
    }[kind]
    ours = stir(GPT(config), 0).eval()
    bundle = Bundle(config, {n: p.detach() for n, p in weights_of(ours).items()}, tokenizer.to_json())
    assert export.write(bundle, "gguf", tmp_path, "test") == (kind, pytest.approx(0, abs=1e-5))
    options = {}
    if kind == "gpt2":  # nor does it read gpt2's vocabulary and positions from the header
        options["config"] = transformers.GPT2Config(vocab_size=V, n_positions=32, n_embd=64, n_layer=2, n_head=4)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32, **options
    ).eval()
    tokens = torch.randint(V, (2, T))
    with torch.no_grad():
        assert (ours(tokens) - theirs(tokens).logits).abs().max() < 1e-4


def test_both_versions_of_config_json_have_llama3s_scaling(tmp_path, tokenizer):
    their_model("llama 3", 0).save_pretrained(tmp_path)
    original = json.loads((tmp_path / "config.json").read_text())
    position = read_folder(tmp_path, tokenizer.to_json()).config.position
    assert dict(position.options) == {"base": 500.0, "factor": 8.0, "low_freq": 1.0, "high_freq": 4.0, "original": 16}
    older = {**original["rope_parameters"]}
    theta = older.pop("rope_theta")
    changed = {name: value for name, value in original.items() if name != "rope_parameters"}
    (tmp_path / "config.json").write_text(json.dumps({**changed, "rope_scaling": older, "rope_theta": theta}))
    assert read_folder(tmp_path, tokenizer.to_json()).config.position == position
    for field, wrong in (("factor", -1), ("high_freq_factor", 0.5), ("original_max_position_embeddings", "x")):
        (tmp_path / "config.json").write_text(json.dumps({**changed, "rope_scaling": {**older, field: wrong}}))
        with pytest.raises(export.UserError, match="rope_scaling"):
            read_folder(tmp_path, tokenizer.to_json())


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize(
    "factor, original, head_dim", [(8.0, 8192, 64), (32.0, 8192, 128), (4.0, 16, 16), (2.5, 4096, 64)]
)
def test_llama3s_scaling_survives_gguf(factor, original, head_dim, stated, tmp_path, tokenizer, monkeypatch):
    """Also in a file of others, which has the factors alone."""
    pytest.importorskip("gguf", reason="needs the gguf package: pip install 'isoflop[gguf]'")
    base = 500_000.0 if original > 100 else 500.0
    shape = {"vocab_size": V, "context": 32, "layers": 1, "d_model": head_dim, "heads": 1}
    config = ModelConfig(
        **shape,
        norm=Spec("rms"),
        attention=Spec("full", bias=False),
        feed_forward=Spec("swiglu"),
        position=Spec("rotary", base=base, factor=factor, original=original),
    )
    if not stated:
        monkeypatch.setattr("isoflop.export.gguf.ORIGINAL", "somebody.else")
    bundle = Bundle(config, {n: p.detach() for n, p in weights_of(GPT(config)).items()}, tokenizer.to_json())
    export.write(bundle, "gguf", tmp_path, "x")
    monkeypatch.setattr("isoflop.export.gguf.ORIGINAL", "isoflop.rope.original" if stated else "none")
    again = export.read(tmp_path).model().blocks[0].attention.position
    torch.testing.assert_close(again.cos_TK, GPT(config).blocks[0].attention.position.cos_TK, atol=1e-4, rtol=0)
    if stated or original in (8192, 4096):
        assert (again.factor, again.low_freq, again.high_freq, again.original) == (factor, 1.0, 4.0, original)


def test_factors_of_another_rule_are_refused(tmp_path, tokenizer, monkeypatch):
    pytest.importorskip("gguf", reason="needs the gguf package: pip install 'isoflop[gguf]'")
    config = modern(vocab_size=V, context=32, layers=1, d_model=64, heads=1, position=Spec("rotary", **LLAMA3))
    bundle = Bundle(config, {n: p.detach() for n, p in weights_of(GPT(config)).items()}, tokenizer.to_json())
    monkeypatch.setattr("isoflop.export.gguf.factors", lambda *_: torch.linspace(1, 3, 32))
    with pytest.raises(export.UserError, match="not those of Llama 3"):
        export.write(bundle, "gguf", tmp_path, "x")


def test_another_xielu_is_refused(tmp_path, tokenizer, monkeypatch):
    pytest.importorskip("gguf", reason="needs the gguf package: pip install 'isoflop[gguf]'")
    config = OURS["modern"]
    bundle = Bundle(config, {n: p.detach() for n, p in weights_of(GPT(config)).items()}, tokenizer.to_json())
    for name in ("alpha_p", "alpha_n", "beta"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setattr("isoflop.export.gguf.XIELU", {**gguf.XIELU, name: 0.5})
        with pytest.raises(export.UserError, match=f"xIELU with {name}"):
            export.write(bundle, "gguf", folder, "x")
        monkeypatch.undo()


def test_rope_scaling_is_refused_by_name(tmp_path, tokenizer):
    theirs = their_model("llama", 0)
    theirs.save_pretrained(tmp_path)
    original = json.loads((tmp_path / "config.json").read_text())
    for field in ("rope_parameters", "rope_scaling"):
        changed = {**original, field: {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(export.UserError, match="yarn"):
            read_folder(tmp_path, tokenizer.to_json())
