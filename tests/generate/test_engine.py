"""From a prompt to text: caches, seeds, windows, streams."""

import pytest
import torch

from isoflop.errors import UserError
from isoflop.generate.cache import KVCache
from isoflop.generate.engine import decode, generate, generate_all, prefill, stream, stream_all
from isoflop.generate.layout import lay_out
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.gpt import GPT
from isoflop.model.presets import PRESETS


class Bytes:
    """A token is a byte; 256 ends a text."""

    eot = start = 256

    def encode(self, text):
        return list(text.encode())

    def decode_bytes(self, ids, begins=True):
        return bytes(ids)


class Says(GPT):
    """A model that always predicts the same text, whatever its input."""

    def __init__(self, ids, context=64):
        super().__init__(ModelConfig(vocab_size=257, context=context, layers=1, d_model=8, heads=1))
        self.ids, self.asked = list(ids), 0

    def logits(self, h_BTD):
        wanted, self.asked = self.ids[self.asked], self.asked + 1
        return torch.nn.functional.one_hot(torch.tensor([wanted]), 257) * 50.0


def model_of(preset="modern", context=16, stir=0.3, **fields):
    torch.manual_seed(0)
    shape = {"vocab_size": 257, "context": context, "layers": 2, "d_model": 32, "heads": 4}
    model = GPT(PRESETS[preset](**{**shape, **fields})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * stir)
    return model


def test_the_last_of_several_seeds_is_in_range():
    model, last = model_of(), 2**63 - 1
    assert len(generate_all(model, Bytes(), ["a"], 1, seed=last)) == 1
    with pytest.raises(UserError, match=f"--seed {last} and the 1 after it go beyond"):
        generate_all(model, Bytes(), ["a", "b"], 1, seed=last)
    with pytest.raises(UserError, match=f"--seed {last - 1} and the 2 after it go beyond"):
        list(stream_all(model, [[1], [2], [3]], 1, seed=last - 1))


@pytest.mark.parametrize("preset", ["gpt2", "modern"])
def test_prefill_and_decode_equal_the_full_forward(preset):
    model = model_of(preset).double()
    tokens = torch.randint(257, (3, 16))
    full = model(tokens)
    cache = KVCache(16)
    torch.testing.assert_close(prefill(model, tokens[:, :9], cache), full[:, 8])
    for t in range(9, 16):
        torch.testing.assert_close(decode(model, tokens[:, t], cache), full[:, t])
    assert cache.length == 16


def test_a_cache_that_is_full_refuses():
    model, cache = model_of(), KVCache(4)
    with pytest.raises(ValueError, match="cache of 4"):
        prefill(model, torch.zeros(1, 5, dtype=torch.long), cache)


def test_a_cleared_cache_starts_empty():
    model, cache = model_of().double(), KVCache(16)
    prefill(model, torch.randint(257, (1, 12)), cache)
    cache.clear()
    tokens = torch.randint(257, (1, 7))
    torch.testing.assert_close(prefill(model, tokens, cache), model(tokens)[:, -1])


@pytest.mark.parametrize("preset", ["gpt2", "modern"])
@pytest.mark.parametrize("context", [1, 2, 7])
def test_greedy_text_past_the_context_is_what_the_window_predicts(preset, context):
    """Token by token with the full forward over the documented window: when full, keep the last half and go on."""
    model = model_of(preset, context=context)
    prompt = [256, 5, 9]
    window, expected = prompt[-context:], []
    for _ in range(20):
        expected.append(model(torch.tensor([window]))[0, -1].argmax().item())
        window = [*window, expected[-1]]
        if len(window) > context:
            window = window[-max(1, context // 2) :]
    assert list(stream(model, prompt, 20, temperature=0.0)) == expected


def test_a_long_prompt_is_read_from_its_end():
    model = model_of(context=8)
    prompt = list(range(100))
    assert list(stream(model, prompt, 4, temperature=0.0)) == list(stream(model, prompt[-8:], 4, temperature=0.0))


def test_a_seed_fixes_the_text_and_the_global_generator_is_unchanged():
    model = model_of()
    state = torch.get_rng_state()
    one, again, other = (generate(model, Bytes(), "ab", 30, seed=s, stop_at_eot=False) for s in (3, 3, 4))
    assert one == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_is_off_while_generating_and_training_mode_comes_back():
    model = model_of(dropout=0.5).train()
    first = generate(model, Bytes(), "ab", 20, temperature=0.0)
    assert first == generate(model, Bytes(), "ab", 20, temperature=0.0)
    assert model.training


def test_the_prompt_follows_an_end_of_text():
    model, seen = model_of(), []
    model.embedding.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].tolist()))
    generate(model, Bytes(), "ab", 1)
    generate(model, Bytes(), "", 1)
    assert seen == [[[256, 97, 98]], [[256]]]


def test_an_end_of_text_stops_generation_or_decodes_to_nothing():
    ids = [*b"one", 256, *b"two"]
    assert generate(Says(ids), Bytes(), "", 7) == "one"
    assert generate(Says(ids), Bytes(), "", 7, stop_at_eot=False) == "onetwo"


