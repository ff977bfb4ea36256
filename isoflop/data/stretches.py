"""The second rule of the held-out split (`data.split=2`): short stretches of documents, chosen by their content.

A document is cut into pieces at paragraph and line ends. A hash of a piece's bytes decides whether it is held out; the
remainder of the document is trained on. The pieces are short enough for about PIECES held-out ones in any text: a dozen
books, one long document, text without blank lines, or millions of short records, which are a piece each. With few
pieces the share chosen by a hash varies by chance, so a bounded number of pieces whose hashes are nearest to the limit
may change sides until the share is right.

The same bytes are never on both sides: all copies of a piece have the same hash, and further copies of a held-out piece
are dropped. The first rule, by whole documents, is in scan.py, so that older data can be prepared again.
"""

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from isoflop.data.clean import Digests, digest_of, fraction

PIECES = 128  # approximate number of held-out pieces; fewer for a small text, whose pieces would be too short
SHORTEST, LONGEST = 256, 64 * 1024  # bytes of a piece; shorter only if one of SHORTEST would be too much of the text
FEWEST_PIECES = 2  # the least number of held-out pieces, if even pieces of SHORTEST bytes are too large
KEPT = 2048  # different pieces near the limit that are kept per side
LOW, HIGH = 0.8, 1.25  # times the requested share: outside this range, pieces change sides
LARGEST_SHARE = 0.1  # the largest held-out share of the text, unless more is requested
MOST_COPIES = 8  # the most copies of a piece that may be held out against its hash
PARAGRAPH_END = re.compile(rb"\n[ \t\r]*\n|\r\r")


def piece_size(heldout_bytes: float) -> int:
    """Bytes of a piece, a power of two so that a growing corpus keeps its pieces for a long time.

    Args:
        heldout_bytes: approximate bytes to be held out.
    """
    shortest = min(SHORTEST, heldout_bytes / FEWEST_PIECES)
    wanted = min(LONGEST, max(heldout_bytes / PIECES, shortest, 16.0))
    return 1 << (int(wanted).bit_length() - 1)


def cut(document: bytes, size: int) -> Iterator[bytes]:
    """Pieces that together are the document.

    It is cut at the last paragraph end in the second half of `size` bytes, else at the last line end there, else at the
    first line end within 4 `size`, else at a space, else between two characters. Cuts depend only on the text before
    them.
    """
    start, end = 0, len(document)
    while end - start > size + size // 2:
        place = cut_place(document, start, size)
        yield document[start:place]
        start = place
    if start < end:
        yield document[start:end]


def cut_place(document: bytes, start: int, size: int) -> int:
    half, full, limit = start + size // 2, start + size, start + 4 * size
    paragraph = None
    for paragraph in PARAGRAPH_END.finditer(document, half, full):  # noqa: B007 - the last one
        pass
    if paragraph:
        return paragraph.end()
    if (line := document.rfind(b"\n", half, full)) >= 0:
        return line + 1
    if (line := document.find(b"\n", full, limit)) >= 0:
        return line + 1
    if len(document) <= limit:
        limit = len(document)
    if (blank := document.rfind(b" ", half, full)) >= 0:
        return blank + 1
    place = full
    while place > half and document[place] & 0xC0 == 0x80:
        place -= 1
    return place if place > half else full


@dataclass
class Near:
    """A piece whose hash is near the limit."""

    place: float
    size: int
    part: int
    copies: int = 1

    @property
    def bytes(self) -> int:
        return self.size * self.copies


class Nearest:
    """The KEPT different pieces on one side whose hashes are nearest to the limit, with the number of their copies.

    A removed piece cannot return, since its hash is farther away than those of all that stayed, so the counts of copies
    are complete.
    """

    def __init__(self, below: bool) -> None:
        self.sign = 1 if below else -1
        self.pieces: dict[bytes, Near] = {}
        self.heap: list[tuple[float, bytes]] = []  # the farthest on top

    def offer(self, digest: bytes, place: float, size: int, part: int) -> bool:
        """Offer a piece. Returns whether it is kept."""
        if near := self.pieces.get(digest):
            near.copies += 1
            return True
        entry = (self.sign * place, digest)
        if len(self.heap) < KEPT:
            heapq.heappush(self.heap, entry)
        elif entry <= self.heap[0]:
            return False
        else:
            del self.pieces[heapq.heapreplace(self.heap, entry)[1]]
        self.pieces[digest] = Near(place, size, part)
        return True

    def in_order(self) -> list[tuple[bytes, Near]]:
        """Nearest first."""
        return sorted(self.pieces.items(), key=lambda item: (-self.sign * item[1].place, item[0]))


