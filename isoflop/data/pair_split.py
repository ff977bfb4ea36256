"""Splits pairs into training and held-out by their inputs, so that all outputs of an input are on one side."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from isoflop.data.clean import digest_of, fraction
from isoflop.data.config import DataConfig
from isoflop.errors import UserError

FEWEST = 20  # inputs; with fewer nothing can be held out
WANTED_HELDOUT = 1000  # inputs, enough to measure an error rate to about a percent
MORE = 1.8  # times the share asked for that may be held out to have so many
LARGEST_SHARE = 0.1  # of the text, that the second rule holds out at most, unless more is asked for
VARIANT = re.compile(r"(.+)\(\d+\)")  # CMUdict's mark of another pronunciation, `read(2)`

Pair = tuple[str, str]


@dataclass
class Split:
    """The two sides, with counts of what was done with the pairs that were read."""

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
    once = list(dict.fromkeys(pairs))
    split.duplicates = len(pairs) - len(once)
    split.duplicate_bytes = sum(map(size_of, pairs)) - sum(map(size_of, once))
    inputs = dict.fromkeys(source for source, _ in once)
    if len(inputs) < FEWEST:
        raise UserError(
            f"there are only {len(inputs)} different inputs in {' '.join(config.sources)}; "
            f"give at least {FEWEST}, better thousands"
        )

    if named:
        held = {source for source, _ in named}
        split.heldout, split.how = list(dict.fromkeys(named)), "named"
        split.train = [pair for pair in once if pair[0] not in held]
        split.in_heldout = len(once) - len(split.train)
        if not split.train:
            raise UserError("every input is in the held-out pairs too; nothing is left to train on")
        return split

    fraction_of = {source: fraction(digest_of(source.encode()), "split", config.seed) for source in inputs}
    if config.pair_split == 1:
        share = max(config.heldout_fraction, min(0.1, WANTED_HELDOUT / len(inputs)))
        share = max(share, min(fraction_of.values()))
        held = {source for source, place in fraction_of.items() if place <= share}
        split.how = f"hash split of the inputs {100 * share:.2g} %"
    else:
        held = held_out(once, fraction_of, config.heldout_fraction)
        share = sum(size_of(pair) for pair in once if pair[0] in held) / sum(map(size_of, once))
        split.how = f"by hash of the inputs, {share:.1%} of the text"
    split.heldout = [pair for pair in once if pair[0] in held]
    split.train = [pair for pair in once if pair[0] not in held]
    return split


def held_out(pairs: Sequence[Pair], place: dict[str, float], wanted: float) -> set[str]:
    """The inputs that the second rule holds out: those whose place is low enough. If inputs are few, or differ much in
    size, that may be far from the wanted share: then inputs are held out in order of place until it is reached, except
    those that are too large a part of the text; the smallest input alone if all are.

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
    held = {source for source in place if place[source] <= share}
    if wanted / 2 * total <= sum(sizes[source] for source in held) <= most:
        return held

    held, reached = set(), 0
    for source in sorted(place, key=lambda source: (place[source], source)):
        if reached >= share * total:
            break
        if reached + sizes[source] <= most:
            held.add(source)
            reached += sizes[source]
    return held or {min(place, key=lambda source: (sizes[source], place[source]))}


def without_variants(pairs: list[Pair], split: Split) -> list[Pair]:
    """Rename `read(2)` to `read` if `read` is an input as well: CMUdict marks other pronunciations this way, and the
    mark is of no use to a model."""
    inputs = {source for source, _ in pairs}
    renamed = []
    for source, target in pairs:
        found = VARIANT.fullmatch(source)
        plain = found[1] if found and found[1] in inputs else source
        split.variants += plain != source
        renamed.append((plain, target))
    return renamed


def size_of(pair: Pair) -> int:
    return len(pair[0].encode()) + len(pair[1].encode())
