"""Splits pairs into training and held-out by their inputs, so that all outputs of an input are on one side."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from isoflop.data.clean import digest_of, fraction
from isoflop.data.config import DataConfig
from isoflop.errors import UserError

FEWEST = 20  # inputs; with fewer nothing can be held out
WANTED_HELDOUT = 1000  # inputs, enough to measure an error rate to about a percent
MORE = 1.8  # factor by which the held-out share may exceed the requested one to have that many inputs
LARGEST_SHARE = 0.1  # of the text: the most that the second rule holds out, unless more is requested
VARIANT = re.compile(r"(.+)\(\d+\)")  # CMUdict's mark of another pronunciation, `read(2)`

Pair = tuple[str, str]


@dataclass
class Split:
    """The two sides, with counts of the pairs that are on neither."""

    train: list[Pair] = field(default_factory=list)
    heldout: list[Pair] = field(default_factory=list)
    variants: int = 0
    duplicates: int = 0
    duplicate_bytes: int = 0
    in_heldout: int = 0
    too_long: int = 0
    how: str = ""


def divide(pairs: list[Pair], named: list[Pair], config: DataConfig) -> Split:
    """Split by the hash of the input, so that all outputs of an input are on one side; named held-out pairs are used as
    they are, and their inputs removed from training.

    The share held out is `heldout_fraction`, or more to have WANTED_HELDOUT inputs, but at most MORE times that share
    (by the first rule of `pair_split`: at most a tenth of the inputs); always at least one input.

    Raises:
        UserError: if there are fewer than FEWEST inputs.
    """
    split = Split()
    pairs, named = (without_variants(some, split) for some in (pairs, named))
    distinct = list(dict.fromkeys(pairs))
    split.duplicates = len(pairs) - len(distinct)
    split.duplicate_bytes = sum(map(size_of, pairs)) - sum(map(size_of, distinct))
    inputs = dict.fromkeys(source for source, _ in distinct)
    if len(inputs) < FEWEST:
        raise UserError(
            f"there are only {len(inputs)} different inputs in {' '.join(config.sources)}; "
            f"give at least {FEWEST}, better thousands"
        )

    if named:
        heldout_inputs = {source for source, _ in named}
        split.heldout, split.how = list(dict.fromkeys(named)), "named"
        split.train = [pair for pair in distinct if pair[0] not in heldout_inputs]
        split.in_heldout = len(distinct) - len(split.train)
        if not split.train:
            raise UserError("all inputs are also in the held-out pairs; nothing is left to train on: add other pairs")
        return split

    fraction_of = {source: fraction(digest_of(source.encode()), "split", config.seed) for source in inputs}
    if config.pair_split == 1:
        share = max(config.heldout_fraction, min(0.1, WANTED_HELDOUT / len(inputs)))
        share = max(share, min(fraction_of.values()))
        heldout_inputs = {source for source, place in fraction_of.items() if place <= share}
        split.how = f"hash split of the inputs {100 * share:.2g} %"
    else:
        heldout_inputs = held_out(distinct, fraction_of, config.heldout_fraction)
        share = sum(size_of(pair) for pair in distinct if pair[0] in heldout_inputs) / sum(map(size_of, distinct))
        split.how = f"by hash of the inputs, {share:.1%} of the text"
    split.heldout = [pair for pair in distinct if pair[0] in heldout_inputs]
    split.train = [pair for pair in distinct if pair[0] not in heldout_inputs]
    return split


def held_out(pairs: Sequence[Pair], place: dict[str, float], wanted: float) -> set[str]:
    """The inputs that the second rule holds out: those whose hash is low enough.

    If inputs are few, or differ much in size, that may be far from the wanted share. Then inputs are held out in order
    of their hashes until it is reached, except those that are too large a part of the text; if all are, the smallest
    input alone.

    Args:
        place: of each input, from 0 to 1, by its hash.
        wanted: share of the bytes.
    """
    sizes = dict.fromkeys(place, 0)
    for pair in pairs:
        sizes[pair[0]] += size_of(pair)
    total = sum(sizes.values())
    share = max(wanted, min(MORE * wanted, LARGEST_SHARE, WANTED_HELDOUT / len(place)))
    most = min(2 * wanted, max(LARGEST_SHARE, 1.25 * wanted)) * total
    heldout_inputs = {source for source in place if place[source] <= share}
    if wanted / 2 * total <= sum(sizes[source] for source in heldout_inputs) <= most:
        return heldout_inputs

    heldout_inputs, reached = set(), 0
    for source in sorted(place, key=lambda source: (place[source], source)):
        if reached >= share * total:
            break
        if reached + sizes[source] <= most:
            heldout_inputs.add(source)
            reached += sizes[source]
    return heldout_inputs or {min(place, key=lambda source: (sizes[source], place[source]))}


def without_variants(pairs: list[Pair], split: Split) -> list[Pair]:
    """Rename `read(2)` to `read` if `read` is an input as well: CMUdict marks other pronunciations this way, and the
    mark is of no use to a model."""
    inputs = {source for source, _ in pairs}
    renamed = []
    for source, target in pairs:
        match = VARIANT.fullmatch(source)
        plain = match[1] if match and match[1] in inputs else source
        split.variants += plain != source
        renamed.append((plain, target))
    return renamed


def size_of(pair: Pair) -> int:
    return len(pair[0].encode()) + len(pair[1].encode())
