"""Generation: the prompt through the model at once (prefill), then one token at a time from the cache (decode).

text -> prefill ─> logits ─> sample ─> token ─> text, piece by piece
                     ^                  │
                     └──── decode <─────┘
"""

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from isoflop.generate.cache import KVCache
from isoflop.generate.sample import check_arguments, kept, pick
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
        temperature: 0 is greedy; see sample.kept for this, `top_k` and `top_p`.
        seed: the same arguments on the same machine give the same text.
        stop_at_eot: end where the model ends the document; else an end of text is written as nothing.
        on_text: is given each piece of the text as soon as it is complete UTF-8.

    Returns:
        The continuation, without the prompt: the pieces joined. Bytes that are not UTF-8 read as U+FFFD.

    Raises:
        UserError: for a sampling argument out of range.
    """
    return generate_all(model, tokenizer, [prompt], tokens, temperature, top_k, top_p, seed, stop_at_eot, on_text)[0]


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
) -> list[str]:
    """Continue several prompts of any lengths side by side, which costs little more than the longest of them alone.
    Arguments and results as for each in `generate`; prompt i has the seed `seed + i`, and `on_text` is given the pieces
    of all."""
    for i, prompt in enumerate(prompts):
        check_arguments(prompt, tokens, temperature, top_k, top_p, seed + i)
    # only the first token of a text can have a space in front that is not part of it
    texts = [Text(tokenizer, begins=not prompt, on_text=on_text) for prompt in prompts]
    ids = [[tokenizer.start, *tokenizer.encode(prompt)] for prompt in prompts]
    stop = tokenizer.eot if stop_at_eot else None
    for row, token in stream_all(model, ids, tokens, temperature, top_k, top_p, seed, stop):
        if token != tokenizer.eot:
            texts[row].add(token)
    return [text.end() for text in texts]


class Text:
    """A text that grows by tokens, in pieces of whole characters."""

    def __init__(self, tokenizer: Tokenizer, begins: bool, on_text: Callable[[str], None] | None) -> None:
        self.tokenizer, self.begins, self.on_text = tokenizer, begins, on_text
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.pieces: list[str] = []

    def add(self, token: int) -> None:
        self.emit(self.decoder.decode(self.tokenizer.decode_bytes([token], self.begins)))
        self.begins = False

    def end(self) -> str:
        """All of it; what is left of a cut character reads as U+FFFD."""
        self.emit(self.decoder.decode(b"", final=True))
        return "".join(self.pieces)

    def emit(self, piece: str) -> None:
        if piece:
            self.pieces.append(piece)
            if self.on_text is not None:
                self.on_text(piece)


def stream(
    model: GPT,
    prompt: Sequence[int],
    tokens: int,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """`generate` by token ids: yields up to `tokens` new ones after a prompt of at least one."""
    for _, token in stream_all(model, [prompt], tokens, temperature, top_k, top_p, seed):
        yield token


@dataclass
class Row:
    """One of the sequences that are written side by side: its ids since the context began, and how many are to come."""

    number: int
    ids: list[int]
    left: int
    generator: torch.Generator


def stream_all(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[int, int]]:
    """Several prompts side by side: yields (number of the prompt, new token), up to `tokens` a prompt or its `stop`.

    All rows read the same number of tokens at a time, so that they stand at one position: a row whose prompt goes on is
    given the prompt's next token where the others are given their own. What a row writes depends on no other row.

    Where the context is full, the last half of it is read anew from position 0 and generation goes on from there: so
    learned positions stay within their table, and on average a token sees three quarters of a context. The draws come
    from a generator a row, seeded `seed` + its number, and leave torch's global one alone.
    """
    device, context = model.embedding.weight.device, model.config.context
    # generators on the CPU, so that a seed means the same on every device
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(prompts))]
    rows = [Row(i, list(ids)[-context:], tokens, generators[i]) for i, ids in enumerate(prompts)]
    cache = KVCache(min(context, max((len(row.ids) for row in rows), default=0) + tokens - 1))
    training = model.training
    model.eval()
    try:
        while rows:
            upto = min(len(row.ids) for row in rows)
            pieces = [row.ids[cache.length : upto] for row in rows]
            logits_BV = prefill(model, torch.tensor(pieces, device=device), cache)
            due = [i for i, row in enumerate(rows) if len(row.ids) == upto]
            drawn = draw(logits_BV[due], [rows[i].generator for i in due], temperature, top_k, top_p)
            for i, token in zip(due, drawn, strict=True):
                rows[i].ids.append(token)
                rows[i].left = 0 if token == stop else rows[i].left - 1
                yield rows[i].number, token
            going = [i for i, row in enumerate(rows) if row.left]
            if going and len(going) < len(rows):
                cache.select(torch.tensor(going, device=device))
            rows = [rows[i] for i in going]
            if cache.length == context:
                cache.clear()
                for row in rows:
                    row.ids = row.ids[-max(1, context // 2) :]
    finally:
        model.train(training)


def draw(
    logits_BV: Tensor, generators: Sequence[torch.Generator], temperature: float, top_k: int, top_p: float
) -> list[int]:
    """A token a row, each with a generator of its own."""
    p_BN, ids_BN = (x.cpu() for x in kept(logits_BV, temperature, top_k, top_p))
    columns_B = torch.cat([pick(p_BN[i : i + 1], generator) for i, generator in enumerate(generators)])
    tokens: list[int] = ids_BN.gather(1, columns_B.unsqueeze(1)).squeeze(1).tolist()
    return tokens


@torch.inference_mode()
def prefill(model: GPT, tokens_BT: Tensor, cache: KVCache) -> Tensor:
    """Read T tokens after those in the cache, and give the logits (B, V) of the one that follows. The head, which
    outweighs a small model, sees the last position alone."""
    return model.logits(model.hidden(tokens_BT, cache)[:, -1])


def decode(model: GPT, tokens_B: Tensor, cache: KVCache) -> Tensor:
    """Read one token a row and give the logits (B, V) of the next."""
    return prefill(model, tokens_B.unsqueeze(1), cache)
