"""Data that a run skips. Sequences are numbered as a run without gaps reads them; a gap is a range of these numbers.

A run with gaps reads the following sequences instead: its sequence i is number `unbroken(i)`. The gaps are the only
state, so that the tokens of a step remain a pure function of its number and of the recorded gaps.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Gaps:
    """The skipped ranges.

    Attributes:
        ranges: (first number, count), ascending; no two of them touch.
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
        """The number of sequence i of a run with these gaps, in a run without gaps."""
        for first, count in self.ranges:
            if i >= first:
                i += count
        return i

    def span(self, first: int, end: int) -> tuple[int, int]:
        """(first number, count) of the range from sequence `first` of the run to the one before `end`, including gaps
        between: the range to skip so that none of these is read."""
        start = self.unbroken(first)
        return start, self.unbroken(end - 1) + 1 - start

    def before(self, end: int) -> list[tuple[int, int]]:
        """The gaps before sequence `end` of the run, that is, those skipped by then."""
        last = self.unbroken(end - 1) if end else -1
        return [(first, count) for first, count in self.ranges if first <= last]
