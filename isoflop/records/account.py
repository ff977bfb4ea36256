"""data.json: the account of every byte that was found; and, in result.json, of what a run read."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from isoflop.errors import one_line
from isoflop.records.record import Record, rare

LARGE_SHARE = 0.01  # of the bytes found: above it, what was not used is a warning
KINDS_TOLD = 8  # of each, lost and left out; data.json has all


@dataclass(frozen=True, kw_only=True)
class SkippedFile(Record):
    """A file, or a record in one, that was not used."""

    path: str | None = None
    reason: str | None = None
    bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Unused(Record):
    """Things of one kind that were not used, for one reason.

    Attributes:
        what: "file", "record", "piece" (of a plain text), "link", "folder", "pair", "run folder" ...
        count, bytes: of them; a file counts with its size on disk.
        first: the first one's path.
        meant: excluded on purpose, such as run folders and hidden files; else it was lost.
    """

    what: str | None = None
    reason: str | None = None
    count: int | None = None
    bytes: int | None = None
    first: str | None = None
    meant: bool | None = rare()


@dataclass(frozen=True, kw_only=True)
class Side(Record):
    """Training or held-out text.

    Attributes:
        documents: pieces of documents, or pairs.
        inputs: different inputs of the pairs.
        bytes: of UTF-8, of pairs both sides; tokens include the ends.
        how: the way in which the held-out text was chosen.
        unsampled_bytes: held-out text that was not prepared.
    """

    documents: int | None = None
    inputs: int | None = rare()
    bytes: int | None = None
    tokens: int | None = None
    how: str | None = rare()
    unsampled_bytes: int | None = rare()


@dataclass(frozen=True, kw_only=True)
class PreparedSource(Record):
    """The prepared part of one source.

    Attributes:
        weight: its share of the training tokens, as set by the user; None: in proportion to its size.
    """

    pattern: str | None = None
    weight: float | None = None
    files: int | None = None
    documents: int | None = None
    bytes: int | None = None
    tokens: int | None = None
    duplicates: int | None = None
    heldout_documents: int | None = None
    unsampled_bytes: int | None = None
    inputs: int | None = rare()


@dataclass(frozen=True, kw_only=True)
class DataAccount(Record):
    """data.json. Bytes are of UTF-8 text, except those of a file that was skipped whole, which has its size on disk.

    Attributes:
        bytes_per_token: of the training text, including ends of documents.
        documents: found; pieces: into which they were split; empty: documents without text.
        in_heldout: documents removed from training because they are in the held-out text.
        variants: other outputs of an input; too_long: pairs that were dropped (seq2seq).
        skipped: the first of the files and records that were not used.
        unused: everything that was not used, by kind; found_bytes: bytes lost and read.
        sampled_share: the share of the training text that was prepared.
        folder: of the prepared data; seconds: that preparing it took; reused: it existed already.
        notes: what the user should know about the files that were read.
        moved_to, heldout_moved_to: the new places of the sources and of the held-out text, if they were moved after the
            run had started.
    """

    vocab_size: int | None = None
    tokenizer: str | None = None
    bytes_per_token: float | None = None
    documents: int | None = None
    pieces: int | None = rare()
    empty: int | None = None
    duplicates: int | None = None
    duplicate_bytes: int | None = None
    in_heldout: int | None = None
    variants: int | None = rare()
    too_long: int | None = rare()
    skipped: tuple[SkippedFile, ...] = ()
    skipped_files: int | None = None
    skipped_records: int | None = None
    skipped_bytes: int | None = None
    unused: tuple[Unused, ...] | None = rare()
    found_bytes: int | None = rare()
    sampled_share: float | None = None
    train: Side = field(default_factory=Side)
    heldout: Side = field(default_factory=Side)
    sources: dict[str, PreparedSource] = field(default_factory=dict)
    fingerprint: str | None = rare()
    folder: str | None = rare()
    seconds: float | None = rare()
    reused: bool | None = rare()
    notes: tuple[str, ...] | None = rare()
    moved_to: tuple[str, ...] | None = rare()
    heldout_moved_to: tuple[str, ...] | None = rare()

    def not_used(self) -> "NotUsed":
        """What was not used, in words; for an account from before `unused` existed, from its counts."""
        notes = self.notes or ()
        if self.unused is not None:
            return not_used(self.unused, self.found_bytes or 0, notes)
        first = self.skipped[0] if self.skipped else SkippedFile()
        files, records, lost = self.skipped_files or 0, self.skipped_records or 0, self.skipped_bytes or 0
        what = "part" if files and records else "file" if files else "record"
        older = Unused(what=what, reason=first.reason, count=files + records, bytes=lost, first=first.path)
        read = (self.train.bytes or 0) + (self.heldout.bytes or 0) + (self.duplicate_bytes or 0)
        return not_used([older] if files + records else [], read + lost, notes)


@dataclass(frozen=True)
class NotUsed:
    """What was not used, in words: the same on the screen, in the report and everywhere else.

    Attributes:
        lines: one per kind, lost things first; empty if everything was used.
        warning: a sentence if more than LARGE_SHARE of the bytes were lost; else empty.
        notes: what else the user should know of the files, one line each.
    """

    lines: tuple[str, ...] = ()
    warning: str = ""
    notes: tuple[str, ...] = ()

    def all(self) -> tuple[str, ...]:
        """The warning, if there is one, the lines and the notes."""
        return (*([self.warning] if self.warning else []), *self.lines, *self.notes)


def not_used(unused: Sequence[Unused], found_bytes: int, notes: Sequence[str] = ()) -> NotUsed:
    """What was not used, in words: count, bytes, share and first example of each kind.

    Args:
        found_bytes: bytes read and lost.
        notes: about files that were read.
    """
    lost = [one for one in unused if not one.meant]
    meant = [one for one in unused if one.meant]
    lines = [told(one, "not used", max(1, found_bytes)) for one in lost[:KINDS_TOLD]]
    lines += [told(one, "left out", 0) for one in meant[:KINDS_TOLD]]
    if more := max(0, len(lost) - KINDS_TOLD) + max(0, len(meant) - KINDS_TOLD):
        lines.append(f"and {more} more kind{'s' if more > 1 else ''}")

    size = sum(one.bytes or 0 for one in lost)
    warning = ""
    if size > LARGE_SHARE * found_bytes:
        warning = f"warning: {size / found_bytes:.1%} of the bytes found were not used ({bytes_told(size)})"
    return NotUsed(tuple(map(one_line, lines)), warning, tuple(one_line(f"note: {note}") for note in notes))


def told(one: Unused, how: str, found_bytes: int) -> str:
    """One kind as a line: how many of what, their bytes and share, why, and the first."""
    count, size = one.count or 0, one.bytes or 0
    parts = [f"{how}: {count:,} {one.what if count == 1 else plural(one.what or '')}", bytes_told(size)]
    if found_bytes:
        share = size / found_bytes
        parts.append(f"{share:.1%} of the bytes" if share >= 0.0005 or not size else "under 0.1% of the bytes")
    line = ", ".join(parts)
    if one.reason:
        line += f": {one.reason}"
    if one.first is None:
        return line
    return f"{line} ({one.first})" if count == 1 else f"{line} (the first: {one.first})"


def plural(noun: str) -> str:
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"


def bytes_told(size: float) -> str:
    """812 bytes · 4.1 kB · 12.9 MB: powers of 1000."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:,.0f} byte{'s' if size != 1 else ''}"


@dataclass(frozen=True, kw_only=True)
class SourceRead(Record):
    """What a run read of one source.

    Attributes:
        tokens: as targets; share: of all tokens read; asked: the share asked for.
        epochs: passes over it, each a whole number of windows, so that each token is a target at least once;
            repeated_per_epoch: tokens that are a second time.
        passed_over: tokens that rollbacks kept from being read, none of the above.
    """

    tokens: int | None = None
    share: float | None = None
    asked: float | None = None
    epochs: float | None = None
    repeated_per_epoch: int | None = None
    passed_over: int | None = None


@dataclass(frozen=True, kw_only=True)
class DataRead(Record):
    """What the steps of a run read, in all and by source."""

    tokens: int | None = None
    passed_over: int | None = None
    sources: dict[str, SourceRead] = field(default_factory=dict)