def test_no_more_tokens_are_computed_than_requested():
    model = Says(b"abcdef")
    assert generate(model, Bytes(), "", 4) == "abcd"
    assert model.asked == 4


@pytest.mark.parametrize(
    "data", ["naïve – 漢字 🙂 é".encode(), b"ok \xff\xfe bad", "cut 🙂".encode()[:-1], b"\xe2\x82", b"a\x00\r\nb"]
)
def test_pieces_are_whole_characters_and_join_to_the_text(data):
    pieces = []
    text = generate(Says(data), Bytes(), "", len(data), temperature=0.0, on_text=pieces.append)
    assert "".join(pieces) == text == data.decode("utf-8", errors="replace")
    assert all(pieces)
    if b"\xff" not in data:  # then only a cut end may read as U+FFFD, and only in the last piece
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces[:-1])


def test_pieces_are_streamed():
    model = Says(b"abcd")
    asked = []
    generate(model, Bytes(), "", 4, on_text=lambda piece: asked.append(model.asked))
    assert asked == [1, 2, 3, 4]


@pytest.mark.parametrize("arguments", [{"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"tokens": 0}])
def test_invalid_arguments_are_refused_before_any_work(arguments):
    model = Says(b"")
    with pytest.raises(UserError):
        generate(model, Bytes(), "", **{"tokens": 1, **arguments})
    assert model.asked == 0


PROMPTS = [[256, 5, 9], [256], [256, *range(40)], [256, 7, 7, 7, 7, 7, 7], [3, 1]]


@pytest.mark.parametrize(
    ("prompts", "how", "named"),
    [
        ([[1], []], {}, "prompt 1 has no ids"),
        ([[1], [2, 10**6]], {}, "prompt 1 has the id 1000000"),
        ([[-1]], {}, "prompt 0 has the id -1"),
        ([[1]], {"temperature": -1.0}, "--temperature -1"),
        ([[1]], {"seed": -1}, "--seed -1"),
        ([[1]], {"slots": -1}, "slots = -1 is negative"),
    ],
)
def test_invalid_ids_and_rules_are_named(prompts, how, named):
    with pytest.raises(UserError, match=named):
        list(stream_all(model_of(), prompts, 2, **how))


@pytest.mark.parametrize("preset", ["gpt2", "modern"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_row_of_a_batch_equals_the_row_alone(preset, temperature):
    """Prompts of all lengths, one past the context; on past the end of the context; by their own seeds."""
    model = model_of(preset).double()
    how = {"temperature": temperature, "top_p": 0.9}
    rows = [[] for _ in PROMPTS]
    for row, token in stream_all(model, PROMPTS, 25, **how, seed=3):
        rows[row].append(token)
    assert rows == [list(stream(model, prompt, 25, **how, seed=3 + i)) for i, prompt in enumerate(PROMPTS)]


def test_a_row_that_stops_leaves_the_others_as_they_were():
    model = model_of(stir=1.0).double()
    alone = [list(stream(model, prompt, 25, temperature=0.0)) for prompt in PROMPTS]
    stop = alone[0][7]
    rows = [[] for _ in PROMPTS]
    for row, token in stream_all(model, PROMPTS, 25, temperature=0.0, stop=stop):
        rows[row].append(token)
    assert rows == [row[: row.index(stop) + 1] if stop in row else row for row in alone]
    assert len({len(row) for row in rows}) > 1


def test_each_text_of_a_batch_equals_the_text_alone():
    model = model_of().double()
    prompts = ["ab", "", "a longer one, past the context", "é"]
    alone = [generate(model, Bytes(), prompt, 20, seed=5 + i) for i, prompt in enumerate(prompts)]
    assert generate_all(model, Bytes(), prompts, 20, seed=5) == alone
    assert generate_all(model, Bytes(), [], 20) == []


@pytest.mark.parametrize("preset", ["gpt2", "modern"])
def test_the_decoding_layout_does_not_change_the_model(preset):
    model = model_of(preset).double()
    tokens, before = torch.randint(257, (2, 9)), {name: t.clone() for name, t in model.state_dict().items()}
    logits, generated = model(tokens), list(stream(model, [256, 1], 20, temperature=0.0))
    lay_out(model)
    assert model.head_weight.stride() == (1, 257)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    torch.testing.assert_close(model(tokens), logits)
    assert list(stream(model, [256, 1], 20, temperature=0.0)) == generated


@pytest.mark.parametrize("window", [1, 2, 5, 30])
@pytest.mark.parametrize("pieces", [[1] * 40, [17, 1, 1, 12, 1, 1, 1, 1, 5], [3, 4, 5, 6, 22]])
def test_a_band_is_decoded_from_two_windows(window, pieces):
    model = model_of(context=40, attention=Spec("banded", window=window)).double()
    tokens, cache = torch.randint(257, (2, 40)), KVCache(40)
    full, read = model(tokens), 0
    for n in pieces:
        torch.testing.assert_close(prefill(model, tokens[:, read : read + n], cache), full[:, read + n - 1])
        read += n
    held = [layer.keys.shape[2] for layer in cache.layers.values()]
    assert held == [min(40, 2 * window)] * 2
