"""Fast encoding with a cache of pieces, for tokenizers with GPT-2's pattern: most pieces of a text are known words.

The `tokenizers` library splits a text, maps every piece back to its place in it, and merges: about two megabytes per
second and core. Splitting with `re` and looking pieces up takes a fifth of that time, and gives the same ids, since
each piece is merged separately. Only text of characters whose class is the same in all Unicode versions is split here;
the library encodes the rest, in stretches of a few thousand characters.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

import numpy as np

REMEMBERED = 1 << 17  # pieces, of about 150 bytes each
WHITE = "\t\n\v\f\r \x85\xa0"
# Blocks in which the categories of all characters are the same in all Unicode versions.
SETTLED = (range(0x250), range(0x370, 0x500), range(0x2010, 0x2028), range(0x2030, 0x205F), (0x20AC, 0x2122))


def character_class(kind: str) -> str:
    """The settled characters whose Unicode category begins with `kind`, as the inside of a character class [...]."""
    members = (chr(c) for block in SETTLED for c in block if unicodedata.category(chr(c)).startswith(kind))
    return re.escape("".join(members))


LETTERS, NUMBERS = character_class("L"), character_class("N")
PIECE = re.compile(
    f"'(?:[sdmt]|ll|ve|re)| ?[{LETTERS}]+| ?[{NUMBERS}]+| ?[^{WHITE}{LETTERS}{NUMBERS}]+"
    f"|[{WHITE}]+(?![^{WHITE}])|[{WHITE}]+"
)
PLAIN = re.compile(f"[{character_class('')}]*")


class Remembered:
    """A cache of the ids of pieces of text, as bytes of unsigned 4-byte numbers; emptied when it is full.

    Args:
        encode: returns the ids of each of some texts, by the library.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Iterator[Sequence[int]]]) -> None:
        self.encode = encode
        self.known: dict[str, bytes] = {}

    def ids(self, stretches: Sequence[str]) -> np.ndarray:
        """int64 ids of a text that was cut into stretches where cuts do not change the ids."""
        encoded = (self.of_pieces(PIECE.findall(s)) if PLAIN.fullmatch(s) else self.of_library([s]) for s in stretches)
        return np.frombuffer(b"".join(encoded), np.uint32).astype(np.int64)

    def of_pieces(self, pieces: list[str]) -> bytes:
        new = set(pieces).difference(self.known)
        if new:
            if len(self.known) + len(new) > REMEMBERED:
                self.known.clear()
                new = set(pieces)
            ordered = list(new)
            self.known.update(zip(ordered, map(as_bytes, self.encode(ordered)), strict=True))
        return b"".join(map(self.known.__getitem__, pieces))

    def of_library(self, texts: Sequence[str]) -> bytes:
        return b"".join(as_bytes(ids) for ids in self.encode(texts))


def as_bytes(ids: Sequence[int]) -> bytes:
    return np.array(ids, np.uint32).tobytes()
