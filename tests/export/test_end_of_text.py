"""A tokenizer with an unusual name for its end-of-text token survives export to and import from every format."""

import json
from dataclasses import replace

import pytest
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from isoflop import export
from isoflop.cli import run
from isoflop.data.tokenizer import PROBE, Tokenizer
from isoflop.errors import UserError
from isoflop.export.bundle import Bundle, weights_of
from isoflop.export.vocabulary import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, sentencepiece
from isoflop.model.gpt import GPT
from isoflop.model.presets import modern, stories_260k


def byte_level(*special, merged=True):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: n for n, piece in enumerate([*alphabet, *("fo", "fox")[: 2 * merged]])}
    inner = Library(models.BPE(vocabulary, [("f", "o"), ("fo", "x")] if merged else []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return inner.to_str()


def sentence_pieces():
    pieces = ["<unk>", "<bos>", "<|doc|>", *[f"<0x{b:02X}>" for b in range(256)], SPACE, "a", SPACE + "a"]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * 3]
    return sentencepiece(pieces, [0.0] * 259 + [-1.0, -2.0, 0.0], kinds, start=1, origin="here")


# a name alone; one next to a name in use, which would be taken without the setting; one with a token that begins texts
GIVEN = {
    "<|eos|>": byte_level("<|eos|>"),
    "[DOC]": byte_level("<|endoftext|>", "[DOC]"),
    "<|doc|>": sentence_pieces(),
}


def bundle_of(name):
    tokenizer = Tokenizer.from_json(GIVEN[name], end_of_text=name)
    config = modern(vocab_size=tokenizer.vocab_size + 3, context=32, layers=1, d_model=32, heads=2)
    if name == "<|doc|>":  # llama2.c has this family alone
        config = stories_260k(vocab_size=tokenizer.vocab_size, context=32, layers=1)
    torch.manual_seed(0)
    model = GPT(config)
    return tokenizer, Bundle(config, {n: p.detach() for n, p in weights_of(model).items()}, tokenizer.to_json())


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("target", ["hf", "gguf"])
def test_it_is_written_and_read_back(target, name, tmp_path):
    tokenizer, bundle = bundle_of(name)
    export.write(bundle, target, tmp_path, "x")
    again = Tokenizer.from_json(export.read(tmp_path).tokenizer)
    assert (again.start, again.eot) == (tokenizer.start, tokenizer.eot)
    assert again.encode(PROBE) == tokenizer.encode(PROBE) and again.eot not in again.encode(name)


def test_llama2c_supports_it_too(tmp_path):
    tokenizer, bundle = bundle_of("<|doc|>")
    export.write(bundle, "llama2c", tmp_path, "x")
    again = Tokenizer.from_json(export.read(tmp_path / "model.bin").tokenizer)
    assert again.encode(PROBE) == tokenizer.encode(PROBE)


@pytest.mark.parametrize("name", GIVEN)
def test_transformers_has_the_same_ids_and_the_same_end(name, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'isoflop[test]'")
    tokenizer, bundle = bundle_of(name)
    export.write(bundle, "hf", tmp_path, "x")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token == name and theirs.eos_token_id == tokenizer.eot
    assert theirs.bos_token_id == tokenizer.start
    assert theirs("a fox  sat")["input_ids"] == [tokenizer.start, *tokenizer.encode("a fox  sat")]
    assert transformers.GenerationConfig.from_pretrained(tmp_path).eos_token_id == tokenizer.eot


@pytest.mark.parametrize("name", GIVEN)
def test_the_header_of_a_gguf_has_its_ids(name, tmp_path):
    gguf = pytest.importorskip("gguf", reason="needs the gguf package: pip install 'isoflop[gguf]'")
    tokenizer, bundle = bundle_of(name)
    export.write(bundle, "gguf", tmp_path, "x")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    ids = {key: int(fields[f"tokenizer.ggml.{key}_token_id"].contents()) for key in ("bos", "eos")}
    assert ids == {"bos": tokenizer.start, "eos": tokenizer.eot}


def foreign(tmp_path, **config):
    """A folder of other people's: no mark of ours anywhere."""
    _, bundle = bundle_of("<|eos|>")
    export.write(bundle, "hf", tmp_path, "x")
    (tmp_path / "tokenizer.json").write_text(GIVEN["<|eos|>"], encoding="utf-8")
    original = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**original, "eos_token_id": None, **config}), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").unlink()
    return tmp_path


@pytest.mark.parametrize("eos", [258, [258, 3]])
def test_an_imported_model_names_its_end_of_text(eos, tmp_path):
    assert Tokenizer.from_json(export.read(foreign(tmp_path, eos_token_id=eos)).tokenizer).eot == 258


def test_without_a_name_the_advice_works(tmp_path, capsys):
    (tmp_path / "hf").mkdir()
    folder = foreign(tmp_path / "hf")
    assert run(["import", str(folder), "--out", str(tmp_path / "run")]) == 2
    advice = capsys.readouterr().err.rpartition("name its own with ")[2].strip()
    assert advice == "--end-of-text '<|eos|>'"
    assert run(["import", str(folder), "--out", str(tmp_path / "run"), *advice.replace("'", "").split()]) == 0
    assert run(["sample", str(tmp_path / "run"), "--tokens", "3"]) == 0


def test_a_tokenizer_that_llama_cpp_cannot_load_is_refused_and_noted_in_the_plan(tmp_path):
    tokenizer = Tokenizer.from_json(byte_level("<|endoftext|>", merged=False))
    _, bundle = bundle_of("<|eos|>")
    bundle = replace(bundle, tokenizer=tokenizer.to_json())
    assert not export.outlook(bundle.config, bundle.tokenizer)["gguf"].possible
    with pytest.raises(UserError, match=r"without merges.*--to hf"):
        export.write(bundle, "gguf", tmp_path, "x")
