"""Tokens to text: pieces, stop strings, text held back until it is certain."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isoflop.errors import UserError
from isoflop.generate.engine import generate, generate_all
from isoflop.generate.text import Text
from isoflop.model.gpt import GPT
from isoflop.model.presets import PRESETS


class Bytes:
    """A token is a byte; 256 ends a text."""

    eot = start = 256

    def encode(self, text):
        return list(text.encode())

    def decode_bytes(self, ids, begins=True):
        return bytes(ids)


letters = st.text(alphabet="ab\n é", max_size=12)


@given(text=letters, stops=st.lists(letters.filter(bool), max_size=3), streamed=st.booleans())
def test_a_text_ends_before_its_first_stop_string(text, stops, streamed):
    pieces = []
    made = Text(Bytes(), begins=True, on_text=pieces.append if streamed else None, stops=stops)
    for token in text.encode():
        if made.add(token):
            break
    ends = []  # for each stop string that is complete first, where it begins
    for n in range(len(text) + 1):
        ends = [at for at in (text[:n].find(stop) for stop in stops) if at >= 0]
        if ends:
            break
    assert made.end() == (text[: min(ends)] if ends else text)
    assert not streamed or ("".join(pieces) == made.end() and all(pieces))


def model_of():
    torch.manual_seed(0)
    model = GPT(PRESETS["modern"](vocab_size=257, context=32, layers=1, d_model=16, heads=2)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model.double()


def test_each_row_ends_at_its_own_stop_string():
    model, prompts = model_of(), ["a", "bc", "", "some more"]
    whole = generate_all(model, Bytes(), prompts, 30, seed=1)
    stops = [next(c for c in whole[0][4:] if c != "\N{REPLACEMENT CHARACTER}"), "never said"]
    cut = generate_all(model, Bytes(), prompts, 30, seed=1, stops=stops)
    assert cut == [text.partition(stops[0])[0] for text in whole]
    assert cut == [generate(model, Bytes(), prompt, 30, seed=1 + i, stops=stops) for i, prompt in enumerate(prompts)]
    assert cut[0] != whole[0]


def test_a_row_that_reached_its_stop_string_is_not_computed():
    model, asked = model_of(), []
    model.embedding.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
    whole = generate_all(model, Bytes(), ["a", "b"], 30)
    stop = next(c for c in whole[0][3:] if c not in whole[1] and c != "\N{REPLACEMENT CHARACTER}")
    asked.clear()
    generate_all(model, Bytes(), ["a", "b"], 30, stops=[stop])
    assert asked[0] == 2 and asked[-1] == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"stops": [""]}, "--stop ''"),
        ({"stops": "END"}, r"stops = 'END' is one text; write a list of stop strings, as in \['END'\]"),
        ({"stops": [b"END"]}, "the stop string b'END' is not a string"),
        ({"repetition_penalty": 1e300}, "--repetition-penalty 1e.300 is not a number above 0"),
        ({"repetition_penalty": 1e-50}, "--repetition-penalty 1e-50 is not a number above 0"),
        ({"top_k": 1.5}, "--top-k 1.5 is not a whole number"),
        ({"min_p": 1.5}, "--min-p 1.5"),
        ({"min_p": float("nan")}, "--min-p nan"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty 0"),
        ({"repetition_penalty": float("inf")}, "--repetition-penalty inf"),
    ],
)
def test_invalid_arguments_are_named(arguments, named):
    with pytest.raises(UserError, match=named):
        generate(model_of(), Bytes(), "a", 3, **arguments)


def test_the_repetition_penalty_covers_prompt_and_output():
    model = model_of()
    plain = generate_all(model, Bytes(), ["abab"] * 20, 25, seed=0)
    varied = generate_all(model, Bytes(), ["abab"] * 20, 25, seed=0, repetition_penalty=5.0)
    assert np.mean([len(set(text)) for text in varied]) > np.mean([len(set(text)) for text in plain])
