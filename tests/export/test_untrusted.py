"""Untrusted files are refused in one line, nothing is unpickled, and no files are left behind."""

import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from isoflop import export
from isoflop.errors import UserError
from isoflop.export.bundle import Bundle, weights_of
from isoflop.export.formats import FORMATS
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.gpt import GPT
from isoflop.model.presets import gpt2, modern

SHAPE = {"vocab_size": 320, "context": 16, "layers": 1, "d_model": 16, "heads": 2}
LLAMA = ModelConfig(
    **SHAPE,
    norm=Spec("rms"),
    attention=Spec("full", bias=False),
    feed_forward=Spec("gated", d_ff=32),
    init=Spec("gpt2"),
)


def bundle_of(config, tokenizer):
    return Bundle(config, {n: p.detach() for n, p in weights_of(GPT(config)).items()}, tokenizer.to_json())


@pytest.fixture
def hf(tmp_path, tokenizer):
    folder = tmp_path / "hf"
    folder.mkdir()
    export.write(bundle_of(LLAMA, tokenizer), "hf", folder, "x")
    return folder


@pytest.fixture
def gguf(tmp_path, tokenizer):
    pytest.importorskip("gguf", reason="needs the gguf package: pip install 'isoflop[gguf]'")
    folder = tmp_path / "gguf"
    folder.mkdir()
    export.write(bundle_of(LLAMA, tokenizer), "gguf", folder, "x")
    return folder / "model.gguf"


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**7}, "layers"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"vocab_size": 321}, "321"),
        ({"hidden_act": "xielu"}, "xielu"),
        ({"head_dim": 10**6}, "q_proj"),
        ({"num_key_value_heads": 3}, "3 key-value heads"),
        ({"rms_norm_eps": None, "tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"layer_types": ["sliding_attention"]}, "sliding_attention"),
        ({"tie_word_embeddings": False}, "lm_head"),
        ({"attention_bias": True}, "bias"),
    ],
)
def test_a_false_config_is_named(hf, fields, named):
    if fields == {"tie_word_embeddings": False}:
        tensors = load_file(hf / "model.safetensors")
        del tensors["lm_head.weight"]
        save_file(tensors, hf / "model.safetensors")
    change(hf / "config.json", **fields)
    with pytest.raises(UserError, match=named) as error:
        export.read(hf)
    assert "\n" not in str(error.value)


def test_weights_that_are_not_safetensors_are_one_line(hf):
    whole = (hf / "model.safetensors").read_bytes()
    for data in (whole[:-100], whole[:4], b"", struct.pack("<Q", 2**60) + whole[8:], b"\0" * 64):
        (hf / "model.safetensors").write_bytes(data)
        with pytest.raises(UserError, match="safetensors") as error:
            export.read(hf)
        assert "\n" not in str(error.value)


def test_integer_and_unknown_tensors_are_refused(hf):
    tensors = load_file(hf / "model.safetensors")
    save_file({**tensors, "model.norm.weight": torch.ones(16, dtype=torch.int32)}, hf / "model.safetensors")
    with pytest.raises(UserError, match="I32"):
        export.read(hf)
    save_file({**tensors, "model.layers.0.self_attn.sinks": torch.ones(2)}, hf / "model.safetensors")
    with pytest.raises(UserError, match="sinks"):
        export.read(hf)


def test_a_pickle_is_never_opened(hf, tmp_path):
    (hf / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "was here"), "w"))

    (hf / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    torch.save({"x": torch.ones(2)}, tmp_path / "model.bin")
    for path in (hf, hf / "pytorch_model.bin", tmp_path / "model.bin"):
        with pytest.raises(UserError, match="pickle"):
            export.read(path, tokenizer=str(hf / "tokenizer.json"))
    assert not (tmp_path / "was here").exists()


def test_an_index_cannot_name_files_outside_its_folder(hf):
    (hf / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(UserError, match="weight_map"):
        export.read(hf)


def test_every_cut_of_a_gguf_is_one_line(gguf):
    whole = gguf.read_bytes()
    for end in [*range(0, 64, 5), *range(64, len(whole) - 1, 997), len(whole) - 1]:
        gguf.write_bytes(whole[:end])
        with pytest.raises(UserError) as error:
            export.read(gguf.parent)
        assert "\n" not in str(error.value)


def test_false_lengths_in_a_gguf_cost_no_memory(gguf):
    whole = gguf.read_bytes()
    for start in range(8, 6000, 53):  # a huge number anywhere in the header: read as the same model or refused
        gguf.write_bytes(whole[:start] + struct.pack("<Q", 2**60) + whole[start + 8 :])
        try:
            export.read(gguf.parent)
        except UserError as error:
            assert "\n" not in str(error)


def test_a_llama2c_file_of_another_size_is_refused(tmp_path, hf):
    path = tmp_path / "model.bin"
    for header in (
        (64, 172, 5, 8, 4, 512, 512),
        (2**23, 8, 2**23, 8, 4, 9, 9),
        (64, 172, 5, 7, 4, 512, 512),
        (-1,) * 7,
    ):
        path.write_bytes(struct.pack("<7i", *header) + b"\0" * 1000)
        with pytest.raises(UserError, match=r"llama2\.c"):
            export.read(path, tokenizer=str(hf / "tokenizer.json"))


@pytest.mark.parametrize(
    ("config", "target", "named"),
    [
        (modern(**SHAPE, wiring=Spec("parallel")), "hf", "model.wiring = parallel"),
        (modern(**SHAPE, norm=Spec("none")), "hf", "model.norm = none"),
        (modern(**SHAPE, position=Spec("sinusoidal")), "hf", "model.position = sinusoidal"),
        (modern(**SHAPE, embedding_norm=True), "hf", "model.embedding_norm"),
        (gpt2(**SHAPE, logit_cap=30.0), "hf", "model.logit_cap = 30.0 cannot be written as"),
        (gpt2(**SHAPE, logit_cap=30.0), "gguf", "model.logit_cap = 30.0 cannot be written as"),
        (gpt2(**SHAPE, value_embedding=2), "hf", "model.value_embedding = 2 cannot be written as"),
        (gpt2(**SHAPE, embedding_shortcut=True), "gguf", "model.embedding_shortcut = True cannot be written as"),
        (gpt2(**SHAPE, smear=True), "hf", "model.smear = True cannot be written as"),
        (gpt2(**SHAPE, backout=True), "gguf", "model.backout = True cannot be written as"),
        (modern(**SHAPE, feed_forward=Spec("none")), "hf", "model.feed_forward = none"),
        (modern(**SHAPE, norm=Spec("rms", eps=1e-5)), "hf", "model.norm.eps"),
        (gpt2(**SHAPE, attention=Spec("full", kv_heads=1)), "hf", "kv_heads"),
        (gpt2(**SHAPE, wiring=Spec("post"), final_norm=False, feed_forward=Spec("mlp", ratio=3.0)), "hf", "d_ff = 48"),
        (modern(**SHAPE, feed_forward=Spec("mlp", bias=False)), "gguf", "model.feed_forward.activation = gelu"),
        (gpt2(**SHAPE, feed_forward=Spec("mlp", activation="relu")), "gguf", "activation = relu"),
    ],
)
def test_a_block_that_the_format_lacks_is_named(config, target, named, tmp_path, tokenizer):
    """Of Hugging Face: that its architectures lack, so that the export has code of its own (test_own_code.py)."""
    with pytest.raises(UserError, match=named):
        FORMATS[target].write(bundle_of(config, tokenizer), tmp_path, "x")
