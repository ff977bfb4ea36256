"""llama.cpp itself reads what is exported: the same ids, the same greedy tokens, the same distribution at each of them.

It is compiled in PyPI's xllamacpp, which has no function for logits; its server gives the logarithm of every id's
probability before sampling, in which logits show up to one number that is the same for all.
"""

import json
import urllib.request

import pytest
import torch

from isoflop import export
from isoflop.data.tokenizer import PROBE, Tokenizer
from isoflop.export.bundle import Bundle, weights_of
from isoflop.export.vocabulary import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, sentencepiece
from isoflop.generate.engine import generate
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.gpt import GPT
from isoflop.model.presets import gpt2, modern

xllamacpp = pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")
pytest.importorskip("gguf", reason="needs the gguf package: pip install 'isoflop[gguf]'")
pytestmark = pytest.mark.engine

V, T = 320, 48
SHAPE = {"vocab_size": V, "context": T, "layers": 2, "d_model": 64, "heads": 2}
LLAMA3 = {"base": 500.0, "factor": 4.0, "low_freq": 1.0, "high_freq": 4.0, "original": 16}


def llama(**options):
    slots = {"norm": Spec("rms", eps=1e-5), "attention": Spec("full", kv_heads=1, bias=False)}
    return ModelConfig(**SHAPE, **{**slots, "feed_forward": Spec("swiglu"), **options})


MODELS = {
    "modern": (modern(**SHAPE), "apertus"),
    "modern, tied": (modern(**SHAPE, tied_head=True), "apertus"),
    "modern, scaled": (modern(**SHAPE, position=Spec("rotary", **LLAMA3)), "apertus"),
    "modern, gains and biases": (
        modern(
            **SHAPE,
            norm=Spec("rms"),
            attention=Spec("full", qk_norm=True, kv_heads=1, bias=True),
            position=Spec("rotary", interleaved=True, base=500.0),
        ),
        "apertus",
    ),
    "without QK norm": (modern(**SHAPE, attention=Spec("full", bias=False), norm=Spec("rms", eps=1e-5)), "arcee"),
    "without QK norm, tied": (modern(**SHAPE, attention=Spec("full", bias=False), tied_head=True), "arcee"),
    "gpt2": (gpt2(**SHAPE), "gpt2"),
    "gpt2, a band as wide as the context": (gpt2(**SHAPE, attention=Spec("alternating")), "gpt2"),
    "llama": (llama(), "llama"),
    "llama, tied": (llama(tied_head=True, position=Spec("rotary", interleaved=True)), "llama"),
    "llama, biases": (llama(attention=Spec("full"), feed_forward=Spec("gated", bias=True)), "llama"),
    "llama 3": (llama(position=Spec("rotary", **LLAMA3)), "llama"),
    "qwen3": (
        llama(norm=Spec("rms"), attention=Spec("full", qk_norm=True, kv_heads=1, bias=False), head_dim=48),
        "qwen3",
    ),
}


def stirred(config: ModelConfig, tokenizer=None) -> GPT:
    """Random values in every parameter, gains and biases too, but for the rows of ids that are no text by themselves:
    the server holds half a character back, with its probabilities."""
    model, generator = GPT(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.1 if p.ndim == 2 else 0.3) + float(p.ndim == 1))
        if tokenizer is not None:
            text = [tokenizer.decode_bytes([i]).isascii() and i != tokenizer.eot for i in range(V)]
            model.head_weight[~torch.tensor(text)] = 0.0
    return model


def server(path):
    """llama.cpp's server with a model, everything in float32."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = T, 1, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


def completed(engine, prompt, tokens):
    """(ids, log-probabilities of every id at each of them)."""
    asked = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "n_probs": V, "cache_prompt": False}
    answer = engine.handle_completions(asked)
    answer = json.loads(answer) if isinstance(answer, str) else answer
    content = answer["choices"][0]["logprobs"]["content"]
    rows = []
    for item in content:
        row = torch.full((V,), float("nan"))
        for one in item["top_logprobs"]:
            row[one["id"]] = one["logprob"]
        rows.append(row)
    return [item["id"] for item in content], torch.stack(rows)


def tokenised(engine, text):
    body = json.dumps({"content": text, "add_special": True, "parse_special": False}).encode()
    request = urllib.request.Request(
        f"{engine.listening_address}/tokenize", body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())["tokens"]


@pytest.mark.parametrize("name", MODELS)
def test_it_continues_a_text_as_isoflop_does(name, tmp_path, tokenizer, capfd):
    config, architecture = MODELS[name]
    model = stirred(config, tokenizer)
    weights = {n: p.detach() for n, p in weights_of(model).items()}
    assert export.write(Bundle(config, weights, tokenizer.to_json()), "gguf", tmp_path, "test")[0] == architecture
    engine = server(tmp_path / "model.gguf")
    for text in ("Once upon a time", PROBE.strip(), "12,345 things  to\n\nnobody", "na\u00efve \u4e2d\u6587", ""):
        assert tokenised(engine, text) == [tokenizer.start, *tokenizer.encode(text)], text

    prompt = "Once upon a time there was"
    ids, logs = completed(engine, prompt, 12)
    assert len(ids) == 12
    assert tokenizer.decode(ids) == generate(model, tokenizer, prompt, len(ids), temperature=0.0)
    tokens = [tokenizer.start, *tokenizer.encode(prompt)]
    with torch.no_grad():
        logits = model(torch.tensor([tokens + ids]))[0, len(tokens) - 1 : -1]
    assert logits.argmax(-1).tolist() == ids
    difference = (logits.log_softmax(-1) - logs).abs().max()
    assert difference < 1e-3, difference

    del engine
    log = "".join(capfd.readouterr())
    assert "pre-tokenizer" not in log and "DEGRADED" not in log  # llama.cpp's words where it does not know the cut


def test_it_reads_a_sentencepiece_tokenizer_as_isoflop_does(tmp_path):
    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)]]
    pieces += [SPACE + "t", "he", SPACE + "the", SPACE, "t", "h", "e", "a"]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * 8]
    scores = [0.0] * 259 + [-0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0]
    text = sentencepiece(pieces, scores, kinds, start=1, origin="here")
    config = llama()
    weights = {n: p.detach() for n, p in weights_of(stirred(config)).items()}
    export.write(Bundle(config, weights, text), "gguf", tmp_path, "test")
    engine = server(tmp_path / "model.gguf")
    encode = Tokenizer.from_json(text).encode
    for written in ("the a", " the", "hea\n", ""):
        assert tokenised(engine, written) == [1, *encode(written)], written
