"""Generation: whole prompts through the model (prefill), then one token per row at a time with the cache (decode).

texts -> prefill ─> logits ─> choose ─> tokens ─> texts, piece by piece
                      ^                   │
                      └───── decode <─────┘

These are the entry points; batch.py has the batching.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from isoflop.errors import UserError
from isoflop.generate.batch import Batch, Ids, Order, next_logits
from isoflop.generate.cache import KVCache
from isoflop.generate.rules import TEMPERATURE, Sampling
from isoflop.generate.sample import check_arguments, check_seed
from isoflop.generate.text import Text, Tokenizer, check_stops
from isoflop.model.gpt import GPT


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    tokens: int,
    temperature: float = TEMPERATURE,
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
    end-of-text token, as in training); with an empty prompt it reads that token only. Of a prompt longer than the
    context it reads the end.

    Args:
        tokens: the maximum number of tokens to generate.
        temperature: 0 is greedy; see rules.Sampling for this, `top_k`, `top_p`, `min_p` and `repetition_penalty`.
        seed: the same arguments on the same machine give the same text.
        stop_at_eot: stop when the model ends the document; else end-of-text tokens are omitted from the text.
        on_text: called with each piece of the text as soon as it is complete UTF-8.
        stops: stop strings: the text ends before the first of them.
        until: called after each token; the text ends there if it returns True.

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
    temperature: float = TEMPERATURE,
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
    """Continue any number of prompts of any lengths, `slots` of them in a batch (0: as many as memory allows, at most
    256). Arguments and results as in `generate`; prompt i has the seed `seed + i`, and `on_text` receives the pieces of
    all."""
    further = {"min_p": min_p, "repetition_penalty": repetition_penalty}
    check_stops(stops)
    check_seed(seed, len(prompts))
    for prompt in prompts:
        check_arguments(prompt, tokens, temperature, top_k, top_p, seed, **further)
    # only the first token of a text can have a leading space that is not part of the text
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
    temperature: float = TEMPERATURE,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    *,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> Iterator[int]:
    """`generate` on token ids: yields up to `tokens` new ones after a prompt of at least one id."""
    further: Any = {"min_p": min_p, "repetition_penalty": repetition_penalty}
    for _, token in stream_all(model, [prompt], tokens, temperature, top_k, top_p, seed, **further):
        yield token


def stream_all(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    temperature: float = TEMPERATURE,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: int | None = None,
    *,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    slots: int = 0,
) -> Iterator[tuple[int, int]]:
    """Several prompts in a batch: yields (number of the prompt, new token), up to `tokens` per prompt or its `stop`.

    Prompts of any lengths are read in one pass each or together, a shared prefix once, and each row has its own
    position. A row's output does not depend on the other rows.

    When a row's context is full, the last half of it is read again from position 0 and generation continues from there:
    learned positions stay within their table, and a token sees three quarters of a context on average. Each row draws
    from its own random generator, seeded with `seed` + its number; torch's global one is not used.

    Raises:
        UserError: for a prompt without ids or with one that the model does not have, for a sampling argument out of
            range, or more than memory holds.
    """
    if tokens < 1:
        return
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    sampling.check()
    check_seed(seed, len(prompts))
    orders = [Order(np.array(ids, dtype=np.int64), tokens, seed + i, sampling) for i, ids in enumerate(prompts)]
    check_ids([order.ids for order in orders], model.head_weight.shape[0])
    for numbers, given in steps(Batch(model, orders, stop, slots)):
        yield from zip(numbers, given, strict=True)


def check_ids(prompts: Sequence[Ids], vocabulary: int) -> None:
    """Raises UserError, with the number of the prompt, for one that is empty or has an unknown id."""
    for number, ids in enumerate(prompts):
        if not len(ids):
            raise UserError(f"prompt {number} has no ids; begin it with the tokenizer's start")
        if ids.min() < 0 or ids.max() >= vocabulary:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise UserError(f"prompt {number} has the id {wrong}; the model has 0 to {vocabulary - 1}")


def steps(batch: Batch) -> Generator[tuple[list[int], list[int]]]:
    """The steps of a batch, in evaluation mode."""
    training = batch.model.training
    batch.model.eval()
    try:
        yield from batch.run()
    finally:
        batch.model.train(training)


def prefill(model: GPT, tokens_BT: Tensor, cache: KVCache) -> Tensor:
    """Process T tokens after those in the cache; return the logits (B, V) of the next token."""
    return next_logits(model, tokens_BT, cache)


def decode(model: GPT, tokens_B: Tensor, cache: KVCache) -> Tensor:
    """Process one token per row; return the logits (B, V) of the next."""
    return next_logits(model, tokens_B.unsqueeze(1), cache)
