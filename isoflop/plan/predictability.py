"""How predictable a text is before any training: two measures in bits per byte, from a sample of at most 1 MB.

The sample has to represent the whole text: data/excerpt.py draws it from all of the prepared text.

The cross-entropy of an n-gram model on held-out blocks shows what a small model learns first. A compressor also finds
repetition nearby, which larger models learn to use.
"""

import lzma
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

ORDER = 3  # bytes of context of the n-gram model: about what a small model learns first
# Bytes of a block. Longer than most local repetition, from which a compressor gains and a small model does not.
BLOCK = 16 * 1024
BLOCKS = 16  # at least so many blocks; a small sample has shorter ones
SHORTEST = 1024  # bytes of the shortest block
HELD = 4  # every fourth block is held out; the counts come from the others

Bytes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Predictability:
    """Bits per byte of a sample.

    Attributes:
        ngram: of an interpolated n-gram model of bytes, see ngram_bits_per_byte.
        lzma: of the sample compressed by LZMA.
        doubt: uncertainty of log(ngram) and log(lzma) by sampling, a standard deviation; 0: no more
            than for the prior's corpora.
    """

    ngram: float
    lzma: float
    doubt: float = 0.0


# For a sample that is too small to measure: about English prose. The doubt was not measured; the logarithms of the
# prior's 20 corpora have standard deviations of 0.12 and, of their ratio, 0.23.
UNKNOWN = Predictability(ngram=2.4, lzma=2.4, doubt=0.25)


@lru_cache(maxsize=4)  # a plan with pilots asks twice
def predictability(sample: bytes) -> Predictability:
    """The predictability of a sample; UNKNOWN if it has fewer than BLOCKS * SHORTEST bytes."""
    if len(sample) < BLOCKS * SHORTEST:
        return UNKNOWN
    return Predictability(ngram_bits_per_byte(sample), 8 * len(lzma.compress(sample, preset=6)) / len(sample))


def ngram_bits_per_byte(sample: bytes) -> float:
    """Cross-entropy, in bits per byte, of an interpolated n-gram model of bytes (Witten & Bell 1991, method C) on every
    fourth block of the sample, with counts from the other blocks. The model's order is 3; each order k falls back on
    the one below it,

        p_k(b | c) = (n(c, b) + t(c) p_{k-1}(b | c')) / (n(c) + t(c)),

    where n are counts, t(c) is the number of different bytes seen after the context c, c' is c without its first byte,
    and p_{-1} = 1/256.

    Args:
        sample: at least BLOCKS * SHORTEST bytes.
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
    """The number of bytes per block in a sample of `size` bytes."""
    return min(BLOCK, size // BLOCKS)


def interpolated(learned: Bytes, held: Bytes, order: int, below: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """p_k of each held-out byte from the ORDER-th on, given its p_{k-1}, `below`."""
    # counts in the learned blocks, by (context, byte) and by context
    pairs, pair_counts = np.unique(grams(learned, order + 1), return_counts=True)
    contexts, first, kinds = np.unique(pairs >> np.uint64(8), return_index=True, return_counts=True)
    context_counts = np.add.reduceat(pair_counts, first)  # pairs are sorted: those of a context are neighbours

    # the same for each held-out byte
    wanted = grams(held, order + 1)[ORDER - order :]
    n_pair = look_up(pairs, pair_counts, wanted)
    n_context = look_up(contexts, context_counts, wanted >> np.uint64(8))
    t_context = look_up(contexts, kinds, wanted >> np.uint64(8))
    known = n_context > 0
    return np.where(known, (n_pair + t_context * below) / np.maximum(n_context + t_context, 1), below)


def grams(text: Bytes, length: int) -> Bytes:
    """Every `length` consecutive bytes as one number, the last byte in the lowest bits; shape (bytes - length + 1,)."""
    total = np.zeros(len(text) - length + 1, np.uint64)
    for i in range(length):
        total = (total << np.uint64(8)) | text[i : len(text) - length + 1 + i]
    return total


def look_up(keys: Bytes, values: npt.NDArray[np.int64], wanted: Bytes) -> npt.NDArray[np.int64]:
    """The value of each wanted key, 0 if it is missing. `keys` are sorted."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
