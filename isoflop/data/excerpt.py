"""A representative sample of prepared training text: chunks chosen by a hash of their tokens.

The beginning of a text says little about all of it: files are ordered by topic, a licence comes first, one language
after the other. Here every chunk of every document has the same chance. The choice depends only on the content of the
chunks: not on the order of files and documents, on the number of encoding processes, or on compression and archives,
since the prepared tokens are read rather than the files. Sources count with their weights.

Memory is bounded by BLOCK tokens; time is about 20 ns per token, for at most LOOKED_AT tokens per source. Of a longer
source only evenly spaced windows are read, so its sample does depend on the order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from isoflop.data.prepared import Prepared
from isoflop.data.shards import TokenStream

CHUNK = 512  # tokens, 1 to 2 kB: enough of them in a sample for every topic, each long enough to show repetition
BLOCK = 1 << 21  # tokens per block
LOOKED_AT = 1 << 26  # tokens per source: reading more would take longer than some budgets
WINDOWS = 64  # in a longer source
FEWEST_BYTES = 256 * 1024  # a sample is not made smaller than this to keep to the weights

Words = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.integer[Any]]
Places = npt.NDArray[np.int64]


@dataclass
class Smallest:
    """The chunks with the smallest hashes, about `wanted` bytes of them.

    Attributes:
        offered_bytes: of all chunks of the source, chosen or not.
        chunks: (hash, text) of those chosen so far.
        chunk_bytes: of their texts.
        limit: chunks with a larger hash need not be offered.
    """

    wanted: int
    offered_bytes: int = 0
    chunks: list[tuple[int, bytes]] = field(default_factory=list)
    chunk_bytes: int = 0
    limit: int = 1 << 64

    def offer(self, key: int, text: bytes) -> None:
        self.chunks.append((key, text))
        self.chunk_bytes += len(text)
        if self.chunk_bytes > 2 * self.wanted + (1 << 20):
            self.prune()

    def prune(self) -> list[tuple[int, bytes]]:
        """Drop the chunks beyond `wanted` bytes. Returns the others, smallest hash first."""
        self.chunks.sort()
        size = 0
        for number, (key, text) in enumerate(self.chunks):
            size += len(text)
            if size >= self.wanted:
                del self.chunks[number + 1 :]
                self.limit = key
                break
        self.chunk_bytes = size
        return self.chunks


def excerpt(prepared: Prepared, wanted: int) -> bytes:
    """At most `wanted` bytes of training text: chunks from all of it in pseudo-random order, separated by line ends;
    the complete text if there is less."""
    token_bytes = prepared.tokenizer.token_bytes()
    weights = prepared.weights()
    samples = {}
    for name in prepared.sources:
        samples[name] = Smallest(max(1, round(weights[name] * wanted)))
        for tokens, starts in chunks(prepared.train(name), prepared.tokenizer.eot):
            choose(samples[name], tokens, starts, prepared, token_bytes)

    # If a source has less than its share, use less of the others as well, so that the weights hold.
    shortest = min((s.offered_bytes / s.wanted for s in samples.values() if s.offered_bytes), default=1.0)
    share = min(1.0, max(shortest, FEWEST_BYTES / wanted))
    chosen: list[tuple[int, bytes]] = []
    for sample in samples.values():
        sample.wanted = max(1, round(share * sample.wanted))
        chosen += sample.prune()
    chosen.sort()
    return b"\n".join(text for _, text in chosen)[:wanted]


def choose(sample: Smallest, tokens: Ids, starts: Places, prepared: Prepared, sizes: Places) -> None:
    """Offer the chunks that begin at `starts` and end where the next one begins.

    Args:
        sizes: bytes of text of each id.
    """
    ends = np.append(starts[1:], len(tokens))
    keys = hashes(tokens, starts, ends)
    sample.offered_bytes += int(np.add.reduceat(sizes[tokens], starts).sum())
    for number in np.flatnonzero(keys <= np.uint64(min(sample.limit, (1 << 64) - 1))):
        text = prepared.tokenizer.decode_bytes(tokens[starts[number] : ends[number]].tolist())
        if text and not text.isspace():
            sample.offer(int(keys[number]), text)


def chunks(stream: TokenStream, eot: int) -> Iterator[tuple[Ids, Places]]:
    """Blocks of tokens, each with the starts of its chunks: at the beginning of each document and every CHUNK tokens
    after it. No chunk spans two blocks."""
    for first, last in windows(len(stream)):
        place = first
        while place < last:
            tokens = np.asarray(stream[place : min(place + BLOCK, last)])
            starts = chunk_starts(tokens, eot)
            end = len(tokens)
            if place + end < last and len(starts) > 1:  # the last chunk may continue in the next block
                end, starts = int(starts[-1]), starts[:-1]
            yield tokens[:end], starts
            place += end


def windows(count: int) -> list[tuple[int, int]]:
    """The ranges of a stream to read: all of it, or WINDOWS evenly spaced parts of a long one."""
    if count <= LOOKED_AT:
        return [(0, count)] if count else []
    size = LOOKED_AT // WINDOWS
    return [(start, start + size) for start in np.linspace(0, count - size, WINDOWS).astype(np.int64).tolist()]


def chunk_starts(tokens: Ids, eot: int) -> Places:
    """The starts of the chunks of each document."""
    documents = np.concatenate([[0], np.flatnonzero(tokens == eot) + 1])
    documents = documents[documents < len(tokens)]
    lengths = np.diff(np.append(documents, len(tokens)))
    counts = -(-lengths // CHUNK)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.asarray(np.repeat(documents, counts) + CHUNK * within, dtype=np.int64)


def hashes(tokens: Ids, starts: Places, ends: Places) -> Words:
    """A 64-bit hash of each chunk: the sum of its scrambled tokens, each times an odd number that depends on its
    position, scrambled once more. The arithmetic is modulo 2^64."""
    places = np.arange(len(tokens)) - np.repeat(starts, ends - starts)
    factors = scrambled(np.arange(1, CHUNK + 1, dtype=np.uint64)) | np.uint64(1)
    sums = np.add.reduceat(scrambled(tokens.astype(np.uint64) + np.uint64(1)) * factors[places], starts)
    return scrambled(sums)


def scrambled(words: Words) -> Words:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014): each bit of a word changes about half of the others."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
