"""Models that no architecture of transformers fits are exported with modeling code, which computes the same."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from isoflop import export, job
from isoflop.cli import run
from isoflop.config import from_dict
from isoflop.errors import UserError
from isoflop.export import own_code
from isoflop.export.bundle import Bundle, weights_of
from isoflop.export.huggingface import read_folder
from isoflop.export.own_code import Exported, described
from isoflop.generate.engine import generate
from isoflop.model.blocks.feed_forward import ACTIVATIONS
from isoflop.model.blocks.latent import Latent
from isoflop.model.blocks.norm import RMSNorm
from isoflop.model.blocks.part import ByDepth
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.gpt import GPT
from isoflop.model.presets import gpt2, modern
from isoflop.model.registry import SLOTS, class_of

V, T, CONTEXT = 320, 20, 40
SHAPE = {"vocab_size": V, "context": CONTEXT, "layers": 2, "d_model": 32, "heads": 4}
BAND = Spec("banded", window=6)
CONFIGS = {
    "value embeddings": modern(**SHAPE, value_embedding=1),
    "value embeddings, shared heads": modern(
        **SHAPE, value_embedding=2, attention=Spec("full", kv_heads=2, qk_norm=True, bias=False), logit_cap=15.0
    ),
    "value embeddings without a gate": modern(
        **SHAPE, value_embedding=2, value_gate=False, embedding_shortcut=True, embedding_norm=True
    ),
    "modern, tied, scaled": modern(
        **SHAPE, tied_head=True, position=Spec("rotary", interleaved=True, factor=4.0, original=8, base=500.0)
    ),
    "gpt2, a band": gpt2(**SHAPE, attention=BAND),
    "alternating": gpt2(
        **{**SHAPE, "layers": 3}, attention=Spec("alternating", pattern=(BAND, "none", Spec("full", soft_cap=5.0)))
    ),
    "smear, backout, shortcut by depth": modern(
        **SHAPE,
        smear=True,
        backout=True,
        embedding_shortcut=True,
        shortcut_residual=(1.2, 1.0),
        attention=Spec("full", qk_norm=True, qk_scale=1.3, window=9),
    ),
    "relative, scaled scores": modern(
        **{**SHAPE, "layers": 1},
        position="relative",
        smear=True,
        backout=True,
        attention=Spec("full", qk_norm=True, qk_scale=1.3, soft_cap=5.0),
    ),
    "latent": modern(**SHAPE, attention=Spec("latent", q_rank=12), wiring="sandwich", feed_forward="reglu"),
    "latent, alibi": modern(
        **SHAPE, attention=Spec("latent", kv_rank=6, rope_dim=6, soft_cap=9.0), position="alibi", wiring="parallel"
    ),
    "alibi, three heads": modern(**{**SHAPE, "d_model": 36, "heads": 3}, position="alibi", attention=BAND),
    "relative": modern(**SHAPE, position="relative", norm=Spec("layer", bias=False), feed_forward="geglu"),
    "relative, soft cap, shared heads": modern(
        **SHAPE, position=Spec("relative", base=300.0), attention=Spec("full", kv_heads=1, soft_cap=4.0), wiring="post"
    ),
    "sinusoidal, batch norm": modern(
        **SHAPE, position=Spec("sinusoidal", scale=0.3), norm=Spec("batch", eps=1e-4), feed_forward="bilinear"
    ),
    "batch norm over time": modern(
        **SHAPE, position="none", norm=Spec("batch", over="batch_time"), feed_forward="linear", head_dim=10
    ),
    "experts": modern(**SHAPE, feed_forward=Spec("moe", experts=4, top_k=2, shared=1, gated=True), wiring="rezero"),
    "one expert": modern(
        **SHAPE, feed_forward=Spec("moe", experts=3, top_k=1, normalise=False, d_ff=16), wiring="deepnorm"
    ),
    "no residuals": modern(**SHAPE, wiring="none", norm="none", feed_forward=Spec("swiglu", bias=True), dropout=0.1),
    "no feed-forward": modern(**SHAPE, feed_forward="none", wiring="rezero", final_norm=False),
    "no attention": modern(**SHAPE, attention="none", position="learned", feed_forward=Spec("gated", multiple_of=7)),
    "no layers": modern(**{**SHAPE, "layers": 0}, position="learned"),
    **{
        f"mlp, {name}": modern(**SHAPE, feed_forward=Spec("mlp", activation=name), wiring="parallel")
        for name in ACTIVATIONS
    },
}


def stirred(config: ModelConfig) -> GPT:
    """A model with random values in every parameter and statistic."""
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * (0.1 if p.ndim >= 2 else 0.3) + (1.0 if p.ndim == 1 else 0.0))
        for name, buffer in model.named_buffers():
            if name.endswith((".mean", ".var")):
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return model


def bundle_of(model: GPT, tokenizer, kind=Bundle) -> Bundle:
    return kind(model.config, {n: p.detach().clone() for n, p in weights_of(model).items()}, tokenizer.to_json())


def test_every_entry_that_the_code_has_is_covered():
    used = {slot: set() for slot in SLOTS}
    for config in CONFIGS.values():
        for slot in SLOTS:
            spec = getattr(config, slot)
            inner = dict(spec.options).get("pattern", ())
            used[slot] |= {spec.name, *(item if isinstance(item, str) else item.name for item in inner)}
    held = (*own_code.HELD, ByDepth)
    assert used == {
        slot: {name for name, entry in table.items() if class_of(entry) in held} for slot, table in SLOTS.items()
    }


def test_what_the_code_does_not_know_is_refused_by_name(tokenizer, tmp_path, monkeypatch):
    """A new entry, option or field of isoflop's that the code does not have yet."""
    config = CONFIGS["latent"]
    for name, value, named in (
        ("HELD", {**own_code.HELD, Latent: ("kv_rank", "rope_dim", "soft_cap")}, "model.attention.q_rank = 12"),
        ("HELD", {cls: held for cls, held in own_code.HELD.items() if cls is not Latent}, "model.attention = latent"),
        ("FIELDS", tuple(f for f in own_code.FIELDS if f != "logit_cap"), "model.logit_cap = 3.0"),
    ):
        monkeypatch.setattr(own_code, name, value)
        changed = replace(config, logit_cap=3.0) if name == "FIELDS" else config
        with pytest.raises(UserError, match=f"{named} cannot be written"):
            export.write(bundle_of(stirred(changed), tokenizer), "hf", tmp_path, "x", own_code=True)
        assert not export.outlook(changed)["hf"].possible
        monkeypatch.undo()


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_code_computes_what_isoflop_computes(kind, tokenizer):
    """In torch alone: logits of the code, and of the model that its description gives back."""
    model, tokens = stirred(CONFIGS[kind]), torch.randint(V, (3, T), generator=torch.Generator().manual_seed(1))
    theirs = bundle_of(model, tokenizer, Exported)
    with torch.no_grad():
        logits = model(tokens)
        assert (theirs.logits(tokens) - logits).abs().max() < 1e-5 * max(1.0, float(logits.abs().max()))
        plain = json.loads(json.dumps(described(model.config)))
        again = GPT(from_dict(ModelConfig, plain)).eval()
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(tokens), logits)
    assert described(again.config) == plain


