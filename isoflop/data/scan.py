"""First pass: decides about each document, counts them, and samples text for the tokenizer.

The decisions are stored, one byte per document, so that the second pass needs no digests.
"""

import heapq
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from isoflop import files
from isoflop.data.clean import Digests, digest_of, fraction
from isoflop.data.config import DataConfig
from isoflop.data.corpus import Source, total_size
from isoflop.data.kinds import find_kind
from isoflop.data.parts import Part, changed, no_text, read_parts
from isoflop.data.sample import Sample
from isoflop.data.stretches import FEWEST_PIECES, Stretches, piece_size
from isoflop.data.survey import Survey
from isoflop.data.tally import Tally, because, total_of
from isoflop.errors import UserError

DROP, TRAIN, HELDOUT = b"\0", b"\1", b"\2"
CUT, UNSAMPLED = b"\3", b"\4"  # second rule: pieces may be held out; the rest is trained on, or outside the share
FEWEST_DOCUMENTS = 8  # that a sampled share should hold
HELDOUT_BYTES, HELDOUT_SHARE = 4_000_000, 0.05  # held-out text is capped at the larger of these
FEWEST_HELDOUT_BYTES = 256 * 1024  # of held-out text, where half the share asked for comes to as much


@dataclass
class Count:
    documents: int = 0
    bytes: int = 0

    def add(self, size: int, sign: int = 1) -> None:
        self.documents += sign
        self.bytes += sign * size


@dataclass
class Account:
    """Counts of what was done with the documents of one part."""

    read: Count = field(default_factory=Count)
    train: Count = field(default_factory=Count)
    heldout: Count = field(default_factory=Count)
    duplicates: Count = field(default_factory=Count)
    in_heldout: Count = field(default_factory=Count)  # dropped because a held-out source contains them too
    unsampled: Count = field(default_factory=Count)  # training text outside the sampled share
    unsampled_heldout: Count = field(default_factory=Count)
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class Shares:
    """The share of each part's documents that is prepared, by a hash independent of the split's.

    Attributes:
        sizes: bytes of text of each part, estimated; empty where all is prepared.
    """

    train: tuple[float, ...]
    heldout: float
    sizes: tuple[float, ...] = ()


@dataclass(frozen=True, order=True)
class Candidate:
    """A document that may change sides, ordered by the distance of its hash to the other side."""

    distance: float
    index: int
    part: int
    bytes: int


class Nearest:
    """Collects, in one pass, the documents nearest to changing sides, up to FEWEST_HELDOUT_BYTES."""

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Candidate]] = []  # the farthest first
        self.bytes = 0

    def offer(self, candidate: Candidate) -> None:
        heapq.heappush(self.heap, (-candidate.distance, -candidate.index, candidate))
        self.bytes += candidate.bytes
        while len(self.heap) > 1 and self.bytes - self.heap[0][2].bytes >= FEWEST_HELDOUT_BYTES:
            self.bytes -= heapq.heappop(self.heap)[2].bytes

    def in_order(self) -> list[Candidate]:
        """Nearest first."""
        return sorted(candidate for _, _, candidate in self.heap)


def choose_shares(config: DataConfig, parts: list[Part], surveyed: Survey | None) -> Shares:
    """Shares for about `max_train_bytes` of training text, in proportion to the weights, and held-out text to match.

    A source that has less than its share of them is kept whole; every source keeps a share that should contain a few
    documents.
    """
    if not config.max_train_bytes or surveyed is None:
        return Shares((1.0,) * len(parts), 1.0)
    by_name = {one.name: one for one in surveyed.sources}
    total = max(surveyed.bytes, 1)
    shares, sizes = [], []
    for part in parts:
        if part.heldout:
            shares.append(1.0)
            sizes.append(0.0)
            continue
        one = by_name[part.source.name]
        weight = part.source.weight if part.source.weight is not None else one.text_bytes / total
        due = max(weight * config.max_train_bytes, FEWEST_DOCUMENTS * one.document_bytes)
        shares.append(min(1.0, due / max(one.text_bytes, 1)))
        sizes.append(one.text_bytes)
    heldout = surveyed.heldout_bytes if config.heldout else config.heldout_fraction * total
    cap = max(HELDOUT_BYTES, HELDOUT_SHARE * config.max_train_bytes)
    return Shares(tuple(shares), min(1.0, cap / max(heldout, 1.0)), tuple(sizes))


