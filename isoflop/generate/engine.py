"""Generation: prompts through the model at once (prefill), then one token of each at a time from the cache (decode).

texts -> prefill ─> logits ─> choose ─> tokens ─> texts, piece by piece
                      ^                   │
                      └───── decode <─────┘

What is done side by side is in batch.py; here are the doors.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from isoflop.generate.batch import Batch, Order, next_logits
from isoflop.generate.cache import KVCache
from isoflop.generate.rules import Sampling
from isoflop.generate.sample import check_arguments
from isoflop.generate.text import Text, Tokenizer, check_stops
from isoflop.model.gpt import GPT


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    tokens: int,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_at_eot: bool = True,
    on_text: Callable[[str], None] | None = None,
    *,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stops: Sequence[str] = (),
    until: Callable[[], bool] | None = None,
) -> str:
    """Continue a prompt.

    The model reads the prompt as the beginning of a document, after the tokenizer's `start` (for our own tokenizers an
    end of text, as in training); an empty prompt leaves that token alone. A prompt longer than the context is read from
    its end.

    Args:
        tokens: the most tokens to write.
        temperature: 0 is greedy; see rules.Sampling for this, `top_k`, `top_p`, `min_p` and `repetition_penalty`.
        seed: the same arguments on the same machine give the same text.
        stop_at_eot: end where the model ends the document; else an end of text is written as nothing.
        on_text: is given each piece of the text as soon as it is complete UTF-8.
        stops: strings before the first of which the text ends.
        until: is asked after each token, and ends the text there if it says so.

    Returns:
        The continuation, without the prompt: the pieces joined. Bytes that are not UTF-8 read as U+FFFD.

    Raises:
        UserError: for a sampling argument out of range, or more than memory holds.
    """
    further: Any = {"min_p": min_p, "repetition_penalty": repetition_penalty, "stops": stops, "until": until}
    how = (temperature, top_k, top_p, seed, stop_at_eot, on_text)
    return generate_all(model, tokenizer, [prompt], tokens, *how, **further)[0]


def generate_all(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    tokens: int,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_at_eot: bool = True,
    on_text: Callable[[str], None] | None = None,
    *,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stops: Sequence[str] = (),
    slots: int = 0,
    until: Callable[[], bool] | None = None,
) -> list[str]:
    """Continue prompts of any number and lengths, as many side by side as `slots` says (0: as memory allows, 256 at
    most). Arguments and results as for each in `generate`; prompt i has the seed `seed + i`, and `on_text` is given the
    pieces of all."""
    further = {"min_p": min_p, "repetition_penalty": repetition_penalty}
    check_stops(stops)
    for i, prompt in enumerate(prompts):
        check_arguments(prompt, tokens, temperature, top_k, top_p, seed + i, **further)
    # only the first token of a text can have a space in front that is not part of it
    texts = [Text(tokenizer, begins=not prompt, on_text=on_text, stops=stops) for prompt in prompts]
    sampling = Sampling(temperature, top_k, top_p, **further)
    orders = [
        Order(np.array([tokenizer.start, *tokenizer.encode(prompt)]), tokens, seed + i, sampling)
        for i, prompt in enumerate(prompts)
    ]
    batch, eot = Batch(model, orders, tokenizer.eot if stop_at_eot else None, slots), tokenizer.eot
    with contextlib.closing(steps(batch)) as written:
        for numbers, given in written:
            for number, token in zip(numbers, given, strict=True):
                if token != eot and texts[number].add(token):
                    batch.end(number)
            if until is not None and until():
                break
    return [text.end() for text in texts]


def stream(
    model: GPT,
    prompt: Sequence[int],
    tokens: int,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    *,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> Iterator[int]:
    """`generate` by token ids: yields up to `tokens` new ones after a prompt of at least one."""
    further: Any = {"min_p": min_p, "repetition_penalty": repetition_penalty}
    for _, token in stream_all(model, [prompt], tokens, temperature, top_k, top_p, seed, **further):
        yield token


def stream_all(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: int | None = None,
    *,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    slots: int = 0,
) -> Iterator[tuple[int, int]]:
    """Several prompts side by side: yields (number of the prompt, new token), up to `tokens` a prompt or its `stop`.

    Prompts of any lengths are read in a pass each or together, what they share at the beginning once, and each row
    stands at a position of its own. What a row writes depends on no other row.

    Where a row's context is full, the last half of it is read anew from position 0 and generation goes on from there:
    so learned positions stay within their table, and on average a token sees three quarters of a context. The draws
    come from a generator a row, seeded `seed` + its number, and leave torch's global one alone.
    """
    if tokens < 1:
        return
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    orders = [Order(np.array(ids, dtype=np.int64), tokens, seed + i, sampling) for i, ids in enumerate(prompts)]
    for numbers, given in steps(Batch(model, orders, stop, slots)):
        yield from zip(numbers, given, strict=True)


def steps(batch: Batch) -> Generator[tuple[list[int], list[int]]]:
    """A batch's steps, in evaluation mode."""
    training = batch.model.training
    batch.model.eval()
    try:
        yield from batch.run()
    finally:
        batch.model.train(training)


def prefill(model: GPT, tokens_BT: Tensor, cache: KVCache) -> Tensor:
    """Read T tokens after those in the cache, and give the logits (B, V) of the one that follows."""
    return next_logits(model, tokens_BT, cache)


def decode(model: GPT, tokens_B: Tensor, cache: KVCache) -> Tensor:
    """Read one token a row and give the logits (B, V) of the next."""
    return next_logits(model, tokens_B.unsqueeze(1), cache)