@pytest.fixture(scope="module")
def transformers(tmp_path_factory):
    """transformers, which copies the code of a model into a folder of its own before it runs it."""
    found = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'isoflop[test]'")
    place = str(tmp_path_factory.mktemp("code"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", place)
        patch.setattr(sys, "path", [*sys.path])
        yield found


def loaded(transformers, folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()


PROMPTS = ("Once upon a time there was", "12,345 things", "")
TRIED = [kind for kind in CONFIGS if not kind.startswith("mlp, ") and kind != "no layers"]


@pytest.mark.parametrize("kind", TRIED)
def test_transformers_continues_a_prompt_as_isoflop_does(kind, transformers, tokenizer, tmp_path):
    """With its cache: the same greedy text, of one prompt and of a batch that has to be padded."""
    model = stirred(CONFIGS[kind])
    assert export.write(bundle_of(model, tokenizer), "hf", tmp_path, "x", own_code=True)[0] == "isoflop"
    theirs, auto = loaded(transformers, tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)

    wanted = [generate(model, tokenizer, prompt, 8, temperature=0.0) for prompt in PROMPTS]
    for prompt, text in zip(PROMPTS, wanted, strict=True):
        asked = auto(prompt, return_tensors="pt")
        made = theirs.generate(**asked, max_new_tokens=8, do_sample=False)
        assert auto.decode(made[0, asked.input_ids.shape[1] :], skip_special_tokens=True) == text
    batch = auto(list(PROMPTS), return_tensors="pt", padding=True)
    made = theirs.generate(**batch, max_new_tokens=8, do_sample=False)
    assert auto.batch_decode(made[:, batch.input_ids.shape[1] :], skip_special_tokens=True) == wanted


def test_transformers_trains_saves_and_loads_it(transformers, tokenizer, tmp_path):
    kind = "value embeddings, shared heads"
    model, tokens = stirred(CONFIGS[kind]), torch.randint(V, (2, T))
    export.write(bundle_of(model, tokenizer), "hf", tmp_path, "x")
    theirs = loaded(transformers, tmp_path)

    out = theirs(tokens, labels=tokens, output_hidden_states=True)
    expected = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert out.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert len(out.hidden_states) == 3 and torch.equal(theirs(tokens, logits_to_keep=1).logits, out.logits[:, -1:])
    out.loss.backward()
    expected.backward()
    ours = {f"model.{name}": p.grad for name, p in weights_of(model).items()}
    for name, p in theirs.named_parameters():
        assert (p.grad - ours.pop(name)).abs().max() <= 1e-4 * p.grad.abs().max(), name
    assert not ours

    theirs.save_pretrained(tmp_path / "saved")
    again = loaded(transformers, tmp_path / "saved")
    assert torch.equal(again(tokens).logits, out.logits)
    assert torch.equal(read_folder(tmp_path / "saved", tokenizer.to_json()).model()(tokens), model(tokens))
    fresh = type(theirs)(theirs.config)
    assert torch.isfinite(fresh(tokens).logits).all()
    with pytest.raises(ValueError, match="row per token"):
        theirs.resize_token_embeddings(V + 8)
    with pytest.raises(ValueError, match="do not fit in a context of 40"):
        theirs(torch.randint(V, (1, CONTEXT + 1)))
    with pytest.raises(ValueError, match="attention_mask has 3 positions"):
        theirs(tokens, attention_mask=torch.ones(2, 3))


def test_a_native_architecture_is_used_where_one_fits(tokenizer, tmp_path):
    bundle = bundle_of(stirred(modern(**SHAPE)), tokenizer)
    for name, forced in (("native", False), ("forced", True)):
        (tmp_path / name).mkdir()
        architecture, difference = export.write(bundle, "hf", tmp_path / name, "x", own_code=forced)
        assert architecture == ("isoflop" if forced else "apertus") and difference < 1e-5
        assert (tmp_path / name / "modeling_isoflop.py").exists() == forced
    assert torch.equal(
        export.read(tmp_path / "forced").model()(torch.tensor([[1, 2]])), bundle.model()(torch.tensor([[1, 2]]))
    )


def test_the_check_of_an_export_runs_the_code(tokenizer, tmp_path, monkeypatch):
    honest = own_code.Network.logits
    monkeypatch.setattr(own_code.Network, "logits", lambda self, h: honest(self, h) * 1.01)
    with pytest.raises(UserError, match="logits differ"):
        export.write(bundle_of(stirred(CONFIGS["value embeddings"]), tokenizer), "hf", tmp_path, "x")


def test_an_import_does_not_run_the_code_and_checks_the_description(tokenizer, tmp_path):
    export.write(bundle_of(stirred(CONFIGS["value embeddings"]), tokenizer), "hf", tmp_path, "x")
    for name in own_code.FILES:
        (tmp_path / name).write_text("raise SystemExit('it was run')")
    job.import_model(tmp_path, tmp_path / "run")
    written = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"network": 3}, "network"),
        ({"network": {**written["network"], "wiring": {"name": "isoflop.model.blocks.wiring.Wiring"}}}, "wiring"),
        ({"network": {**written["network"], "wiring": {"name": "os.system"}}}, "outside isoflop"),
        ({"network": {**written["network"], "d_model": 64}}, "its configuration gives"),
        ({"network": {**written["network"], "layers": 9000}}, "9000 layers"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**written, **change}))
        with pytest.raises(UserError, match=message):
            export.read(tmp_path)


