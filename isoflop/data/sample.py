"""The sample of training text for a tokenizer: bounded and seeded."""

import heapq
import math
from collections.abc import Iterator

from isoflop.data.clean import fraction
from isoflop.data.decompress import PIECE
from isoflop.data.stretches import cut
from isoflop.data.utf8 import utf8_boundary

SAMPLE_BYTES = 8_000_000  # of training text that a tokenizer is trained on


class Sample:
    """A seeded sample of about `share` times 8 MB, in one pass, independent of the order of the documents.

    Each document gets an exponential random key divided by its length in pieces, and those with the smallest keys are
    kept (Efraimidis & Spirakis 2006), so that bytes rather than documents are sampled uniformly. A long document
    contributes a stretch of 64 KiB at a random position.
    """

    def __init__(self, share: float) -> None:
        self.limit = share * SAMPLE_BYTES
        self.heap: list[
            tuple[float, int, tuple[bytes, ...]]
        ] = []  # (-key, document's number, text): largest key on top
        self.bytes = 0

    def offer(self, document: bytes, digest: bytes, index: int, seed: int, size: int = 0) -> None:
        """Offer a document to the sample.

        Args:
            index: the document's number; a unique key.
            size: bytes of the pieces that a document is cut into, some of which may be held out; 0: it is not cut.
        """
        key = -math.log1p(-fraction(digest, "sample", seed)) / max(1.0, len(document) / PIECE)
        if self.bytes >= self.limit and key >= -self.heap[0][0]:
            return
        pieces: tuple[bytes, ...] = tuple(cut(document, size)) if size else (document,)
        if len(document) > PIECE:
            start = int(fraction(digest, "stretch", seed) * (len(document) - PIECE))
            if size:
                pieces = stretch(pieces, start)
            else:
                start = utf8_boundary(document[:start])
                pieces = (document[start : start + PIECE],)

        heapq.heappush(self.heap, (-key, index, pieces))
        self.bytes += sum(map(len, pieces))
        while self.bytes - sum(map(len, self.heap[0][2])) >= self.limit:
            self.bytes -= sum(map(len, heapq.heappop(self.heap)[2]))

    def forget(self, index: int) -> None:
        self.heap = [entry for entry in self.heap if entry[1] != index]
        heapq.heapify(self.heap)

    def pieces(self) -> Iterator[tuple[bytes, ...]]:
        for _, _, pieces in sorted(self.heap, reverse=True):
            yield pieces

    def texts(self) -> Iterator[str]:
        for pieces in self.pieces():
            yield b"".join(pieces).decode(errors="ignore")


def stretch(pieces: tuple[bytes, ...], start: int) -> tuple[bytes, ...]:
    """The pieces from the one at `start` on, PIECE bytes in total."""
    position = length = 0
    chosen = []
    for piece in pieces:
        position += len(piece)
        if position > start and length < PIECE:
            chosen.append(piece)
            length += len(piece)
    return tuple(chosen)
