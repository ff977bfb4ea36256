"""Windows to score, in batches that go through the model together.

Windows with the same input (options of one token) are one row. Rows of nearly equal length form a batch, padded at the
right. Rows that begin alike (options after one context, items after the same examples) are computed from a cache of
their common beginning, which goes through the model once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isoflop.generate.prefix import families

SHORTEST = 8  # ids: beginnings that are shorter are not looked at

Ids = npt.NDArray[np.int64]
Row = list[int]  # the numbers of the windows with one input


@dataclass(frozen=True)
class Window:
    """A piece of a sequence that goes through the model: `ids` (T + 1,), of which the last `scored` are predicted from
    those before them."""

    ids: Ids
    scored: int


@dataclass(frozen=True)
class Batch:
    """Rows that go through the model together.

    Attributes:
        rows: their windows.
        prefixes: common beginnings of rows; empty: the rows go through the model whole.
        prefix_of: which of the prefixes each row has.
    """

    rows: list[Row]
    prefixes: tuple[Ids, ...] = ()
    prefix_of: tuple[int, ...] = ()

    def skipped(self, row: int) -> int:
        """How many ids of a row's input are in its prefix."""
        return len(self.prefixes[self.prefix_of[row]]) if self.prefixes else 0


@dataclass(frozen=True)
class Family:
    """Rows with a common beginning of `shared` ids; the longest of them has `rest` more."""

    rows: list[Row]
    shared: int
    rest: int


def make_batches(windows: Sequence[Window], most: int, held: int = 0, context: int = 0) -> list[Batch]:
    """All windows, the longest first.

    Args:
        most: tokens of a batch, padding included; a longer row is a batch of its own.
        held: positions that a cache may hold for the rows of a batch; 0: every row goes through the model whole.
        context: of the model, if there is a cache.
    """
    alike: dict[bytes, Row] = {}
    for number, window in enumerate(windows):
        alike.setdefault(window.ids[:-1].tobytes(), []).append(number)
    rows = sorted(alike.values(), key=lambda row: -len(windows[row[0]].ids))
    related, rows = by_beginning(windows, rows, held) if held else ([], rows)
    return [*whole(windows, rows, most), *after_prefixes(windows, related, most, held, context)]


def whole(windows: Sequence[Window], rows: Sequence[Row], most: int) -> Iterator[Batch]:
    """Batches of rows that are sorted by length, the longest first."""
    current: list[Row] = []
    for row in rows:
        if current and (len(current) + 1) * (len(windows[current[0][0]].ids) - 1) > most:
            yield Batch(current)
            current = []
        current.append(row)
    if current:
        yield Batch(current)


def by_beginning(windows: Sequence[Window], rows: Sequence[Row], held: int) -> tuple[list[Family], list[Row]]:
    """Families of rows with a common beginning that is worth a pass of its own, and the other rows: also those of which
    not two would fit in the cache."""
    beginnings = [beginning(windows, row) for row in rows]
    able = [i for i, ids in enumerate(beginnings) if len(ids) > SHORTEST]
    others = [rows[i] for i, ids in enumerate(beginnings) if len(ids) <= SHORTEST]
    related = []
    for family in families([beginnings[i] for i in able]):
        members = [rows[able[i]] for i in family.members]
        longest = max(len(windows[row[0]].ids) - 1 for row in members)
        if family.shared and 2 * longest <= held:
            related.append(Family(members, family.shared, longest - family.shared))
        else:
            others += members
    return related, sorted(others, key=lambda row: -len(windows[row[0]].ids))


def beginning(windows: Sequence[Window], row: Row) -> Ids:
    """The ids of a row's input up to the one that predicts the first scored id."""
    inputs = windows[row[0]].ids[:-1]
    return inputs[: len(inputs) - max(windows[number].scored for number in row) + 1]


def after_prefixes(
    windows: Sequence[Window], related: Sequence[Family], most: int, held: int, context: int
) -> Iterator[Batch]:
    """Batches of families: neither the prefixes nor the rest of the rows have more than `most` tokens, the cache has at
    most `held` positions, and everything fits in the context. A family that is too large is divided."""
    rows: list[Row] = []
    prefixes: list[Ids] = []
    prefix_of: list[int] = []
    longest, rest = 0, 0  # of the prefixes, and of what follows them
    for family in sorted(related, key=lambda family: -family.shared):
        at_once = max(1, min(held // (family.shared + family.rest), most // family.rest))
        for first in range(0, len(family.rows), at_once):
            members = family.rows[first : first + at_once]
            count, wider = len(rows) + len(members), max(rest, family.rest)
            too_many = count * wider > most or (len(prefixes) + 1) * longest > most or count * (longest + wider) > held
            if rows and (too_many or longest + wider > context):
                yield Batch(rows, tuple(prefixes), tuple(prefix_of))
                rows, prefixes, prefix_of, longest, rest = [], [], [], 0, 0
            longest, rest = max(longest, family.shared), max(rest, family.rest)
            rows.extend(members)
            prefix_of.extend([len(prefixes)] * len(members))
            prefixes.append(windows[members[0][0]].ids[: family.shared])
    if rows:
        yield Batch(rows, tuple(prefixes), tuple(prefix_of))
