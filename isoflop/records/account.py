"""data.json: the account of every byte that was found. Also the part of result.json that counts what a run read."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from isoflop.errors import one_line
from isoflop.records.record import Record, rare

LARGE_SHARE = 0.01  # share of the bytes found; if more are lost, there is a warning
MOST_KINDS = 8  # kinds listed, of lost and of left out each; data.json has all


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
        count: the number of them; bytes: their total size, for a file its size on disk.
        first: the path of the first.
        meant: excluded on purpose, such as run folders and hidden files; otherwise lost.
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
        documents: number of pieces of documents, or of pairs.
        inputs: number of different inputs of the pairs.
        bytes: of UTF-8, both sides of a pair; tokens include end-of-text.
        how: how the held-out text was chosen.
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
        variants: further outputs of an input; too_long: pairs that were dropped (seq2seq).
        skipped: the first of the files and records that were not used.
        unused: everything that was not used, by kind; found_bytes: bytes lost or read.
        sampled_share: the share of the training text that was prepared.
        folder: of the prepared data; seconds: the time that preparation took; reused: it existed already.
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
        """What was not used, in words. An account written before `unused` existed has only counts."""
        notes = self.notes or ()
        if self.unused is not None:
            return not_used(self.unused, self.found_bytes or 0, notes)
        first = self.skipped[0] if self.skipped else SkippedFile()
        files, records, lost = self.skipped_files or 0, self.skipped_records or 0, self.skipped_bytes or 0
        noun = "part" if files and records else "file" if files else "record"
        older = Unused(what=noun, reason=first.reason, count=files + records, bytes=lost, first=first.path)
        read = (self.train.bytes or 0) + (self.heldout.bytes or 0) + (self.duplicate_bytes or 0)
        return not_used([older] if files + records else [], read + lost, notes)


@dataclass(frozen=True)
class NotUsed:
    """What was not used, in the same words on the screen, in the report and everywhere else.

    Attributes:
        lines: one per kind, lost ones first; empty if everything was used.
        warning: a sentence if more than LARGE_SHARE of the bytes were lost; else empty.
        notes: what else the user should know about the files, one line each.
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
        found_bytes: bytes read or lost.
        notes: about the files that were read.
    """
    lost = [entry for entry in unused if not entry.meant]
    left_out = [entry for entry in unused if entry.meant]
    lines = [describe_unused(entry, "not used", max(1, found_bytes)) for entry in lost[:MOST_KINDS]]
    lines += [describe_unused(entry, "left out", 0) for entry in left_out[:MOST_KINDS]]
    if further := max(0, len(lost) - MOST_KINDS) + max(0, len(left_out) - MOST_KINDS):
        lines.append(f"and {further} more kind{'s' if further > 1 else ''}")

    lost_bytes = sum(entry.bytes or 0 for entry in lost)
    warning = ""
    if lost_bytes > LARGE_SHARE * found_bytes:
        warning = (
            f"warning: {lost_bytes / found_bytes:.1%} of the bytes found were not used ({format_bytes(lost_bytes)})"
        )
    return NotUsed(tuple(map(one_line, lines)), warning, tuple(one_line(f"note: {note}") for note in notes))


def describe_unused(entry: Unused, outcome: str, found_bytes: int) -> str:
    """One line for one kind: count, bytes, share of `found_bytes` (0: none), reason and first example.

    Args:
        outcome: "not used" or "left out".
    """
    count, size = entry.count or 0, entry.bytes or 0
    parts = [f"{outcome}: {count:,} {entry.what if count == 1 else plural(entry.what or '')}", format_bytes(size)]
    if found_bytes:
        share = size / found_bytes
        parts.append(f"{share:.1%} of the bytes" if share >= 0.0005 or not size else "under 0.1% of the bytes")
    line = ", ".join(parts)
    if entry.reason:
        line += f": {entry.reason}"
    if entry.first is None:
        return line
    return f"{line} ({entry.first})" if count == 1 else f"{line} (the first: {entry.first})"


def plural(noun: str) -> str:
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"


def format_bytes(size: float) -> str:
    """812 bytes · 4.1 kB · 12.9 MB: powers of 1000."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:,.0f} byte{'s' if size != 1 else ''}"


@dataclass(frozen=True, kw_only=True)
class SourceRead(Record):
    """What a run read of one source.

    Attributes:
        tokens: read as targets; share: of all tokens read; asked: the configured share.
        epochs: passes over it, each a whole number of windows, so that each token is a target at least once;
            repeated_per_epoch: tokens per pass that are a target twice.
        passed_over: tokens that rollbacks skipped; not counted in the others.
    """

    tokens: int | None = None
    share: float | None = None
    asked: float | None = None
    epochs: float | None = None
    repeated_per_epoch: int | None = None
    passed_over: int | None = None


@dataclass(frozen=True, kw_only=True)
class DataRead(Record):
    """What the steps of a run read, in total and by source."""

    tokens: int | None = None
    passed_over: int | None = None
    sources: dict[str, SourceRead] = field(default_factory=dict)