@dataclass
class Stretches:
    """The choice of held-out pieces: `observe` every document, then `choose`, then take the `sides` of each document.

    Attributes:
        size: approximate bytes of a piece.
        limit: the share of the text to hold out: pieces whose hash is below it are held out.
        seed: of the hash.
        into, out: digests of pieces that moved to the held-out side, and from it.
        total, held: bytes of all text, and of the held-out side (copies of a piece counted once); total_of, held_of:
            the same by part (source).
        seen: digests of the held-out pieces.
        last: (hash, digest) of the piece of each part that would be held out last.
        share: the share of held-out pieces that is kept, by another hash: less if little training text is prepared.
    """

    size: int
    limit: float
    seed: int
    into: set[bytes] = field(default_factory=set)
    out: set[bytes] = field(default_factory=set)
    total: int = 0
    held: int = 0
    held_pieces: int = 0
    share: float = 1.0
    seen: Digests = field(default_factory=Digests)
    below: Nearest = field(default_factory=lambda: Nearest(below=True))
    above: Nearest = field(default_factory=lambda: Nearest(below=False))
    last: dict[int, tuple[float, bytes]] = field(default_factory=dict)
    total_of: dict[int, int] = field(default_factory=dict)
    held_of: dict[int, int] = field(default_factory=dict)

    def observe(self, part: int, document: bytes) -> bool:
        """Count a document. Returns whether a piece of it may be held out."""
        self.total += len(document)
        self.total_of[part] = self.total_of.get(part, 0) + len(document)
        possible = False
        for piece in cut(document, self.size):
            if piece.isspace():
                continue

            digest = digest_of(piece)
            place = fraction(digest, "split", self.seed)
            self.last[part] = max(self.last.get(part, (-1.0, b"")), (place, digest))
            if place >= self.limit:
                possible |= self.above.offer(digest, place, len(piece), part)
                continue
            possible = True
            self.below.offer(digest, place, len(piece), part)
            if self.seen.add(digest):
                self.hold(part, len(piece), 1)
        return possible

    def choose(self) -> None:
        """Move pieces to the other side until the held-out share is right, or as near as pieces allow."""
        wanted = self.limit * self.total
        most = max(LARGEST_SHARE * self.total, HIGH * wanted)

        # Remove pieces that are most of the text, or copied all over it.
        for digest, near in self.below.in_order():
            if near.bytes > most or (near.bytes > HIGH * wanted and near.copies > 1):
                self.remove(digest, near)

        # Move pieces towards the right share.
        for digest, near in self.below.in_order():
            if self.held <= HIGH * wanted:
                break
            if digest not in self.out and self.held - near.size >= min(LOW * wanted, self.held / 2):
                self.remove(digest, near)
        for digest, near in self.above.in_order():
            if self.held >= LOW * wanted:
                break
            if near.copies <= MOST_COPIES and self.held + near.bytes <= HIGH * wanted:
                self.add(digest, near)
        if self.held > most or not self.held_pieces:
            self.take_smallest(wanted, most)

        # Every source needs some training text.
        for part, size in self.held_of.items():
            if size >= self.total_of[part] and part in self.last:
                self.into.discard(self.last[part][1])
                self.out.add(self.last[part][1])

    def take_smallest(self, wanted: float, most: float) -> None:
        """If all pieces are larger than the wanted share, hold out the one nearest to it, unless it is too large."""
        for digest, near in (*self.above.in_order(), *self.below.in_order()):
            if digest in self.into or (near.place < self.limit and digest not in self.out):
                self.remove(digest, near)
        fitting = [item for item in (*self.above.in_order(), *self.below.in_order()) if item[1].bytes <= most]
        if fitting:
            self.add(*min(fitting, key=lambda item: (abs(item[1].bytes - wanted), item[0])))

    def remove(self, digest: bytes, near: Near) -> None:
        self.into.discard(digest)
        self.out.add(digest)
        self.hold(near.part, near.size, -1)

    def add(self, digest: bytes, near: Near) -> None:
        self.out.discard(digest)
        self.into.add(digest)
        self.hold(near.part, near.size, 1)

    def hold(self, part: int, size: int, sign: int) -> None:
        self.held += sign * size
        self.held_pieces += sign
        self.held_of[part] = self.held_of.get(part, 0) + sign * size

    def is_held(self, piece: bytes, digest: bytes) -> bool:
        if digest in self.into:
            return True
        is_below = fraction(digest, "split", self.seed) < self.limit
        return is_below and digest not in self.out and not piece.isspace()

    def sides(self, document: bytes) -> Iterator[tuple[bool, bytes, bytes]]:
        """(is held out, text, digest if held out) of a document, in order: held-out pieces, and the text between."""
        train: list[bytes] = []
        for piece in cut(document, self.size):
            digest = digest_of(piece)
            if not self.is_held(piece, digest):
                train.append(piece)
                continue
            if train:
                yield False, b"".join(train), b""
                train = []
            yield True, piece, digest
        if train:
            yield False, b"".join(train), b""

    def wanted(self, digest: bytes) -> bool:
        """Whether a held-out piece is kept."""
        return self.share >= 1.0 or fraction(digest, "share", self.seed) < self.share
