"""Removes exact duplicates and splits documents by content.

Every decision is a function of the document's own bytes and the seed, so that it is stable when the corpus is reordered
or grows, and does not depend on the number of processes.
"""

import hashlib
from functools import cache

import numpy as np

RECENT = 1 << 16  # digests kept in a Python set before they become a sorted array


def digest_of(document: bytes) -> bytes:
    """A 16-byte digest of a document: among 10^12 documents two share one with probability about 10^-15."""
    return hashlib.blake2b(document, digest_size=16).digest()


def fraction(digest: bytes, purpose: str, seed: int) -> float:
    """A number in [0, 1) from a document's digest, independent for each `purpose` ("split", "share", ...) and seed."""
    word = hashlib.blake2b(digest, key=key_of(purpose, seed), digest_size=8).digest()
    return (int.from_bytes(word, "little") >> 11) / 2.0**53


@cache
def key_of(purpose: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{purpose}:{seed}".encode(), digest_size=32).digest()


class Digests:
    """A set of 16-byte digests at 16 bytes each, plus a bounded set of recent ones (about 6 MB).

    Full recent sets become sorted arrays, and arrays of similar size are merged, as in a log-structured merge tree:
    log2(n / 65,536) arrays at most, each searched by bisection. Merging the two largest takes up to three times the
    memory.
    """

    def __init__(self, recent: int = RECENT) -> None:
        self.limit = recent
        self.recent: set[bytes] = set()
        self.levels: list[tuple[np.ndarray, np.ndarray]] = []  # (first, last 8 bytes) of each digest, sorted by first

    def __len__(self) -> int:
        return len(self.recent) + sum(len(first) for first, _ in self.levels)

    def __contains__(self, digest: bytes) -> bool:
        if digest in self.recent:
            return True
        if not self.levels:
            return False
        high, low = np.frombuffer(digest, "<u8")
        return any(contains(level, high, low) for level in self.levels)

    def add(self, digest: bytes) -> bool:
        """Add a digest. Returns whether it is new."""
        if digest in self:
            return False
        self.recent.add(digest)
        if len(self.recent) >= self.limit:
            self.flush()
        return True

    def flush(self) -> None:
        """Turn the recent set into a sorted array, and merge arrays of similar size."""
        words = np.frombuffer(b"".join(self.recent), "<u8").reshape(-1, 2)
        self.recent = set()
        level = sorted_by_first(words[:, 0].copy(), words[:, 1].copy())
        while self.levels and len(self.levels[-1][0]) <= 2 * len(level[0]):
            larger = self.levels.pop()
            level = sorted_by_first(np.concatenate([larger[0], level[0]]), np.concatenate([larger[1], level[1]]))
        self.levels.append(level)


def sorted_by_first(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(first, kind="stable")
    return first[order], last[order]


def contains(level: tuple[np.ndarray, np.ndarray], high: np.uint64, low: np.uint64) -> bool:
    first, last = level
    at = int(np.searchsorted(first, high))
    while at < len(first) and first[at] == high:
        if last[at] == low:
            return True
        at += 1
    return False
