"""data.json: what became of every byte that was found; and what of it a run read, a part of result.json."""

from dataclasses import dataclass, field

from isoflop.records.record import Record, rare


@dataclass(frozen=True, kw_only=True)
class SkippedFile(Record):
    """A file, or a record in one, that was not used."""

    path: str | None = None
    reason: str | None = None
    bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Side(Record):
    """Training or held-out text.

    Attributes:
        documents: pieces of documents, or pairs.
        inputs: different inputs of the pairs.
        bytes: of UTF-8, of pairs both sides; tokens include the ends.
        how: the held-out text was chosen.
        unsampled_bytes: held-out text that was left out.
    """

    documents: int | None = None
    inputs: int | None = rare()
    bytes: int | None = None
    tokens: int | None = None
    how: str | None = rare()
    unsampled_bytes: int | None = rare()


@dataclass(frozen=True, kw_only=True)
class PreparedSource(Record):
    """What was prepared of one source.

    Attributes:
        weight: its share of the training tokens, as asked for; None: in proportion to its size.
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
    """data.json. Bytes are of UTF-8 text, but for a file skipped whole, which counts with its size on disk.

    Attributes:
        bytes_per_token: of the training text, ends of documents included.
        documents: found; pieces: what they were cut into; empty: left out as such.
        in_heldout: documents that were left out of training since they are in the held-out text.
        variants: further outputs of an input; too_long: pairs left out (seq2seq).
        skipped: the first of the files and records that were not used.
        sampled_share: of the training text that was prepared.
        folder: where the prepared data lies; seconds: that preparing it took; reused: it was there already.
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
    sampled_share: float | None = None
    train: Side = field(default_factory=Side)
    heldout: Side = field(default_factory=Side)
    sources: dict[str, PreparedSource] = field(default_factory=dict)
    fingerprint: str | None = rare()
    folder: str | None = rare()
    seconds: float | None = rare()
    reused: bool | None = rare()


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
