"""How predictable a text is before any model has seen it, from a sample of at most 1 MB: two numbers.

The sample has to stand for the whole text: data/excerpt.py takes it from all of what was prepared.

An n-gram model on blocks that it has not seen finds what a small model learns first; a compressor also finds what is
repeated nearby, which larger models learn to use.
"""

import lzma
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

ORDER = 3  # bytes before the one to predict: what a small model learns first
BLOCK = (
    16 * 1024
)  # bytes; longer than most local repetition, which a compressor profits from and a small model does not
BLOCKS = 16  # into which a sample is divided at least, of shorter blocks where it is small
SHORTEST = 1024  # bytes of a block
HELD = 4  # every fourth block is predicted, the others are learned from

Bytes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Predictability:
    """Bits per byte of a sample.

    Attributes:
        ngram: by an interpolated trigram of bytes, see ngram_bits_per_byte.
        lzma: by LZMA.
        doubt: standard deviation of their logarithms as measures of the whole text; 0: as exact as the prior's own.
    """

    ngram: float
    lzma: float
    doubt: float = 0.0


# For a sample too small to say: about English prose. How far texts lie from it was not measured for this; the
# logarithms of the prior's nine corpora have standard deviations of 0.07 and 0.13.
UNKNOWN = Predictability(ngram=2.4, lzma=2.4, doubt=0.25)


@lru_cache(maxsize=4)  # a plan that waits for pilots asks twice
def predictability(sample: bytes) -> Predictability:
    """How predictable a sample is; UNKNOWN for less than BLOCKS of the shortest blocks."""
    if len(sample) < BLOCKS * SHORTEST:
        return UNKNOWN
    return Predictability(ngram_bits_per_byte(sample), 8 * len(lzma.compress(sample, preset=6)) / len(sample))


def ngram_bits_per_byte(sample: bytes) -> float:
    """Bits per byte that an interpolated n-gram model of bytes (Witten & Bell 1991, method C) needs for every fourth
    block of the sample after counting the others. The order is 3, and each order k falls back on the one below it,

        p_k(b | c) = (n(c, b) + t(c) p_{k-1}(b | c')) / (n(c) + t(c)),

    with n the counts, t(c) how many different bytes were seen after the context c, and p_{-1} = 1/256. The sample has
    BLOCKS * SHORTEST bytes at least.
    """
    size = block_of(len(sample))
    blocks = [np.frombuffer(sample[i : i + size], np.uint8) for i in range(0, len(sample), size)]
    learned = np.concatenate([block for i, block in enumerate(blocks) if i % HELD != HELD - 1]).astype(np.uint64)
    held = np.concatenate(blocks[HELD - 1 :: HELD]).astype(np.uint64)
    p = np.full(len(held) - ORDER, 1 / 256)
    for order in range(ORDER + 1):
        p = interpolated(learned, held, order, p)
    return float(-np.log2(p).mean())


def block_of(size: int) -> int:
    """Bytes of a block in a sample of that size."""
    return min(BLOCK, size // BLOCKS)


def interpolated(learned: Bytes, held: Bytes, order: int, below: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """p_k of each held byte from the ORDER-th on, given p_{k-1} of it."""
    pairs, pair_counts = np.unique(grams(learned, order + 1), return_counts=True)
    contexts, first, kinds = np.unique(pairs >> np.uint64(8), return_index=True, return_counts=True)
    context_counts = np.add.reduceat(pair_counts, first)  # pairs are sorted, so those of one context lie together
    asked = grams(held, order + 1)[ORDER - order :]
    n_pair = look_up(pairs, pair_counts, asked)
    n_context = look_up(contexts, context_counts, asked >> np.uint64(8))
    t_context = look_up(contexts, kinds, asked >> np.uint64(8))
    known = n_context > 0
    return np.where(known, (n_pair + t_context * below) / np.maximum(n_context + t_context, 1), below)


def grams(text: Bytes, length: int) -> Bytes:
    """Each run of `length` bytes as one number, the last byte lowest."""
    total = np.zeros(len(text) - length + 1, np.uint64)
    for i in range(length):
        total = (total << np.uint64(8)) | text[i : len(text) - length + 1 + i]
    return total


def look_up(keys: Bytes, values: npt.NDArray[np.int64], asked: Bytes) -> npt.NDArray[np.int64]:
    """The value of each key asked for, 0 for one that is not there. `keys` are sorted."""
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, values[at], 0)
