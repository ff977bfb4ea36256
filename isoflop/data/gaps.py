"""Data that a run passes over. Sequences are numbered as an unbroken run reads them; a gap is a range of these numbers.

A run that passes over some reads what follows in their place: its sequence i is number `unbroken(i)`. The gaps are all
the state there is, so that which tokens a step sees stays a pure function of its number and of the gaps on record.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Gaps:
    """What is passed over.

    Attributes:
        ranges: (first number, how many), ascending, none touching another.
    """

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> "Gaps":
        """From ranges in any order, overlapping or not."""
        merged: list[tuple[int, int]] = []
        for first, count in sorted(ranges):
            if merged and first <= sum(merged[-1]):
                merged[-1] = (merged[-1][0], max(sum(merged[-1]), first + count) - merged[-1][0])
            else:
                merged.append((first, count))
        return cls(tuple(merged))

    def unbroken(self, i: int) -> int:
        """The number that sequence i of a run with these gaps has in an unbroken one."""
        for first, count in self.ranges:
            if i >= first:
                i += count
        return i

    def span(self, first: int, end: int) -> tuple[int, int]:
        """(first number, how many) from sequence `first` of the run to the one before `end`, gaps between included:
        what has to be passed over so that none of these is read."""
        start = self.unbroken(first)
        return start, self.unbroken(end - 1) + 1 - start

    def before(self, end: int) -> list[tuple[int, int]]:
        """The gaps that lie before sequence `end` of the run: those that it has passed over by then."""
        last = self.unbroken(end - 1) if end else -1
        return [(first, count) for first, count in self.ranges if first <= last]
