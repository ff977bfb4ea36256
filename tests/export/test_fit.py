"""Whether a format can hold a model depends on what its entries compute, not on names; advice in refusals works."""

import itertools
import json
import os
import stat
import tarfile
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop import export, job
from isoflop.cli import run
from isoflop.errors import UserError
from isoflop.export.bundle import Bundle, weights_of
from isoflop.export.fit import nearest, sets_of, would_fit
from isoflop.export.formats import FORMATS, outlook
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.count import build_on_meta
from isoflop.model.gpt import GPT
from isoflop.model.presets import PRESETS, gpt2, modern
from isoflop.model.registry import SLOTS

SHAPE = {"vocab_size": 320, "context": 16, "layers": 2, "d_model": 32, "heads": 2}
pytest.importorskip("gguf", reason="needs the gguf package: pip install 'isoflop[gguf]'")


def bundle_of(config, tokenizer):
    model, generator = GPT(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return Bundle(config, {n: p.detach() for n, p in weights_of(model).items()}, tokenizer.to_json())


LLAMA = {**SHAPE, "norm": Spec("rms"), "attention": Spec("full", bias=False)}


@pytest.mark.parametrize(
    ("config", "hf", "gguf"),
    [
        (modern(**SHAPE), "apertus", "apertus"),
        (modern(**SHAPE, feed_forward=Spec("swiglu")), "qwen3", "qwen3"),
        (modern(**SHAPE, feed_forward=Spec("gated", activation="silu", d_ff=48)), "qwen3", "qwen3"),
        (modern(**SHAPE, feed_forward=Spec("geglu")), "qwen3", None),
        (modern(**SHAPE, feed_forward=Spec("reglu")), "qwen3", None),
        (modern(**SHAPE, feed_forward=Spec("bilinear")), "qwen3", None),
        (modern(**SHAPE, feed_forward=Spec("linear", bias=False)), "apertus", None),
        (modern(**SHAPE, feed_forward=Spec("mlp", activation="identity", bias=False)), "apertus", None),
        (ModelConfig(**LLAMA, feed_forward=Spec("swiglu")), "llama", "llama"),
        (ModelConfig(**LLAMA, feed_forward=Spec("swiglu", bias=True)), "llama", "llama"),
        (ModelConfig(**LLAMA, feed_forward=Spec("geglu", multiple_of=8)), "llama", None),
        (ModelConfig(**LLAMA, feed_forward=Spec("mlp", activation="relu2", bias=False)), "arcee", "arcee"),
        (ModelConfig(**LLAMA, feed_forward=Spec("mlp", activation="relu2")), "arcee", None),
        (gpt2(**SHAPE), "gpt2", "gpt2"),
        (gpt2(**SHAPE, feed_forward=Spec("linear")), "gpt2", None),
        (gpt2(**SHAPE, attention=Spec("full", window=16)), "gpt2", "gpt2"),
        (gpt2(**SHAPE, attention=Spec("full", window=15)), "isoflop", None),
        (gpt2(**SHAPE, attention=Spec("banded")), "gpt2", "gpt2"),
        (gpt2(**SHAPE, attention=Spec("banded", window=4)), "isoflop", None),
        (gpt2(**SHAPE, attention=Spec("alternating")), "gpt2", "gpt2"),
        (gpt2(**SHAPE, attention=Spec("alternating", pattern=("full", Spec("banded", window=8)))), "isoflop", None),
        (gpt2(**SHAPE, attention=Spec("isoflop.model.blocks.attention.Attention")), "gpt2", "gpt2"),
        (gpt2(**SHAPE, value_gate=False, encoder_layers=3), "gpt2", "gpt2"),  # nothing reads them here
        (gpt2(**SHAPE, wiring=Spec("post"), final_norm=False), "openai-gpt", None),
        (modern(**SHAPE, position=Spec("rotary", factor=4.0, original=8)), "apertus", "apertus"),
        (modern(**SHAPE, position=Spec("rotary", factor=4.0), feed_forward=Spec("swiglu")), "qwen3", None),
        (modern(**SHAPE, attention=Spec("full", bias=False)), "arcee", "arcee"),
        (modern(**SHAPE, attention=Spec("full", bias=True), feed_forward=Spec("swiglu")), "llama", "llama"),
    ],
)
def test_entries_are_resolved(config, hf, gguf, tmp_path, tokenizer):
    bundle, found = bundle_of(config, tokenizer), outlook(config, tokenizer.to_json())
    for target, architecture in (("hf", hf), ("gguf", gguf)):
        folder = tmp_path / target
        folder.mkdir()
        assert found[target].possible == (architecture is not None)
        if architecture is None:
            with pytest.raises(UserError, match="for such a model, train with --set "):
                export.write(bundle, target, folder, "x")
        else:
            assert found[target].architecture == architecture
            assert export.write(bundle, target, folder, "x") == (architecture, pytest.approx(0.0, abs=1e-5))


def assert_the_way_out_works(config):
    """For each format: what stands in the way is removed by the settings that are named."""
    for target, row in FORMATS.items():
        found = nearest(config, row.limits())[1]
        changed = would_fit(config, sets_of(found))
        build_on_meta(changed)
        assert not nearest(changed, row.limits())[1], (target, sets_of(found))


def built(**fields):
    try:
        config = ModelConfig(**fields)
        build_on_meta(replace(config, layers=max(1, config.layers)))  # without a layer nothing in one is checked
    except UserError:
        return None
    return config


def test_the_advice_works_for_combinations_of_entries():
    tried = 0
    for names in itertools.islice(itertools.product(*SLOTS.values()), 0, None, 61):  # every entry with many others
        if config := built(**SHAPE, **dict(zip(SLOTS, names, strict=True))):
            assert_the_way_out_works(config)
            tried += 1
    assert tried > 50


FEED_FORWARDS = st.builds(
    lambda name, activation, ratio, d_ff, bias: Spec(
        name, ratio=ratio, d_ff=d_ff, bias=bias, **({"activation": activation} if name in ("mlp", "gated") else {})
    ),
    st.sampled_from(["mlp", "gated", "swiglu", "geglu", "reglu", "bilinear", "linear"]),
    st.sampled_from(["relu", "gelu", "gelu_tanh", "relu2", "silu", "identity"]),
    st.sampled_from([1.0, 3.0, 4.0]),
    st.sampled_from([0, 24]),
    st.booleans(),
)
ATTENTIONS = st.builds(
    lambda name, qk_scale, **options: Spec(name, qk_scale=qk_scale if options["qk_norm"] else 1.0, **options),
    st.sampled_from(["full", "banded"]),
    st.sampled_from([1.0, 1.2]),
    kv_heads=st.sampled_from([0, 1, 2]),
    qk_norm=st.booleans(),
    qk_gain=st.booleans(),
    bias=st.booleans(),
    window=st.sampled_from([None, 4, 16, 32]),
    soft_cap=st.sampled_from([0.0, 30.0]),
)
ROTARY = st.builds(
    lambda **options: Spec("rotary", **options),
    base=st.sampled_from([500.0, 10_000.0]),
    interleaved=st.booleans(),
    factor=st.sampled_from([1.0, 8.0]),
)
CONFIGS = st.fixed_dictionaries(
    {
        "vocab_size": st.just(320),
        "context": st.just(16),
        "layers": st.sampled_from([0, 1, 2]),
        "d_model": st.sampled_from([32, 33, 48]),
        "heads": st.sampled_from([1, 2, 3, 4, 16]),
        "head_dim": st.sampled_from([0, 7, 16]),
        "norm": st.builds(lambda eps: Spec("rms", eps=eps), st.sampled_from([1e-6, 1e-5]))
        | st.sampled_from([Spec("layer"), Spec("layer", bias=False), Spec("rms", gain=False), Spec("batch")]),
        "position": ROTARY | st.sampled_from([Spec("learned"), Spec("alibi"), Spec("none")]),
        "attention": ATTENTIONS | st.sampled_from([Spec("latent"), Spec("none"), Spec("alternating")]),
        "feed_forward": FEED_FORWARDS | st.sampled_from([Spec("none"), Spec("moe")]),
        "wiring": st.sampled_from(["pre", "post", "parallel", "sandwich"]).map(Spec),
        "final_norm": st.booleans(),
        "tied_head": st.booleans(),
        "embedding_norm": st.booleans(),
        "logit_cap": st.sampled_from([0.0, 30.0]),
        "dropout": st.sampled_from([0.0, 0.1]),
    }
)


@settings(max_examples=60, deadline=None)
@given(CONFIGS)
def test_the_advice_works_for_any_options(fields):
    if config := built(**fields):
        assert_the_way_out_works(config)


@settings(max_examples=15, deadline=None)
@given(fields=CONFIGS, target=st.sampled_from(["hf", "gguf"]))
def test_every_format_called_possible_is_written_and_read_back(fields, target, tokenizer, tmp_path_factory):
    config = built(**{**fields, "layers": 1})
    if config is None:
        return
    config = would_fit(config, sets_of(nearest(config, FORMATS[target].limits())[1]))
    folder = tmp_path_factory.mktemp(target)
    architecture, difference = export.write(bundle_of(config, tokenizer), target, folder, "x")
    assert architecture == outlook(config)[target].architecture != "isoflop" and difference < 1e-4


@pytest.mark.parametrize("name", PRESETS)
def test_the_advice_works_for_every_preset(name):
    preset = PRESETS[name]()
    kv_heads = ["attention.kv_heads=0"] if "kv_heads" in dict(preset.attention.options) else []
    small = would_fit(preset, ["layers=2", "d_model=64", "heads=2", *kv_heads])
    assert_the_way_out_works(small)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("target", ["hf", "gguf"])
def test_exported_files_have_the_mode_of_new_files(umask, target, tmp_path, tokenizer):
    before = os.umask(umask)
    try:
        export.write(bundle_of(modern(**SHAPE), tokenizer), target, tmp_path, "x")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes and set(modes.values()) == {0o666 & ~umask}, modes


def test_a_swiglu_run_is_exported_and_a_refusal_names_what_to_set(corpus, tmp_path, capsys):
    small = ["model.layers=1", "model.d_model=32", "model.heads=2", "model.context=64", "batch.sequences=4"]
    small = ["model=portable", *small, "runtime.dtype=float32", "runtime.threads=1", "data.workers=1"]
    train = ["train", str(corpus), "--budget", "4steps", "--set", *small]
    assert run([*train, "model.feed_forward=swiglu", "--out", str(tmp_path / "swiglu")]) == 0
    for target in ("hf", "gguf"):
        assert run(["export", str(tmp_path / "swiglu"), "--to", target, "--out", str(tmp_path / f"s-{target}")]) == 0
    assert "gguf qwen3" in capsys.readouterr().out

    odd = ["model.feed_forward=geglu", "model.wiring=parallel"]
    assert run([*train, *odd, "--out", str(tmp_path / "odd")]) == 0
    capsys.readouterr()
    assert run(["export", str(tmp_path / "odd"), "--to", "gguf", "--out", str(tmp_path / "no")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0 and not (tmp_path / "no").exists()
    advised = error.partition("train with --set ")[2].split()
    assert advised == ["model.wiring=pre", "model.feed_forward=gated"]
    assert run([*train, *odd, *advised, "--out", str(tmp_path / "even")]) == 0
    assert run(["export", str(tmp_path / "even"), "--to", "gguf", "--out", str(tmp_path / "yes")]) == 0
    assert run(["export", str(tmp_path / "even"), "--to", "onnx", "--out", str(tmp_path / "x")]) == 2
    assert "--to onnx is not one of hf, gguf, llama2c" in capsys.readouterr().err


def test_a_trained_tokenizer_cannot_be_written_as_llama2c(tmp_path, tokenizer):
    config = PRESETS["stories-260k"](vocab_size=320, context=16)
    with pytest.raises(UserError, match="export --to gguf"):
        export.write(bundle_of(config, tokenizer), "llama2c", tmp_path, "x")
    llama2c = outlook(config, tokenizer.to_json())["llama2c"]
    assert not llama2c.possible and llama2c.tokenizer and not llama2c.sets


def test_a_llama2c_model_is_exported_as_it_was_imported(test_data, tmp_path):
    with tarfile.open(test_data / "stories260K.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "stories260K"
    job.import_model(folder / "stories260K.bin", tmp_path / "run", tokenizer=str(folder / "tok512.bin"))
    assert job.export_model(tmp_path / "run", "llama2c", tmp_path / "out").difference == 0
    # weights, sizes and the tables of angles: their program reads the tables
    ours, theirs = (
        torch.frombuffer(bytearray(p.read_bytes()[28:]), dtype=torch.float32)
        for p in (tmp_path / "out" / "model.bin", folder / "stories260K.bin")
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert (tmp_path / "out" / "model.bin").read_bytes()[:28] == (folder / "stories260K.bin").read_bytes()[:28]
    described = json.loads((tmp_path / "run" / "tokenizer.json").read_text())
    assert described["model"]["byte_fallback"]
