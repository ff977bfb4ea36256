"""Strided perplexity: the recipe of transformers' documentation, on the same weights."""

import math

import numpy as np
import pytest
import torch

from isoflop.errors import UserError
from isoflop.evaluate.perplexity import strided, texts_of

PAGE = "The cat sat on the mat, and the dogs ran to it; a fox said 12,345 things. Nobody at all ran to the dogs.\n" * 6


def recipe(logits_of, ids, length, stride):
    """`Perplexity of fixed-length models`, with any model: mean of each window's targets, weighed by their number."""
    nats, count, before = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + length, len(ids))
        window = torch.tensor(ids[begin:end])
        labels = window.clone()
        labels[: -(end - before)] = -100
        loss = torch.nn.functional.cross_entropy(logits_of(window[None])[0, :-1], labels[1:])
        new = int((labels[1:] != -100).sum())
        nats, count, before = nats + float(loss) * new, count + new, end
        if end == len(ids):
            break
    return nats, count


@pytest.mark.parametrize("stride", [1, 7, 16, 31])
def test_it_equals_the_documented_recipe(model, tokenizer, runtime, stride):
    found = strided(model, tokenizer, [PAGE], stride, runtime)
    with torch.no_grad():
        nats, count = recipe(model, [tokenizer.start, *tokenizer.encode(PAGE)], model.config.context, stride)
    assert (found.nats, found.tokens) == (pytest.approx(nats, rel=1e-5), count)
    assert count == len(tokenizer.encode(PAGE)) and found.words == len(PAGE.split()) and found.bytes == len(PAGE)
    values = found.to_dict()
    assert values["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-5)
    assert values["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(PAGE), rel=1e-5)


def test_transformers_gives_the_same_on_the_same_weights(tokenizer, runtime, tmp_path):
    transformers = pytest.importorskip("transformers")
    from isoflop import export
    from isoflop.model.build import build_model
    from isoflop.model.config import ModelConfig
    from isoflop.model.presets import PRESETS
    from isoflop.parallel.state import model_tensors

    preset = PRESETS["gpt2"]()
    sizes = {"vocab_size": tokenizer.vocab_size, "context": 32, "layers": 2, "d_model": 32, "heads": 2}
    config = ModelConfig(**{**{name: getattr(preset, name) for name in preset.__dataclass_fields__}, **sizes})
    torch.manual_seed(0)
    model = build_model("causal_lm", config).eval()
    weights = {name.removeprefix("model."): tensor.detach().clone() for name, tensor in model_tensors(model).items()}
    export.write(export.Bundle(config, weights, tokenizer.to_json()), "hf", tmp_path, "small")
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        ids = [tokenizer.start, *tokenizer.encode(PAGE)]
        nats, count = recipe(lambda window: other(window).logits, ids, 32, 16)
    found = strided(model, tokenizer, [PAGE], 16, runtime)
    assert found.nats / found.tokens == pytest.approx(nats / count, rel=1e-5)


def test_texts_are_independent_and_empty_ones_do_not_count(model, tokenizer, runtime):
    one, two = (strided(model, tokenizer, [text], 8, runtime) for text in (PAGE, "The cat ran."))
    both = strided(model, tokenizer, [PAGE, "", "The cat ran."], 8, runtime)
    assert both.nats == pytest.approx(one.nats + two.nats, rel=1e-6)
    assert (both.documents, both.tokens, both.bytes) == (2, one.tokens + two.tokens, one.bytes + two.bytes)


def test_texts_of_a_stream_end_where_a_document_does(tokenizer):
    texts = ["The cat.", "", "A fox"]
    stream = np.concatenate([[*tokenizer.encode(text), tokenizer.eot] for text in texts])
    assert [text for text in texts_of(stream, tokenizer) if text] == ["The cat.", "A fox"]


@pytest.mark.parametrize("stride", [-1, 0, 32, 33])
def test_a_stride_that_makes_no_sense_is_refused(model, tokenizer, runtime, stride):
    with pytest.raises(UserError, match=f"--stride {stride} is not from 1 to 31"):
        strided(model, tokenizer, [PAGE], stride, runtime)
    with pytest.raises(UserError, match="no text"):
        strided(model, tokenizer, [""], 4, runtime)