def test_a_shorter_context_cuts_statistics_per_position(tokenizer, tmp_path):
    model = stirred(CONFIGS["sinusoidal, batch norm"])
    export.write(bundle_of(model, tokenizer), "hf", tmp_path, "x")
    tokens = torch.randint(V, (1, 8))
    assert torch.allclose(export.read(tmp_path, context=8).model()(tokens), model(tokens), atol=1e-6)


class OwnNorm(RMSNorm):
    pass


def test_code_of_the_users_own_is_refused_by_name(tokenizer, tmp_path):
    config = replace(CONFIGS["value embeddings"], norm=Spec("rms"))
    bundle = bundle_of(stirred(config), tokenizer)
    from isoflop.model.registry import trust_code

    with trust_code(__name__.partition(".")[0]):
        own = replace(config, norm=Spec(f"{__name__}.OwnNorm"))
        for forced in (False, True):
            with pytest.raises(UserError, match=r"model\.(norm|value_embedding) = ") as refused:
                export.write(replace(bundle, config=own), "hf", tmp_path, "x", own_code=forced)
        assert "OwnNorm" in str(refused.value) and "--set model=portable" in str(refused.value)
        assert not export.outlook(own)["hf"].possible
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_a_reader_needs(corpus, tmp_path, capsys):
    small = ["model.layers=1", "model.d_model=32", "model.heads=2", "model.context=64", "batch.sequences=4"]
    small += ["runtime.dtype=float32", "runtime.threads=1", "data.workers=1", "model.value_embedding=1"]
    where = str(tmp_path / "run")
    assert run(["train", str(corpus), "--budget", "4steps", "--set", *small, "--out", where]) == 0
    plan = capsys.readouterr().out.partition("plan for")[2]
    first = plan.splitlines()[1]
    assert first.split()[:6] == ["export", "Hugging", "Face", "with", "its", "own"] and "model=portable" in first
    recorded = json.loads((tmp_path / "run" / "plan.json").read_text())["exports"]
    assert recorded["formats"] == {"hf": "isoflop"} and recorded["own_code"] == ["hf"] and 0 < recorded["low"] < 0.1
    assert (
        "Exports to" in (tmp_path / "run" / "report.html").read_text()
        or "its own code" in (tmp_path / "run" / "report.html").read_text()
    )

    assert run(["export", where, "--to", "hf", "--out", str(tmp_path / "hf")]) == 0
    said = capsys.readouterr().out
    assert "hf isoflop" in said and "trust_remote_code=True" in said and "llama.cpp and vLLM" in said
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "its own code" in card and "trust\\_remote\\_code=True" in card

    assert run(["export", where, "--to", "gguf", "--own-code", "--out", str(tmp_path / "no")]) == 2
    assert "use --to hf" in capsys.readouterr().err
    assert run(["export", where, "--to", "gguf", "--out", str(tmp_path / "no")]) == 2
    assert "model.value_embedding = 1" in capsys.readouterr().err
    again = ["train", str(corpus), "--budget", "4steps", "--set", *small, "model=portable"]
    assert run([*again, "--out", str(tmp_path / "portable")]) == 0
    assert run(["export", str(tmp_path / "portable"), "--to", "gguf", "--out", str(tmp_path / "yes")]) == 0
    assert "gguf apertus" in capsys.readouterr().out
