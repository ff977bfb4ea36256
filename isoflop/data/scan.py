"""First pass: decides about each document, counts documents, and samples text for the tokenizer.

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
from isoflop.data.shares import HELDOUT_SHARE, Shares
from isoflop.data.stretches import FEWEST_PIECES, Stretches
from isoflop.data.tally import Tally, because, total_of
from isoflop.errors import UserError

DROP, TRAIN, HELDOUT = b"\0", b"\1", b"\2"
CUT, UNSAMPLED = b"\3", b"\4"  # second rule: pieces may be held out; the others are trained on, or outside the share
FEWEST_HELDOUT_BYTES = 256 * 1024  # wanted of held-out text, or half the requested share if that is less


@dataclass
class Count:
    documents: int = 0
    bytes: int = 0

    def add(self, size: int, sign: int = 1) -> None:
        self.documents += sign
        self.bytes += sign * size


@dataclass
class Account:
    """Counts of the decisions about the documents of one part."""

    read: Count = field(default_factory=Count)
    train: Count = field(default_factory=Count)
    heldout: Count = field(default_factory=Count)
    duplicates: Count = field(default_factory=Count)
    in_heldout: Count = field(default_factory=Count)  # dropped because they are also in the held-out text
    unsampled: Count = field(default_factory=Count)  # training text outside the sampled share
    unsampled_heldout: Count = field(default_factory=Count)
    tally: Tally = field(default_factory=Tally)


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
        self.heap: list[tuple[float, int, Candidate]] = []  # the farthest on top
        self.bytes = 0

    def offer(self, candidate: Candidate) -> None:
        heapq.heappush(self.heap, (-candidate.distance, -candidate.index, candidate))
        self.bytes += candidate.bytes
        while len(self.heap) > 1 and self.bytes - self.heap[0][2].bytes >= FEWEST_HELDOUT_BYTES:
            self.bytes -= heapq.heappop(self.heap)[2].bytes

    def in_order(self) -> list[Candidate]:
        """Nearest first."""
        return sorted(candidate for _, _, candidate in self.heap)


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

    def run(self, on_progress: Callable[[int], None]) -> None:
        """Read all documents and decide about each.

        Raises:
            UserError: for a source without text, or if one side of the split would be empty.
        """
        seen, heldout = Digests(), Digests()
        tallies = [account.tally for account in self.accounts]
        for number, document in read_parts(self.parts, tallies, self.config, on_progress):
            digest = digest_of(document)
            if self.stretches:
                decision = self.decide_provisionally(self.stretches, number, document, digest, seen)
            else:
                decision = self.decide(number, document, digest, seen, heldout)
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
            UserError: listing the files and records that were not used.
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

    def decide_provisionally(
        self, stretches: Stretches, number: int, document: bytes, digest: bytes, seen: Digests
    ) -> bytes:
        """The decision about a document by the second rule, before it is known which pieces are held out."""
        account, size = self.accounts[number], len(document)
        account.read.add(size)
        if not seen.add(digest):
            account.duplicates.add(size)
            return DROP

        possible = stretches.observe(number, document)
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
        """Choose the held-out pieces, and the share of them that matches the prepared share of the training text."""
        stretches.choose()
        if not stretches.held_pieces:
            return
        most = max(HELDOUT_SHARE, self.config.heldout_fraction) * self.total("train").bytes
        share = most / stretches.held
        if self.config.max_train_bytes and share * stretches.held_pieces >= FEWEST_PIECES:
            stretches.share = min(1.0, share)
        self.accounts[0].heldout.add(stretches.held)  # counted by source in `kept`, when each piece's source is known

    def decide(self, number: int, document: bytes, digest: bytes, seen: Digests, heldout: Digests) -> bytes:
        """The decision about a document by the first rule.

        Args:
            seen: digests of the documents of the sources that are split.
            heldout: digests of the documents of the sources named as held-out.
        """
        part, account, size, seed = self.parts[number], self.accounts[number], len(document), self.config.seed
        account.read.add(size)
        split = fraction(digest, "split", seed)
        is_heldout = part.heldout or (not self.config.heldout and split < self.config.heldout_fraction)
        if not part.heldout and digest in heldout:
            account.in_heldout.add(size)
            return DROP

        share = self.shares.heldout if is_heldout else self.shares.train[number]
        if part.heldout:  # record all of them, so that none is trained on, sampled or not
            is_new = heldout.add(digest)
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

        Documents differ in size and a small corpus has few. So there may be none whose hash is below the held-out
        fraction, or they may contain less than half of that fraction of the text and less than FEWEST_HELDOUT_BYTES.
        Then the next documents by hash are held out until they contain as much; none larger than the wanted amount,
        unless nothing would be held out. (Such a document may return to training when the corpus grows.) If nothing is
        left to train on, the held-out document with the largest hash is trained on.
        """
        if self.config.heldout:
            return
        if not self.total("train").documents and self.total("heldout").documents > 1:
            self.move(self.almost_train.in_order()[0], to_heldout=False)
            return
        text = self.total("train").bytes + self.total("heldout").bytes
        wanted = min(self.config.heldout_fraction * text / 2, FEWEST_HELDOUT_BYTES)
        for candidate in self.almost_heldout.in_order():
            heldout = self.total("heldout")
            if heldout.bytes >= wanted or self.total("train").documents < 2:
                return
            if heldout.documents == 0 or candidate.bytes <= wanted:
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
        """Check that there is training text, of every source with a weight, and held-out text.

        Raises:
            UserError: with advice.
        """
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
                raise self.untrained(number, part.source, account)

    def untrained(self, number: int, source: Source, account: Account) -> UserError:
        """The error about a source with a weight of which nothing is left to train on."""
        removed = {
            "duplicates": account.duplicates.documents,
            "also in the held-out text": account.in_heldout.documents,
            "held out": account.heldout.documents if not self.stretches else 0,
        }
        unsampled, share = account.read.documents - sum(removed.values()), self.shares.train[number]
        if unsampled > 0 and share < 1.0:
            enough = math.ceil(max(self.shares.sizes[number], account.read.bytes) / (source.weight or 1.0))
            return UserError(
                f"source {source.name} has a weight, and none of its {account.read.documents:,} texts is in the share "
                f"of it that is prepared for a budget of this size ({share:.2g}, by a hash of each text); give more "
                f"budget, or prepare more of it: --set data.max_train_bytes={enough}"
            )
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in removed.items() if count)
        return UserError(
            f"source {source.name} has a weight but no text of its own to train on ({reasons}); remove it or add text"
        )

    def total(self, name: str) -> Count:
        """The sum over all parts of one of the counts of Account."""
        counts = [getattr(account, name) for account in self.accounts]
        return Count(sum(count.documents for count in counts), sum(count.bytes for count in counts))

    def kept(self, on_progress: Callable[[int], None]) -> Iterator[tuple[int | None, bytes]]:
        """Second pass: (number of the part, or None for held-out; document) of all kept documents and pieces.

        Raises:
            UserError: if the corpus has changed since it was scanned.
        """
        self.decisions.seek(0)
        read = 0
        splitter = Splitter(self.stretches, self.accounts) if self.stretches else None
        uncounted = [Tally() for _ in self.parts]  # the first pass has counted everything

        for number, document in read_parts(self.parts, uncounted, self.config, on_progress):
            decision = self.decisions.read(1)
            read += 1
            if decision == TRAIN:
                if splitter:
                    self.accounts[number].train.add(len(document))
                yield number, document
            elif decision == HELDOUT:
                yield None, document
            elif splitter and decision in (CUT, UNSAMPLED):
                yield from splitter.split(number, document, decision == CUT)
        if read != self.documents:
            raise changed("the corpus")

    def tokenizer_sample(self) -> Iterator[str]:
        """The texts to train the tokenizer on, without held-out pieces."""
        stretches = self.stretches
        for _, sample in sorted(self.samples.items()):
            for pieces in sample.pieces():
                train = [p for p in pieces if stretches is None or not stretches.is_held(p, digest_of(p))]
                if train:
                    yield b"".join(train).decode(errors="ignore")


class Splitter:
    """The second pass by the second rule: assigns the pieces of documents to the two sides, and counts them."""

    def __init__(self, stretches: Stretches, accounts: list[Account]) -> None:
        self.stretches, self.accounts = stretches, accounts
        self.held_out = Digests()  # of held-out pieces, so that each is used once
        for account in accounts:
            account.train, account.heldout = Count(), Count()

    def split(self, number: int, document: bytes, sampled: bool) -> Iterator[tuple[int | None, bytes]]:
        """Yields (number of the part, or None for held-out; text).

        Args:
            sampled: text that is not held out is trained on; else it is outside the sampled share.
        """
        account = self.accounts[number]
        for is_held, text, digest in self.stretches.sides(document):
            size = len(text)
            if not is_held:
                (account.train if sampled else account.unsampled).add(size)
                if sampled:
                    yield number, text
            elif not self.held_out.add(digest):
                account.in_heldout.add(size)
            elif not self.stretches.wanted(digest):
                account.unsampled_heldout.add(size)
            else:
                account.heldout.add(size)
                yield None, text
