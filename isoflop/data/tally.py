"""Counts what was read of a source and what was skipped, for the preparation, the survey and `eval`."""

import re
from dataclasses import dataclass, field

from isoflop.errors import UserError
from isoflop.records import SkippedFile, Unused, not_used

SKIPPED_KEPT = 20  # unused items that are listed in full
NOTES_KEPT = 20  # notes, and files per note
KINDS_KEPT = 40  # different reasons that are counted separately; later ones count as "other reasons"
PLACE = re.compile(r" at (byte|row|line) \d+")  # differs between two items skipped for the same reason


@dataclass
class Tally:
    """Counts of what was read and what was skipped. `strict` turns every loss into an error.

    Attributes:
        documents: records, and plain-text files that were read at least in part.
        pieces: the pieces into which they were cut.
        empty: records, pieces and files of white space only.
        used_bytes: of the records and pieces that were read, including the other columns of records.
        skipped: the first items that were lost.
        skipped_files: files, links and folders.
        skipped_records: records of a file whose reading continued, and pieces of a text.
        skipped_bytes: of all these; a file counts with its size on disk.
        kinds: the items that were not used, by kind, reason, and whether that is intended.
        failure: the first message of a file that could not be read.
        notes: notes about files that were read -> these files, the first 20.
    """

    strict: bool = False
    documents: int = 0
    pieces: int = 0
    empty: int = 0
    used_bytes: int = 0
    skipped: list[SkippedFile] = field(default_factory=list)
    skipped_files: int = 0
    skipped_records: int = 0
    skipped_bytes: int = 0
    kinds: dict[tuple[str, str, bool], "Kind"] = field(default_factory=dict)
    failure: str = ""
    notes: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, path: str, reason: str, size: int, whole: bool, what: str = "", count: int = 1) -> None:
        """Count what is lost: `size` bytes of a `whole` file (on disk), or of one record or piece of it.

        Args:
            what: the kind of item; by default "file" or "record".
            count: number of items.

        Raises:
            UserError: if strict.
        """
        if self.strict:
            raise UserError(f"{path}: {reason}; without --strict it would be skipped and counted")
        self.skipped_files += count * whole
        self.skipped_records += count * (not whole)
        self.skipped_bytes += size
        if len(self.skipped) < SKIPPED_KEPT:
            self.skipped.append(SkippedFile(path=path, reason=reason, bytes=size))
        self.add(what or ("file" if whole else "record"), reason, path, size, count, meant=False)

    def leave_out(self, what: str, path: str, size: int, reason: str = "") -> None:
        """Count an item next to the user's text that is not part of it: metadata, hidden files, run folders."""
        self.add(what, reason, path, size, 1, meant=True)

    def add(self, what: str, reason: str, path: str, size: int, count: int, meant: bool) -> None:
        common = PLACE.sub("", reason)
        key = (what, common, meant)
        if key not in self.kinds and len(self.kinds) >= KINDS_KEPT:
            key = (what, "other reasons", meant)
        kind = self.kinds.setdefault(key, Kind(path, reason))
        kind.count += count
        kind.bytes += size

    def note(self, path: str, note: str) -> None:
        """Record a note to the user about a file that was read."""
        paths = self.notes.setdefault(note, []) if note in self.notes or len(self.notes) < NOTES_KEPT else []
        if len(paths) < NOTES_KEPT:
            paths.append(path)

    def include(self, other: "Tally") -> None:
        """Add the counts of another tally."""
        for name in ("documents", "pieces", "empty", "used_bytes", "skipped_files", "skipped_records", "skipped_bytes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.skipped += other.skipped[: SKIPPED_KEPT - len(self.skipped)]
        for (what, _, meant), kind in other.kinds.items():
            self.add(what, kind.reason, kind.path, kind.bytes, kind.count, meant)
        for note, paths in other.notes.items():
            for path in paths:
                self.note(path, note)

    @property
    def found_bytes(self) -> int:
        """Bytes that were read or lost."""
        return self.used_bytes + self.skipped_bytes

    def unused(self) -> tuple[Unused, ...]:
        """What was not used, by kind: losses before intended exclusions, the largest first."""
        kinds = [
            Unused(
                what=what,
                reason=(kind.reason if kind.count == 1 else reason) or None,
                count=kind.count,
                bytes=kind.bytes,
                first=kind.path,
                meant=True if meant else None,
            )
            for (what, reason, meant), kind in self.kinds.items()
        ]
        return tuple(sorted(kinds, key=lambda kind: (bool(kind.meant), -(kind.bytes or 0), -(kind.count or 0))))


def notes_of(tally: Tally) -> tuple[str, ...]:
    """The notes, one line each, with the first file and the number of the others."""
    return tuple(
        f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}: {note}"
        for note, paths in tally.notes.items()
    )


@dataclass
class Kind:
    """Items that were not used for one reason: the first with its own reason, their number and bytes."""

    path: str
    reason: str
    count: int = 0
    bytes: int = 0


def total_of(tallies: list[Tally]) -> Tally:
    """The sum of several tallies."""
    total = Tally()
    for tally in tallies:
        total.include(tally)
    return total


def because(tally: Tally) -> str:
    """The end of an error message about a source with no or too little text: what was not used, after a semicolon."""
    lines = not_used(tally.unused(), tally.found_bytes).lines
    return f"; {'; '.join(lines)}" if lines else ""
