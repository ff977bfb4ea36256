"""Perplexity as the literature has it: a window that slides over each document in strides.

Each document is the id that begins one and its own ids. A window has as many ids as the model's context; the next one
begins a stride further on and predicts only what is new in it, so that each token but the first ones has at least
`context - stride` before it. That is the recipe of transformers' documentation ("Perplexity of fixed-length models").
Where that page weighs the mean of each window by one token less than it has, here every token counts once; in a text of
many windows the figures agree to four digits and more.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.evaluate.likelihood import Ids, read, windows_over
from isoflop.model.gpt import GPT
from isoflop.runtime import Runtime

MOST_IDS = 2_000_000  # of documents whose windows are held at once


@dataclass(frozen=True)
class Strided:
    """Strided perplexity of texts.

    Attributes:
        nats: the sum of -ln p over all tokens.
        tokens, words, bytes: how many there were; words are separated by white space.
        stride: ids between the beginnings of two windows; context: ids per window.
        documents: how many texts.
    """

    nats: float
    tokens: int
    words: int
    bytes: int
    stride: int
    context: int
    documents: int

    def per(self, units: int) -> float:
        return math.exp(min(700.0, self.nats / max(1, units)))

    def to_dict(self) -> dict[str, Any]:
        return {
            "perplexity": self.per(self.tokens),
            "word_perplexity": self.per(self.words),
            "byte_perplexity": self.per(self.bytes),
            "bits_per_byte": self.nats / math.log(2) / max(1, self.bytes),
            "nats_per_token": self.nats / max(1, self.tokens),
            "tokens": self.tokens,
            "words": self.words,
            "bytes": self.bytes,
            "documents": self.documents,
            "stride": self.stride,
            "context": self.context,
        }


def strided(model: GPT, tokenizer: Tokenizer, texts: Iterable[str], stride: int, runtime: Runtime) -> Strided:
    """Measure texts, each a document of its own.

    Args:
        stride: tokens by which the window moves, from 1 to the model's context less 1.

    Raises:
        UserError: for another stride, or if there is no text.
    """
    context = model.config.context
    if not 1 <= stride < context:
        raise UserError(
            f"--stride {stride} is not from 1 to {context - 1}, one less than the model's context; without --stride "
            "the windows do not overlap"
        )
    nats, tokens, words, size, documents = 0.0, 0, 0, 0, 0
    for group in groups(tokenizer, texts):
        windows = [window for _, ids in group for window in windows_over(ids, 1, context, stride)]
        nats -= sum(window_nats for window_nats, _ in read(model, windows, runtime))
        for text, ids in group:
            tokens += len(ids) - 1
            words += len(text.split())
            size += len(text.encode())
            documents += 1
    if not tokens:
        raise UserError("there is no text to measure on")
    return Strided(nats, tokens, words, size, stride, context, documents)


def groups(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[list[tuple[str, Ids]]]:
    """Groups of (text, its ids after the one that begins a document), each of about MOST_IDS ids."""
    held: list[tuple[str, Ids]] = []
    count = 0
    for text in texts:
        if not text:
            continue
        ids = np.concatenate([[tokenizer.start], tokenizer.encode_batch([text])[0]]).astype(np.int64)
        held.append((text, ids))
        count += len(ids)
        if count >= MOST_IDS:
            yield held
            held, count = [], 0
    if held:
        yield held


def texts_of(stream: Any, tokenizer: Tokenizer) -> Iterator[str]:
    """The documents of a stream of tokens, each of which ends in an end of text."""
    first = 0
    ids = np.asarray(stream[:])
    for end in [*np.flatnonzero(ids == tokenizer.eot), len(ids)]:
        yield tokenizer.decode(ids[first:end].tolist())
        first = int(end) + 1
