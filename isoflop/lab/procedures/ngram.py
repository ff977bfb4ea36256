"""Unigram and bigram models of the training text, measured on the same held-out tokens as a GPT.

    unigram   p(w) = (c(w) + 1) / (C + V)
    bigram    p(w | v) = max(c(v w) - d, 0) / c(v) + d n(v) / c(v) q(w)

The bigram model is interpolated Kneser-Ney (Ney, Essen & Kneser 1994; Chen & Goodman 1998, section 2.7): n(v) is the
number of different words that follow v, q(w) goes with the number of different words that w follows, each counted once
more so that nothing is impossible, and d = n1 / (n1 + 2 n2) with n1 and n2 the numbers of pairs seen once and twice.
All constants come from the training text.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.data.prepared import Prepared
from isoflop.errors import UserError
from isoflop.lab.procedures.job import Job, Measured
from isoflop.measure import window_starts, with_previous
from isoflop.trainer import RunConfig
from isoflop.trainer.task import make_task

MEASURES = ("bits_per_byte", "nats_per_token", "uniform_bits_per_byte", "seconds")
HELDOUT_TOKENS = 400_000  # as the runs that it is compared with

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Bigram:
    """Counts of a text, ready to give probabilities.

    Attributes:
        words: c(w) of every id, shape (V,).
        pairs, times: the pairs v V + w that occur, sorted, and how often each does.
        followers: n(v), shape (V,).
        preceded: q(w), shape (V,).
        discount: d.
    """

    words: Ids
    pairs: Ids
    times: Ids
    followers: Ids
    preceded: NDArray[np.float64]
    discount: float

    @classmethod
    def of(cls, tokens: Ids, vocabulary: int) -> "Bigram":
        """The counts of a text of at least two tokens."""
        pairs, times = np.unique(tokens[:-1] * vocabulary + tokens[1:], return_counts=True)
        once, twice = int(np.sum(times == 1)), int(np.sum(times == 2))
        follows = np.bincount(pairs % vocabulary, minlength=vocabulary) + 1.0
        return cls(
            words=np.bincount(tokens[:-1], minlength=vocabulary),
            pairs=pairs,
            times=times,
            followers=np.bincount(pairs // vocabulary, minlength=vocabulary),
            preceded=follows / follows.sum(),
            discount=once / (once + 2 * twice) if once and twice else 0.5,
        )

    def probability(self, before: Ids, word: Ids) -> NDArray[np.float64]:
        """p(word | before), element by element. Summed over all words it is 1."""
        wanted = before * len(self.words) + word
        at = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        seen = np.where(self.pairs[at] == wanted, self.times[at], 0)
        known = np.maximum(self.words[before], 1)
        direct = np.maximum(seen - self.discount, 0.0) / known
        left = np.where(self.words[before] > 0, self.discount * self.followers[before] / known, 1.0)
        return direct + left * self.preceded[word]


def ngram(job: Job) -> Measured:
    """Held-out `bits_per_byte` and `nats_per_token` of the model of `options.order` words (1 or 2) on the training text
    that a run would be given, and `uniform_bits_per_byte`, what log V nats per token make of the same text."""
    order = job.options.get("order", 2)
    if order not in (1, 2):
        raise UserError(f"options.order = {order!r} is not 1 or 2")
    prepared: Any = make_task(job.config).prepare_data(job.config.data)
    before, words, text_bytes = heldout(job.config, prepared, HELDOUT_TOKENS)
    tokens = training(prepared)
    p = (
        Bigram.of(tokens, prepared.vocab_size).probability(before, words)
        if order == 2
        else unigram(tokens, prepared)[words]
    )
    nats, scale = float(-np.log(p).sum()), math.log(2) * max(1, text_bytes)
    uniform = len(words) * math.log(prepared.vocab_size)
    return Measured(
        {
            "bits_per_byte": nats / scale,
            "nats_per_token": nats / len(words),
            "uniform_bits_per_byte": uniform / scale,
            "seconds": 0.0,
        }
    )


def unigram(tokens: Ids, prepared: Prepared) -> NDArray[np.float64]:
    """p(w) of every id, shape (V,)."""
    counts = np.bincount(tokens, minlength=prepared.vocab_size) + 1.0
    return np.asarray(counts / counts.sum())


def unigram_bits_per_byte(config: RunConfig, prepared: Any, max_tokens: int) -> float:
    """What the frequencies of the training text's words alone give, on the held-out tokens that `measure` reads."""
    _, words, text_bytes = heldout(config, prepared, max_tokens)
    return float(-np.log(unigram(training(prepared), prepared)[words]).sum()) / math.log(2) / max(1, text_bytes)


def training(prepared: Prepared) -> Ids:
    """All training tokens, shape (n,)."""
    return np.concatenate([np.asarray(prepared.train(name)[:], dtype=np.int64) for name in prepared.sources])


def heldout(config: RunConfig, prepared: Prepared, max_tokens: int) -> tuple[Ids, Ids, int]:
    """(token before, token, bytes) of what `measure` predicts with the same `max_tokens`: every token once, and the
    bytes of them all."""
    stream, context = prepared.heldout(), config.model.context
    parts = [
        with_previous(stream, int(start), min(context, len(stream) - int(start)), prepared.tokenizer.eot)
        for start in window_starts(len(stream), context, max_tokens)
    ]
    words = np.concatenate([part[1:] for part in parts])
    size = int(prepared.tokenizer.token_bytes()[words].sum())
    return np.concatenate([part[:-1] for part in parts]), words, size
