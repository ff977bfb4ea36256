"""Prepared pairs: a folder with the tokens of inputs and outputs.

Four streams of tokens (shards.py): train.source, train.target, heldout.source, heldout.target. In each, an item ends
with the end-of-text id, which no text is encoded as; item i of a source and item i of its target are a pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.data.manifest import MANIFEST, Format, PreparedFolder, Shards, read_manifest
from isoflop.data.shards import ShardWriter, TokenStream, check_stream, damaged, dtype_for, field
from isoflop.data.tokenizer import Tokenizer

FORMAT = Format(
    name="isoflop-pairs",
    version=1,
    what="pairs",
    absent=f"holds no prepared pairs: there is no {MANIFEST} in it",
    foreign="does not hold prepared pairs; name the files of pairs themselves",
)
SIDES = ("source", "target")
AT_ONCE = 10_000  # texts per call of the tokenizer


@dataclass(frozen=True)
class Items:
    """Sequences of ids, concatenated in one array. `items[i]` is the i-th, without its end-of-text."""

    tokens: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, item: int) -> np.ndarray:
        return self.tokens[self.starts[item] : self.ends[item]]

    @property
    def lengths(self) -> np.ndarray:
        """int64, end-of-text not counted."""
        return self.ends - self.starts


@dataclass(frozen=True)
class PairTokens:
    """Inputs and outputs; `source[i]` belongs to `target[i]`."""

    source: Items
    target: Items

    def __len__(self) -> int:
        return len(self.source)

    @property
    def tokens(self) -> int:
        """Tokens of both sides, with the end of each target."""
        return int((self.source.lengths + self.target.lengths + 1).sum())

    @property
    def longest(self) -> int:
        """Positions of the longest side of any pair, with its end-of-text."""
        return max(int(items.lengths.max()) + 1 for items in (self.source, self.target))


class PreparedPairs(PreparedFolder):
    """Pairs with random access. The fingerprint is over the tokens of all four streams and the tokenizer.

    Attributes:
        sources: one name for all files together.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], seconds: float = 0.0, reused: bool = True) -> None:
        super().__init__(folder, manifest, seconds, reused)
        self.sources: tuple[str, ...] = (manifest["name"],)

    def train_tokens(self, source: str) -> int:
        """Tokens to train on, of both sides, with the end of each target."""
        return int(self.manifest["account"]["train"]["tokens"])

    def train(self) -> PairTokens:
        return self._pairs("train")

    def heldout(self) -> PairTokens:
        return self._pairs("heldout")

    def mean_lengths(self) -> tuple[float, float]:
        """Mean tokens of a training pair's source and of its target, the target's end included."""
        streams, pairs = self.manifest["streams"], self.manifest["account"]["train"]["documents"]
        return streams["train.source"]["tokens"] / pairs - 1, streams["train.target"]["tokens"] / pairs

    def longest(self) -> int:
        """Positions that the longest side of any pair takes."""
        return max(self.train().longest, self.heldout().longest)

    def _pairs(self, part: str) -> PairTokens:
        pairs = PairTokens(*(self._items(f"{part}.{side}") for side in SIDES))
        if not len(pairs.source) or len(pairs.source) != len(pairs.target):
            raise damaged(
                self.folder / MANIFEST, f"it has {len(pairs.source)} {part} sources, {len(pairs.target)} targets"
            )
        return pairs

    def _items(self, stream: str) -> Items:
        described = self.manifest["streams"][stream]
        tokens = TokenStream.open(self.folder, described, dtype_for(self.vocab_size))[:]
        ends = np.flatnonzero(tokens == self.tokenizer.eot).astype(np.int64)
        return Items(tokens, np.concatenate([[0], ends[:-1] + 1]), ends)


@dataclass(frozen=True)
class LoosePairs:
    """Pairs in memory, for a single evaluation: all of them are held out."""

    pairs: PairTokens
    tokenizer: Tokenizer

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer) -> "LoosePairs":
        both = [items_of(tokenizer.encode_batch([pair[side] for pair in pairs])) for side in (0, 1)]
        return cls(PairTokens(*both), tokenizer)

    def heldout(self) -> PairTokens:
        return self.pairs


def items_of(texts: Sequence[np.ndarray]) -> Items:
    """Items from the ids of each text."""
    ends = np.cumsum([len(ids) for ids in texts], dtype=np.int64)
    return Items(np.concatenate(texts), np.concatenate([[0], ends[:-1]]), ends)


def write_side(folder: Path, prefix: str, texts: Sequence[str], tokenizer: Tokenizer) -> dict[str, Any]:
    """Write one stream: the ids of each text and end-of-text. Returns its entry in the manifest."""
    writer = ShardWriter(folder, prefix, dtype_for(tokenizer.vocab_size))
    end = np.array([tokenizer.eot], dtype=np.int64)
    try:
        for first in range(0, len(texts), AT_ONCE):
            for ids in tokenizer.encode_batch(texts[first : first + AT_ONCE]):
                writer.write(np.concatenate([ids, end]))
        return writer.close()
    finally:
        writer.abandon()


def open_pairs(folder: Path, verify_checksums: bool = True) -> PreparedPairs:
    """Open what `prepare_pairs` wrote.

    Raises:
        UserError: if a file is missing, of another format version, or has so much as a flipped bit.
    """
    return PreparedPairs(folder, read_manifest(folder, FORMAT, check_manifest, verify_checksums))


def check_manifest(manifest: dict[str, Any], path: Path) -> Shards:
    """Check the fields that are specific to pairs. Returns the token files with their SHA-256 and bytes.

    Raises:
        UserError: naming the first field that `prepare_pairs` cannot have written.
    """
    field(manifest, "name", str, path)
    train = field(manifest["account"], "train", dict, path)
    field(train, "tokens", int, path)
    if not field(train, "documents", int, path):
        raise damaged(path, "there are no pairs to train on")
    streams = field(manifest, "streams", dict, path)
    sums: Shards = {}
    for part in ("train", "heldout"):
        for side in SIDES:
            sums |= check_stream(field(streams, f"{part}.{side}", dict, path), path, manifest["vocab_size"])
    return sums
