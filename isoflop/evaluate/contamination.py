"""Contamination: which items share a stretch of 13 words with the text that a run was trained on (GPT-3, 2005.14165,
appendix C; lm-eval's decontamination).

Words are runs of letters and digits in lower case; white space and punctuation do not count. An item overlaps if any 13
words in a row, of a context with one of its options, occur anywhere in one document of the training text. An item whose
texts have fewer than 13 words is counted as too short to say.

The 13-grams of the items are held as 64-bit hashes (Python's of each word, and a polynomial over the row); those of the
training text are compared as they come, so that memory does not grow with it. Two different 13-grams with one hash are
no more likely than 1 in 10^5 for a million of the one kind and a hundred billion of the other.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from isoflop.data.tokenizer import Tokenizer
from isoflop.evaluate.items import Item

WORDS = 13
CHUNK = 2_000_000  # tokens of the training text that are decoded at once
ENOUGH = 1000  # tokens that hold 13 words of running text
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word of a row is lost
WORD = re.compile(r"\w+")

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Overlap:
    """Per item (N,): whether it shares 13 words with the training text, and whether it is too short to say.

    Attributes:
        words: of the training text that were compared.
    """

    overlaps: npt.NDArray[np.bool_]
    short: npt.NDArray[np.bool_]
    words: int


def find_overlap(items: Sequence[Item], documents: Iterable[str]) -> Overlap:
    """Compare items with the documents of a training text."""
    grams = [np.unique(np.concatenate([rows_of(hashes_of(text)) for text in item.texts])) for item in items]
    short = np.array([not len(one) for one in grams])
    wanted = np.unique(np.concatenate(grams)) if len(grams) else np.empty(0, np.uint64)
    seen = np.zeros(len(wanted), dtype=bool)
    words = 0
    if len(wanted):
        for document in documents:
            hashes = hashes_of(document)
            words += len(hashes)
            there = rows_of(hashes)
            at = np.minimum(np.searchsorted(wanted, there), len(wanted) - 1)
            seen[at[wanted[at] == there]] = True
    overlaps = np.array([bool(seen[np.searchsorted(wanted, one)].any()) for one in grams])
    return Overlap(overlaps, short, words)


def hashes_of(text: str) -> Hashes:
    """A number for each word of a text, in their order."""
    words = WORD.findall(text.lower())
    return np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64)


def rows_of(hashes: Hashes) -> Hashes:
    """A number for every 13 words in a row."""
    count = len(hashes) - WORDS + 1
    if count < 1:
        return np.empty(0, np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    for offset in range(WORDS):  # wraps at 2^64, as is meant
        total = total * BASE + hashes[offset : offset + count]
    return total


def documents_of(stream: Any, tokenizer: Tokenizer) -> Iterator[str]:
    """The documents of a stream of tokens, some at a time. A document longer than CHUNK tokens comes in pieces that
    overlap by enough for 13 words."""
    first, count = 0, len(stream)
    while first < count:
        ids = np.asarray(stream[first : first + CHUNK])
        ends = np.flatnonzero(ids == tokenizer.eot)
        if first + len(ids) < count and len(ends):
            ids = ids[: ends[-1] + 1]
        begin = 0
        for end in [*ends, len(ids)]:
            if end > begin:
                yield tokenizer.decode(ids[begin:end].tolist())
            begin = int(end) + 1
        step = len(ids) if len(ends) or first + len(ids) >= count else len(ids) - ENOUGH
        first += step