def choose_stretches(config: DataConfig, surveyed: Survey | None) -> Stretches | None:
    """The chooser of held-out text by the second rule; None if that text is named, or chosen by the first rule."""
    if config.heldout or config.split == 1 or surveyed is None:
        return None
    wanted = config.heldout_fraction * surveyed.bytes
    if config.max_train_bytes:
        wanted = min(wanted, max(HELDOUT_SHARE, config.heldout_fraction) * config.max_train_bytes)
    return Stretches(piece_size(wanted), config.heldout_fraction, config.seed)


class Scan:
    """The first pass. A context manager, because the decisions are in a temporary file."""

    def __init__(
        self, config: DataConfig, parts: list[Part], shares: Shares, stretches: Stretches | None = None
    ) -> None:
        self.config, self.parts, self.shares, self.stretches = config, parts, shares, stretches
        self.accounts = [Account(tally=part.tally) for part in parts]
        weighted = any(part.source.weight is not None for part in parts)
        self.samples = {i if weighted else 0: Sample(part.source.weight or 1.0) for i, part in enumerate(parts)}
        self.weighted = weighted
        self.needs_sample = find_kind(config.tokenizer) is not None  # for training it
        self.documents = 0
        self.almost_heldout, self.almost_train = Nearest(), Nearest()
        folder = files.spool()
        with files.disk_errors("the decisions about documents"):
            self.decisions: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def __enter__(self) -> "Scan":
        return self

    def __exit__(self, *_: object) -> None:
        self.decisions.close()

    def run(self, moved: Callable[[int], None]) -> None:
        """Read and decide about every document.

        Raises:
            UserError: for a source without text, or if one side of the split would be empty.
        """
        seen, held = Digests(), Digests()
        tallies = [account.tally for account in self.accounts]
        for number, document in read_parts(self.parts, tallies, self.config, moved):
            digest = digest_of(document)
            if self.stretches:
                decision = self.look(self.stretches, number, document, digest, seen)
            else:
                decision = self.decide(number, document, digest, seen, held)
            with files.disk_errors("the decisions about documents"):
                self.decisions.write(decision)
            self.documents += 1
        self.check_parts()
        if self.stretches:
            self.choose(self.stretches)
        else:
            self.fill_scant_side()
        self.check_sides()

    def check_parts(self) -> None:
        """Check that every source has text. One of several sources without weights may have none, since a shell
        pattern makes each file a source: it is counted as unused.

        Raises:
            UserError: saying what was not used.
        """
        empty = [i for i, account in enumerate(self.accounts) if not account.read.documents]
        training = [i for i, part in enumerate(self.parts) if not part.heldout]
        for i in empty:
            part = self.parts[i]
            needed = part.heldout or part.source.weight is not None or self.config.strict
            if needed or set(training) <= set(empty):
                raise no_text(part, part.tally)
            if not part.tally.skipped:
                part.tally.leave_out("source", part.source.pattern, total_size(part.files), "it holds no text")

    def look(self, stretches: Stretches, number: int, document: bytes, digest: bytes, seen: Digests) -> bytes:
        """The decision about a document by the second rule, before it is known which pieces are held out."""
        account, size = self.accounts[number], len(document)
        account.read.add(size)
        if not seen.add(digest):
            account.duplicates.add(size)
            return DROP
        possible = stretches.look(number, document)
        share = self.shares.train[number]
        if share < 1.0 and fraction(digest, "share", self.config.seed) >= share:
            if possible:
                return UNSAMPLED
            account.unsampled.add(size)
            return DROP
        account.train.add(size)
        if self.needs_sample:
            sample = self.samples[number if self.weighted else 0]
            sample.offer(document, digest, self.documents, self.config.seed, stretches.size)
        return CUT if possible else TRAIN

    def choose(self, stretches: Stretches) -> None:
        """Choose the held-out pieces, and the share of them that matches the share of training text prepared."""
        stretches.choose()
        if not stretches.held_pieces:
            return
        most = max(HELDOUT_SHARE, self.config.heldout_fraction) * self.total("train").bytes
        share = most / stretches.held
        if self.config.max_train_bytes and share * stretches.held_pieces >= FEWEST_PIECES:
            stretches.share = min(1.0, share)
        self.accounts[0].heldout.add(stretches.held)  # counted by source in `kept`, when each piece's source is known

    def decide(self, number: int, document: bytes, digest: bytes, seen: Digests, held: Digests) -> bytes:
        part, account, size, seed = self.parts[number], self.accounts[number], len(document), self.config.seed
        account.read.add(size)
        split = fraction(digest, "split", seed)
        is_heldout = part.heldout or (not self.config.heldout and split < self.config.heldout_fraction)
        if not part.heldout and digest in held:
            account.in_heldout.add(size)
            return DROP
        share = self.shares.heldout if is_heldout else self.shares.train[number]
        if part.heldout:  # record all of it, so that none of it is trained on, sampled or not
            is_new = held.add(digest)
        if share < 1.0 and fraction(digest, "share", seed) >= share:
            (account.unsampled_heldout if is_heldout else account.unsampled).add(size)
            return DROP
        if not (is_new if part.heldout else seen.add(digest)):
            account.duplicates.add(size)
            return DROP
        if is_heldout:
            account.heldout.add(size)
            self.almost_train.offer(Candidate(-split, self.documents, number, size))
            return HELDOUT
        account.train.add(size)
        self.almost_heldout.offer(Candidate(split, self.documents, number, size))
        if self.needs_sample:
            self.samples[number if self.weighted else 0].offer(document, digest, self.documents, seed)
        return TRAIN

    def fill_scant_side(self) -> None:
        """Move documents to a side that has too little.

        Documents differ in size and a small corpus has few, so that there may be none whose hash falls below the
        held-out fraction, or they may hold less than half of that fraction of the text and less than
        FEWEST_HELDOUT_BYTES. Then the next documents by hash are held out until that much is; none larger than what is
        wanted, unless nothing would be held out. (Such a document may return to training when the corpus grows.) If
        nothing is left to train on, the held-out document with the largest hash is trained on.
        """
        if self.config.heldout:
            return
        if not self.total("train").documents and self.total("heldout").documents > 1:
            self.move(self.almost_train.in_order()[0], to_heldout=False)
            return
        text = self.total("train").bytes + self.total("heldout").bytes
        wanted = min(self.config.heldout_fraction * text / 2, FEWEST_HELDOUT_BYTES)
        for candidate in self.almost_heldout.in_order():
            held = self.total("heldout")
            if held.bytes >= wanted or self.total("train").documents < 2:
                return
            if held.documents == 0 or candidate.bytes <= wanted:
                self.move(candidate, to_heldout=True)

    def move(self, candidate: Candidate, to_heldout: bool) -> None:
        """Move a document to the other side."""
        account = self.accounts[candidate.part]
        account.train.add(candidate.bytes, -1 if to_heldout else 1)
        account.heldout.add(candidate.bytes, 1 if to_heldout else -1)
        self.decisions.seek(candidate.index)
        self.decisions.write(HELDOUT if to_heldout else TRAIN)
        for sample in self.samples.values():
            sample.forget(candidate.index)

    def check_sides(self) -> None:
        train, heldout = self.total("train"), self.total("heldout")
        if not heldout.documents or not train.documents:
            if self.config.heldout:
                raise UserError(
                    "no document is left to train on: all of them are also in the held-out text; name other sources"
                    if heldout.documents
                    else "the held-out sources hold no text; name others with --heldout"
                )
            lost = because(total_of([account.tally for account in self.accounts]))
            if self.stretches:
                raise UserError(
                    f"the corpus has {train.bytes:,} bytes of text, too little or too much alike to hold some of "
                    f"it out; add text, or name the held-out text with --heldout PATH{lost}"
                )
            raise UserError(
                f"the corpus has {train.documents + heldout.documents} distinct document or piece, too few to hold one "
                f"out; add text, or name the held-out text with --heldout PATH{lost}"
            )
        for number, (part, account) in enumerate(zip(self.parts, self.accounts, strict=True)):
            if part.source.weight is not None and not part.heldout and not account.train.documents:
                raise self.nothing_of(number, part.source, account)

    def nothing_of(self, number: int, source: Source, account: Account) -> UserError:
        """Why there is nothing to train on of a source with a weight, and what to do."""
        gone = {
            "duplicates": account.duplicates.documents,
            "also in the held-out text": account.in_heldout.documents,
            "held out": account.heldout.documents if not self.stretches else 0,
        }
        unsampled, share = account.read.documents - sum(gone.values()), self.shares.train[number]
        if unsampled > 0 and share < 1.0:
            enough = math.ceil(max(self.shares.sizes[number], account.read.bytes) / (source.weight or 1.0))
            return UserError(
                f"source {source.name} has a weight, and none of its {account.read.documents:,} texts is in the share "
                f"of it that is prepared for so small a budget ({share:.2g}, by a hash of each text); give more "
                f"budget, or let more be prepared: --set data.max_train_bytes={enough}"
            )
        told = ", ".join(f"{what}: {count:,}" for what, count in gone.items() if count)
        return UserError(
            f"source {source.name} has a weight but no text of its own to train on ({told}); leave it out or add text"
        )

    def total(self, what: str) -> Count:
        counts = [getattr(account, what) for account in self.accounts]
        return Count(sum(count.documents for count in counts), sum(count.bytes for count in counts))

    def kept(self, moved: Callable[[int], None]) -> Iterator[tuple[int | None, bytes]]:
        """Second pass: (number of the part, or None for held-out, document) of what is kept.

        Raises:
            UserError: if the corpus has changed since it was scanned.
        """
        self.decisions.seek(0)
        read = 0
        dealer = Dealer(self.stretches, self.accounts) if self.stretches else None
        again = [Tally() for _ in self.parts]
        for number, document in read_parts(self.parts, again, self.config, moved):
            decision = self.decisions.read(1)
            read += 1
            if decision == TRAIN:
                if dealer:
                    self.accounts[number].train.add(len(document))
                yield number, document
            elif decision == HELDOUT:
                yield None, document
            elif dealer and decision in (CUT, UNSAMPLED):
                yield from dealer.deal(number, document, decision == CUT)
        if read != self.documents:
            raise changed("the corpus")

    def tokenizer_sample(self) -> Iterator[str]:
        chosen = self.stretches
        for _, sample in sorted(self.samples.items()):
            for pieces in sample.pieces():
                kept = [piece for piece in pieces if chosen is None or not chosen.is_held(piece, digest_of(piece))]
                if kept:
                    yield b"".join(kept).decode(errors="ignore")


class Dealer:
    """The second pass by the second rule: assigns the pieces of documents to the two sides, and counts them."""

    def __init__(self, stretches: Stretches, accounts: list[Account]) -> None:
        self.stretches, self.accounts = stretches, accounts
        self.given = Digests()  # held-out pieces, each once
        for account in accounts:
            account.train, account.heldout = Count(), Count()

    def deal(self, number: int, document: bytes, sampled: bool) -> Iterator[tuple[int | None, bytes]]:
        """Yields (number of the part, or None for held-out, text). `sampled`: text that is not held out is trained
        on."""
        account = self.accounts[number]
        for held, text, digest in self.stretches.sides(document):
            size = len(text)
            if not held:
                (account.train if sampled else account.unsampled).add(size)
                if sampled:
                    yield number, text
            elif not self.given.add(digest):
                account.in_heldout.add(size)
            elif not self.stretches.wanted(digest):
                account.unsampled_heldout.add(size)
            else:
                account.heldout.add(size)
                yield None, text
