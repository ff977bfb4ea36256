"""Generation: the prompt through the model at once (prefill), then one token at a time from the cache (decode).

text -> prefill ─> logits ─> sample ─> token ─> text, piece by piece
                     ^                  │
                     └──── decode <─────┘
"""

import codecs
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from isoflop.generate.cache import KVCache
from isoflop.generate.sample import check_arguments, pick, probabilities
from isoflop.model.gpt import GPT


class Tokenizer(Protocol):
    """What generation needs of a tokenizer (isoflop.data.tokenizer has the real one)."""

    @property
    def eot(self) -> int: ...

    @property
    def start(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode_bytes(self, ids: Sequence[int], begins: bool = True) -> bytes: ...


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
) -> str:
    """Continue a prompt.

    The model reads the prompt as the beginning of a document, after the tokenizer's `start` (for our own tokenizers an
    end of text, as in training); an empty prompt leaves that token alone. A prompt longer than the context is read from
    its end.

    Args:
        tokens: the most tokens to write.
        temperature: 0 is greedy; see sample.probabilities for this, `top_k` and `top_p`.
        seed: the same arguments on the same machine give the same text.
        stop_at_eot: end where the model ends the document; else an end of text is written as nothing.
        on_text: is given each piece of the text as soon as it is complete UTF-8.

    Returns:
        The continuation, without the prompt: the pieces joined. Bytes that are not UTF-8 read as U+FFFD.

    Raises:
        UserError: for a sampling argument out of range.
    """
    check_arguments(prompt, tokens, temperature, top_k, top_p, seed)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text: list[str] = []

    def emit(piece: str) -> None:
        if piece:
            text.append(piece)
            if on_text is not None:
                on_text(piece)

    prompt_ids = [tokenizer.start, *tokenizer.encode(prompt)]
    begins = not prompt  # only the first token of a text can have a space in front that is not part of it
    for token in stream(model, prompt_ids, tokens, temperature, top_k, top_p, seed):
        if token != tokenizer.eot:
            emit(decoder.decode(tokenizer.decode_bytes([token], begins)))
            begins = False
        elif stop_at_eot:
            break
    emit(decoder.decode(b"", final=True))
    return "".join(text)


def stream(
    model: GPT,
    prompt: Sequence[int],
    tokens: int,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """The same by token ids: yields up to `tokens` new ones after a prompt of at least one.

    Where the context is full, the last half of it is read anew from position 0 and generation goes on from there: so
    learned positions stay within their table, and on average a token sees three quarters of a context. The draws come
    from a generator of their own and leave torch's global one alone.
    """
    device = model.embedding.weight.device
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that a seed means the same on every device
    context = model.config.context
    ids = list(prompt)[-context:]
    cache = KVCache(context)
    training = model.training
    model.eval()
    try:
        logits_1V = prefill(model, torch.tensor([ids], device=device), cache)
        for remaining in range(tokens - 1, -1, -1):
            token = int(pick(probabilities(logits_1V.cpu(), temperature, top_k, top_p), generator))
            yield token
            if remaining == 0:
                return
            ids.append(token)
            if cache.length < context:
                logits_1V = decode(model, torch.tensor([token], device=device), cache)
            else:
                ids = ids[-max(1, context // 2) :]
                cache.clear()
                logits_1V = prefill(model, torch.tensor([ids], device=device), cache)
    finally:
        model.train(training)


@torch.no_grad()
def prefill(model: GPT, tokens_BT: Tensor, cache: KVCache) -> Tensor:
    """Read T tokens after those in the cache, and give the logits (B, V) of the one that follows. The head, which
    outweighs a small model, sees the last position alone."""
    return model.logits(model.hidden(tokens_BT, cache)[:, -1])


def decode(model: GPT, tokens_B: Tensor, cache: KVCache) -> Tensor:
    """Read one token a row and give the logits (B, V) of the next."""
    return prefill(model, tokens_B.unsqueeze(1), cache)
