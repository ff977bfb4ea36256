"""Prepared text with a smaller vocabulary: the first merges of the tokenizer that it was prepared with.

Byte-pair encoding applies merges in the order in which they were learned, and each pair consists of pieces that earlier
merges made. The ids of a text by the first merges alone follow from its ids by all of them: each id whose merge is left
out is replaced by the two pieces that were merged, until all pieces are in the smaller vocabulary. No text has to be
encoded again, and bits per byte of the same text are comparable.

It is for tiny runs (plan/pilot.py), which read a small part of the text: of a large one only evenly spaced parts are
kept, in memory.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from isoflop.data.manifest import sha256_of
from isoflop.data.prepared import Prepared
from isoflop.data.shards import TokenStream, dtype_for
from isoflop.data.tokenizer import Tokenizer
from isoflop.records import DataAccount

FEWEST = 1 << 13  # tokens of a source that are kept, however small its weight
AT_ONCE = 1 << 20  # tokens that are replaced at once
PARTS = 64  # evenly spaced parts of a stream that is too long to keep

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Expansion:
    """The ids of a smaller vocabulary that each id of a larger one stands for.

    Attributes:
        ids: of all ids, one after the other.
        first, count: of each id, its place in `ids` and how many there are, shape (vocabulary,).
    """

    ids: Ids
    first: Ids
    count: Ids

    @classmethod
    def of(cls, lists: list[list[int]]) -> "Expansion":
        count = np.array([len(one) for one in lists], dtype=np.int64)
        return cls(np.array([i for one in lists for i in one], dtype=np.int64), np.cumsum(count) - count, count)

    def __call__(self, tokens: npt.NDArray[Any], dtype: npt.DTypeLike = np.int64) -> npt.NDArray[Any]:
        parts = [self.of_part(tokens[i : i + AT_ONCE]).astype(dtype) for i in range(0, len(tokens), AT_ONCE)]
        return np.concatenate(parts) if parts else np.zeros(0, dtype)

    def of_part(self, tokens: npt.NDArray[Any]) -> Ids:
        counts = self.count[tokens]
        ends = np.cumsum(counts)
        within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
        return np.asarray(self.ids[np.repeat(self.first[tokens], counts) + within])


class FewerMerges:
    """A view of prepared text with at most `vocab_size` ids.

    Attributes:
        tokenizer: with the first merges.
        unique_tokens: about how many tokens the whole text has with it.

    Args:
        prepared: its tokenizer is one of those that `has_merges` accepts.
        vocab_size: at least 257, the bytes and the end of text.
        most: the tokens of `prepared` to keep, of all sources together, and of the held-out text.
    """

    def __init__(self, prepared: Prepared, vocab_size: int, most: tuple[int, int]) -> None:
        described = json.loads(prepared.tokenizer.to_json())
        self.tokenizer, expansion = with_fewer_merges(described, prepared.tokenizer, vocab_size)
        self.vocab_size = self.tokenizer.vocab_size
        self.prepared, self.sources, dtype = prepared, prepared.sources, dtype_for(self.vocab_size)
        self.fingerprint = sha256_of([prepared.fingerprint, self.vocab_size])

        self.streams, self.unique_tokens = {}, 0
        for name, weight in prepared.weights().items():
            kept = parts_of(prepared.train(name), max(FEWEST, round(most[0] * weight)))
            self.streams[name] = TokenStream([expansion(kept, dtype)], dtype)
            whole = len(self.streams[name]) * prepared.train_tokens(name) / max(1, len(kept))
            self.unique_tokens += round(whole)
        self.held = TokenStream([expansion(parts_of(prepared.heldout(), most[1]), dtype)], dtype)

    def train_tokens(self, source: str) -> int:
        return len(self.streams[source])

    def weights(self) -> dict[str, float]:
        return self.prepared.weights()

    def train(self, source: str) -> TokenStream:
        return self.streams[source]

    def heldout(self) -> TokenStream:
        return self.held

    def account(self) -> DataAccount:
        return self.prepared.account()


def parts_of(stream: TokenStream, most: int) -> npt.NDArray[Any]:
    """About `most` tokens of a stream, in evenly spaced parts; all if it is shorter."""
    if len(stream) <= most:
        return stream[0 : len(stream)]
    size = max(1, most // PARTS)
    starts = np.linspace(0, len(stream) - size, PARTS).astype(np.int64).tolist()
    return np.concatenate([stream[start : start + size] for start in starts])


def has_merges(tokenizer: Tokenizer) -> bool:
    """Whether the first merges of a tokenizer are one themselves: byte-pair encoding as isoflop trains it."""
    described = json.loads(tokenizer.to_json())
    model, after = described["model"], described.get("post_processor") or {"type": "ByteLevel"}
    plain = not any(model.get(name) for name in ("dropout", "ignore_merges", "continuing_subword_prefix", "unk_token"))
    only_one_added = len(tokenizer.vocabulary) == len(model["vocab"]) + 1
    if model.get("type") != "BPE" or not plain or after["type"] != "ByteLevel" or not only_one_added:
        return False
    made = {piece for piece in model["vocab"] if len(piece) == 1}
    for left, right in pairs_of(model):
        if left not in made or right not in made:
            return False
        made.add(left + right)
    return made >= model["vocab"].keys()


def pairs_of(model: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of a BPE model, in the order in which they are applied."""
    pairs = (one.split(" ") if isinstance(one, str) else one for one in model["merges"])
    return [(left, right) for left, right in pairs]


def with_fewer_merges(described: Any, whole: Tokenizer, vocab_size: int) -> tuple[Tokenizer, Expansion]:
    """The tokenizer with the first merges, and what each id of the whole one is with it.

    Args:
        described: the whole tokenizer's JSON, which is changed.
    """
    model = described["model"]
    pairs, letters = pairs_of(model), [piece for piece in model["vocab"] if len(piece) == 1]
    kept = pairs[: max(0, vocab_size - 1 - len(letters))]
    pieces = dict.fromkeys([*sorted(letters, key=model["vocab"].get), *("".join(pair) for pair in kept)])

    # the smaller tokenizer: its ids are in the same order, the end of text last
    model["vocab"] = {piece: number for number, piece in enumerate(pieces)}
    model["merges"] = [list(pair) for pair in kept]
    for added in described["added_tokens"]:
        added["id"] = len(pieces)
    tokenizer = Tokenizer.from_json(json.dumps(described))

    # what each piece consists of, in the order in which they were made
    parts = {piece: [number] for piece, number in model["vocab"].items()}
    for left, right in pairs:
        parts.setdefault(left + right, parts[left] + parts[right])
    lists: list[list[int]] = [[] for _ in range(whole.vocab_size)]
    for piece, number in whole.vocabulary.items():
        lists[number] = parts[piece] if number != whole.eot else [tokenizer.eot]
    return tokenizer, Expansion.of(lists)
