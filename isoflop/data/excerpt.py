"""A sample of prepared training text that stands for the whole of it: chunks chosen by a hash of their tokens.

The beginning of a text says little of the rest: files are ordered by topic, a licence comes first, one language after
the other. Here every chunk of every document has the same chance. The choice depends on what the chunks hold and on
nothing else: not on the order of files and documents, nor on how many processes encoded them, nor on where files were
compressed or in archives, since the prepared tokens are read and not the files. Sources count with their weights.

Memory is bounded by BLOCK tokens; time is about 20 ns per token, for at most LOOKED_AT tokens of a source. Of a longer
source, evenly spaced windows are looked at: those do depend on the order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from isoflop.data.prepared import Prepared
from isoflop.data.shards import TokenStream

CHUNK = 512  # tokens, 1 to 2 kB: enough of them in a sample for every topic, each long enough to show repetition
BLOCK = 1 << 21  # tokens looked at at once
LOOKED_AT = 1 << 26  # tokens of a source: reading more would take longer than some budgets
WINDOWS = 64  # in a source that has more
FEWEST_BYTES = 256 * 1024  # of a sample, which is not made smaller for the sake of the weights

Words = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.integer[Any]]
Places = npt.NDArray[np.int64]


@dataclass
class Smallest:
    """The chunks with the smallest hashes, as many as make up `wanted` bytes.

    Attributes:
        seen: bytes of all chunks that were offered.
    """

    wanted: int
    seen: int = 0
    kept: list[tuple[int, bytes]] = field(default_factory=list)
    held: int = 0
    limit: int = 1 << 64

    def offer(self, key: int, text: bytes) -> None:
        self.kept.append((key, text))
        self.held += len(text)
        if self.held > 2 * self.wanted + (1 << 20):
            self.settle()

    def settle(self) -> list[tuple[int, bytes]]:
        """Drop what is too much. Returns what stays, smallest hash first."""
        self.kept.sort()
        held = 0
        for number, (key, text) in enumerate(self.kept):
            held += len(text)
            if held >= self.wanted:
                del self.kept[number + 1 :]
                self.limit = key
                break
        self.held = held
        return self.kept


def excerpt(prepared: Prepared, wanted: int) -> bytes:
    """About `wanted` bytes of training text, chunks of all of it in an order that is as good as random, a line end
    between two; everything where there is less.

    Args:
        wanted: bytes, at most.
    """
    token_bytes = prepared.tokenizer.token_bytes()
    weights = prepared.weights()
    found = {}
    for name in prepared.sources:
        found[name] = Smallest(max(1, round(weights[name] * wanted)))
        for tokens, starts in chunks(prepared.train(name), prepared.tokenizer.eot):
            choose(found[name], tokens, starts, prepared, token_bytes)

    # a source with less than its share: less of the others too, so that the weights hold
    short = min((one.seen / one.wanted for one in found.values() if one.seen), default=1.0)
    part = min(1.0, max(short, FEWEST_BYTES / wanted))
    kept: list[tuple[int, bytes]] = []
    for one in found.values():
        one.wanted = max(1, round(part * one.wanted))
        kept += one.settle()
    kept.sort()
    return b"\n".join(text for _, text in kept)[:wanted]


def choose(found: Smallest, tokens: Ids, starts: Places, prepared: Prepared, sizes: Places) -> None:
    """Offer the chunks that begin at `starts`, and end where the next one begins.

    Args:
        sizes: bytes that each id stands for.
    """
    ends = np.append(starts[1:], len(tokens))
    keys = hashes(tokens, starts, ends)
    found.seen += int(np.add.reduceat(sizes[tokens], starts).sum())
    for number in np.flatnonzero(keys <= np.uint64(min(found.limit, (1 << 64) - 1))):
        text = prepared.tokenizer.decode_bytes(tokens[starts[number] : ends[number]].tolist())
        if text and not text.isspace():
            found.offer(int(keys[number]), text)


def chunks(stream: TokenStream, eot: int) -> Iterator[tuple[Ids, Places]]:
    """Blocks of tokens, each with the places at which its chunks begin: at the beginning of each document and every
    CHUNK tokens from there on. No chunk lies in two blocks."""
    for first, last in windows(len(stream)):
        place = first
        while place < last:
            tokens = np.asarray(stream[place : min(place + BLOCK, last)])
            starts = chunk_starts(tokens, eot)
            end = len(tokens)
            if place + end < last and len(starts) > 1:  # the last chunk may go on in the next block
                end, starts = int(starts[-1]), starts[:-1]
            yield tokens[:end], starts
            place += end


def windows(count: int) -> list[tuple[int, int]]:
    """What of a stream is looked at: all of it, or WINDOWS evenly spaced parts of a long one."""
    if count <= LOOKED_AT:
        return [(0, count)] if count else []
    size = LOOKED_AT // WINDOWS
    return [(start, start + size) for start in np.linspace(0, count - size, WINDOWS).astype(np.int64).tolist()]


def chunk_starts(tokens: Ids, eot: int) -> Places:
    documents = np.concatenate([[0], np.flatnonzero(tokens == eot) + 1])
    documents = documents[documents < len(tokens)]
    lengths = np.diff(np.append(documents, len(tokens)))
    counts = -(-lengths // CHUNK)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.asarray(np.repeat(documents, counts) + CHUNK * within, dtype=np.int64)


def hashes(tokens: Ids, starts: Places, ends: Places) -> Words:
    """64 bits for each chunk: the sum of its scrambled tokens, each times an odd number of its own for its place, and
    scrambled once more. The arithmetic is modulo 2^64."""
    places = np.arange(len(tokens)) - np.repeat(starts, ends - starts)
    factors = scrambled(np.arange(1, CHUNK + 1, dtype=np.uint64)) | np.uint64(1)
    sums = np.add.reduceat(scrambled(tokens.astype(np.uint64) + np.uint64(1)) * factors[places], starts)
    return scrambled(sums)


def scrambled(words: Words) -> Words:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014): each bit of a word changes about half of the others."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
