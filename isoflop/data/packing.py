"""Windows that begin with a document, and how the documents of a text are packed into them.

A window begins with the id that a model reads before a document, and so does every document in it. Documents are packed
best-fit, and each token of the text is a target exactly once:

    a longer document    fills windows of its own, one after the other from its first token; the rest is a piece
    pieces               the longest one that fits into the rest of a window; if none fits, the shortest is cut, and
                         its rest is a piece of its own

nanochat's loader packs in the same way, but drops the rest of a document that it cuts. Here nothing is dropped: a text
has as many windows as if they were cut one after the other. A rest is read as if it were a document.
"""

import bisect
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

RUNNING, DOCUMENTS = "running", "documents"  # the kinds of windows, see BatchConfig.windows

STRETCH = 1 << 18  # tokens, about, whose documents are packed together: hundreds, so that few have to be cut
FEWEST = 64  # windows of a stretch
KEPT = 4096  # stretches whose packing is kept in memory: a billion tokens, 25 MB if documents have 500

SCANNED = 1 << 22  # tokens that are searched at once for ends of documents

Pieces = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # first tokens and lengths


def pack(lengths: Iterable[int], size: int) -> Pieces:
    """Pack documents that follow one another into windows of `size` tokens.

    Returns:
        The pieces in the order of the windows, none of which lies in two. All windows are full, except for the last if
        `size` does not divide the sum of the lengths.
    """
    packed: list[tuple[int, int]] = []
    short: dict[int, list[int]] = {}  # the pieces that are left, by length: their first tokens
    begin = 0
    for length in lengths:
        whole = length - length % size
        packed += [(start, size) for start in range(begin, begin + whole, size)]
        if length > whole:
            short.setdefault(length - whole, []).append(begin + whole)
        begin += length

    left = sorted(short)  # the lengths of which there are pieces
    room = size
    while left:
        fits = bisect.bisect_right(left, room)
        at = fits - 1 if fits else 0
        length = left[at]
        begin = short[length].pop()
        if not short[length]:
            del left[at], short[length]
        taken = min(length, room)
        packed.append((begin, taken))
        if taken < length:
            rest = length - taken
            if rest not in short:
                bisect.insort(left, rest)
            short.setdefault(rest, []).append(begin + taken)
        room = room - taken or size
    pieces = np.array(packed, np.int64).reshape(-1, 2)
    return pieces[:, 0].copy(), pieces[:, 1].copy()


class PackedText:
    """The windows of one text, packed stretch by stretch when they are first read.

    Args:
        stream: the tokens, each document followed by `eot`, taken as a circle: read(start, length).
        context: tokens of a window; all calls are for whole windows.
        eot: ends a document.
    """

    def __init__(self, stream: Any, context: int, eot: int) -> None:
        self.stream, self.context, self.eot = stream, context, eot
        self.windows = -(-len(stream) // context)
        self.per_stretch = max(FEWEST, STRETCH // context)
        self.packing = lru_cache(maxsize=KEPT)(self.pack_stretch)

    def pack_stretch(self, offset: int, stretch: int, length: int) -> tuple[npt.NDArray[np.int64], ...]:
        """First tokens and lengths of the pieces of a stretch packed into rows of `length` tokens, and for each row its
        first piece. The last number is that of all pieces."""
        first = stretch * self.per_stretch
        windows = min(self.per_stretch, self.windows - first)
        begin, count = offset + first * self.context, windows * self.context
        ends = np.flatnonzero(self.stream.read(begin, count) == self.eot) + 1
        if not len(ends) or ends[-1] < count:
            ends = np.append(ends, count)
        starts, lengths = pack(np.diff(ends, prepend=0).tolist(), length)
        rows = np.searchsorted(lengths.cumsum(), np.arange(0, count + 1, length), side="left")
        rows[1:] += 1
        return begin + starts, lengths, rows

    def pieces(self, offset: int, window: int, length: int) -> Iterator[tuple[int, int]]:
        """(first token, length) of the pieces of a window, in order.

        Args:
            offset: where the circle is cut.
            window: its number from there on.
            length: the window is `context / length` rows of so many tokens, each of which begins with a piece.
        """
        stretch, within = divmod(window, self.per_stretch)
        starts, lengths, rows = self.packing(offset, stretch, length)
        cut = self.context // length
        inside = slice(int(rows[within * cut]), int(rows[(within + 1) * cut]))
        yield from zip(starts[inside].tolist(), lengths[inside].tolist(), strict=True)


def windows_of_documents(tokens: Any, eot: int, context: int) -> Pieces:
    """The windows that hold one document each, or a part of one that is longer: first tokens and lengths.

    Args:
        tokens: ids, of which slices are read; each document is followed by `eot`, the last one may not be.
        context: the most tokens of a window.
    """
    count = len(tokens)
    found = [np.flatnonzero(np.asarray(tokens[at : at + SCANNED]) == eot) + at + 1 for at in range(0, count, SCANNED)]
    ends = np.concatenate([*found, [count]]).astype(np.int64)
    ends = ends[: len(ends) - (len(ends) > 1 and ends[-2] == count)]
    begins = np.concatenate([[0], ends[:-1]])
    windows = -(-(ends - begins) // context)  # of each document
    number = np.arange(windows.sum()) - np.repeat(windows.cumsum() - windows, windows)  # of a window in its document
    starts = np.repeat(begins, windows) + number * context
    return starts, np.minimum(context, np.repeat(ends, windows) - starts)
