"""First reading: what becomes of each document, what there is to account for, and a sample for the tokenizer.

What is decided is written down, one byte a document, so that the second reading needs no digests.
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
from isoflop.data.corpus import Source, SourceFile, find_files, parse_sources, total_size, unchanged
from isoflop.data.decompress import PIECE
from isoflop.data.kinds import find_kind
from isoflop.data.readers import read_or_skip
from isoflop.data.survey import Survey
from isoflop.data.tally import Tally, because
from isoflop.data.text import utf8_boundary
from isoflop.errors import UserError

DROP, TRAIN, HELDOUT = b"\0", b"\1", b"\2"
SAMPLE_BYTES = 8_000_000  # of training text that a tokenizer is trained on
FEWEST_DOCUMENTS = 8  # that a sampled share should hold
HELDOUT_BYTES, HELDOUT_SHARE = 4_000_000, 0.05  # held-out text is capped at the larger of these
FEWEST_HELDOUT_BYTES = 256 * 1024  # of held-out text, where half the share asked for comes to as much


@dataclass(frozen=True)
class Part:
    """A source with its files, listed once for both readings."""

    source: Source
    files: list[SourceFile]
    heldout: bool = False  # named as held-out text
    tally: Tally = field(default_factory=Tally)  # what was left out when the files were listed


@dataclass
class Count:
    documents: int = 0
    bytes: int = 0

    def add(self, size: int, sign: int = 1) -> None:
        self.documents += sign
        self.bytes += sign * size


@dataclass
class Account:
    """What became of the documents of one part."""

    read: Count = field(default_factory=Count)
    train: Count = field(default_factory=Count)
    heldout: Count = field(default_factory=Count)
    duplicates: Count = field(default_factory=Count)
    in_heldout: Count = field(default_factory=Count)  # left out because a held-out source holds them too
    unsampled: Count = field(default_factory=Count)  # training text outside the sampled share
    unsampled_heldout: Count = field(default_factory=Count)
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class Shares:
    """Which share of each part's documents is prepared, by a hash that is independent of the split's."""

    train: tuple[float, ...]
    heldout: float


@dataclass(frozen=True, order=True)
class Candidate:
    """A document that may change sides, in the order in which it would: by how near its hash is to the other side."""

    distance: float
    index: int
    part: int
    bytes: int


class Nearest:
    """The documents nearest to changing sides, as many as make up FEWEST_HELDOUT_BYTES, in one pass."""

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


def list_parts(config: DataConfig) -> list[Part]:
    """The held-out sources first, so that their digests are known when the training text is read."""
    heldout = parse_sources(config.heldout) if config.heldout else ()
    for source in heldout:
        if source.weight is not None:
            raise UserError(
                f"held-out source {source.name!r} has a weight; held-out text is read whole, so leave it out"
            )
    named = [(source, True) for source in heldout] + [(source, False) for source in parse_sources(config.sources)]
    parts = []
    for source, held in named:
        tally = Tally(strict=config.strict)
        parts.append(Part(source, find_files(source, tally), held, tally))
    return parts


def choose_shares(config: DataConfig, parts: list[Part], surveyed: Survey | None) -> Shares:
    """About `max_train_bytes` of training text, in the proportions of the weights, and held-out text in measure.

    A source that has less than its due is kept whole; every source keeps a share that should hold a few documents.
    """
    if not config.max_train_bytes or surveyed is None:
        return Shares((1.0,) * len(parts), 1.0)
    by_name = {one.name: one for one in surveyed.sources}
    total = max(surveyed.bytes, 1)
    shares = []
    for part in parts:
        if part.heldout:
            shares.append(1.0)
            continue
        one = by_name[part.source.name]
        weight = part.source.weight if part.source.weight is not None else one.text_bytes / total
        due = max(weight * config.max_train_bytes, FEWEST_DOCUMENTS * one.document_bytes)
        shares.append(min(1.0, due / max(one.text_bytes, 1)))
    heldout = surveyed.heldout_bytes if config.heldout else config.heldout_fraction * total
    cap = max(HELDOUT_BYTES, HELDOUT_SHARE * config.max_train_bytes)
    return Shares(tuple(shares), min(1.0, cap / max(heldout, 1.0)))


def read_parts(
    parts: list[Part], tallies: list[Tally], config: DataConfig, moved: Callable[[int], None]
) -> Iterator[tuple[int, bytes]]:
    """(number of the part, document) of everything, in order. `moved(n)`: n bytes on disk have been read.

    Raises:
        UserError: if a file changed meanwhile.
    """
    before = 0
    for number, part in enumerate(parts):
        how = config.reading(part.source)
        for file in part.files:
            pieces = tallies[number].pieces
            for document in read_or_skip(file, how, tallies[number], after(before, moved)):
                yield number, document
            if tallies[number].pieces > pieces and not unchanged(file):
                raise changed(file.shown)
            before += file.size
            moved(before)


def after(before: int, moved: Callable[[int], None]) -> Callable[[int], None]:
    return lambda n: moved(before + n)


def changed(what: str) -> UserError:
    return UserError(f"{what} changed while it was being read; prepare again when it is complete")


class Scan:
    """The first reading. A context, because the decisions lie in a temporary file."""

    def __init__(self, config: DataConfig, parts: list[Part], shares: Shares) -> None:
        self.config, self.parts, self.shares = config, parts, shares
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
        """Read everything and decide.

        Raises:
            UserError: for a source without text, or if one side of the split would stay empty.
        """
        seen, held = Digests(), Digests()
        tallies = [account.tally for account in self.accounts]
        for number, document in read_parts(self.parts, tallies, self.config, moved):
            decision = self.decide(number, document, digest_of(document), seen, held)
            with files.disk_errors("the decisions about documents"):
                self.decisions.write(decision)
            self.documents += 1
        self.check_parts()
        self.fill_scant_side()
        self.check_sides()

    def check_parts(self) -> None:
        """Every source has text. One among several, without a weight, may have none: a shell's pattern makes a source
        of each file. It is counted then.

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

    def decide(self, number: int, document: bytes, digest: bytes, seen: Digests, held: Digests) -> bytes:
        part, account, size, seed = self.parts[number], self.accounts[number], len(document), self.config.seed
        account.read.add(size)
        split = fraction(digest, "split", seed)
        is_heldout = part.heldout or (not self.config.heldout and split < self.config.heldout_fraction)
        if not part.heldout and digest in held:
            account.in_heldout.add(size)
            return DROP
        share = self.shares.heldout if is_heldout else self.shares.train[number]
        if part.heldout:  # all of it is known, so that none of it is trained on, sampled or not
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
        """Documents differ in size and a small corpus has few, so those whose hash falls below the held-out fraction
        may be none, or hold far less than that fraction of the text: less than half of it, and of
        FEWEST_HELDOUT_BYTES. Then the next ones by hash join them until that much is held out; none larger than what is
        wanted, unless there would be nothing. (Such a document may go back to training when the corpus grows.) With
        nothing left to train on, the held-out one with the largest hash goes there."""
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
        """Let a document change sides."""
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
            raise UserError(
                f"the corpus has {train.documents + heldout.documents} distinct document or piece, too few to hold one "
                "out; add text, or name the held-out text with --heldout PATH"
            )
        for part, account in zip(self.parts, self.accounts, strict=True):
            if part.source.weight is not None and not part.heldout and not account.train.documents:
                raise UserError(
                    f"source {part.source.name} has a weight but no training document of its own (duplicates: "
                    f"{account.duplicates.documents}, held out: {account.heldout.documents}); leave it out or add text"
                )

    def total(self, what: str) -> Count:
        counts = [getattr(account, what) for account in self.accounts]
        return Count(sum(count.documents for count in counts), sum(count.bytes for count in counts))

    def kept(self, moved: Callable[[int], None]) -> Iterator[tuple[int | None, bytes]]:
        """Second reading: (number of the part, or None for held-out, document) of what stays.

        Raises:
            UserError: if the corpus is no longer what was scanned.
        """
        self.decisions.seek(0)
        read = 0
        again = [Tally() for _ in self.parts]
        for number, document in read_parts(self.parts, again, self.config, moved):
            decision = self.decisions.read(1)
            read += 1
            if decision == TRAIN:
                yield number, document
            elif decision == HELDOUT:
                yield None, document
        if read != self.documents:
            raise changed("the corpus")

    def tokenizer_sample(self) -> Iterator[str]:
        for _, sample in sorted(self.samples.items()):
            yield from sample.texts()


class Sample:
    """A seeded sample of about `share` of 8 MB, in one pass, that does not depend on the order of the documents.

    Each document has an exponential random key divided by its length in pieces, and those with the smallest keys stay
    (Efraimidis & Spirakis 2006), so that bytes and not documents are drawn evenly; of a long document, a stretch of
    64 KiB at a random place.
    """

    def __init__(self, share: float) -> None:
        self.limit = share * SAMPLE_BYTES
        self.heap: list[tuple[float, int, bytes]] = []  # (-key, document's number, text): the largest key on top
        self.bytes = 0

    def offer(self, document: bytes, digest: bytes, index: int, seed: int) -> None:
        key = -math.log1p(-fraction(digest, "sample", seed)) / max(1.0, len(document) / PIECE)
        if self.bytes >= self.limit and key >= -self.heap[0][0]:
            return
        text = document
        if len(document) > PIECE:
            start = int(fraction(digest, "stretch", seed) * (len(document) - PIECE))
            start = utf8_boundary(document[:start])
            text = document[start : start + PIECE]
        heapq.heappush(self.heap, (-key, index, text))
        self.bytes += len(text)
        while self.bytes - len(self.heap[0][2]) >= self.limit:
            self.bytes -= len(heapq.heappop(self.heap)[2])

    def forget(self, index: int) -> None:
        self.heap = [entry for entry in self.heap if entry[1] != index]
        heapq.heapify(self.heap)

    def texts(self) -> Iterator[str]:
        for _, _, text in sorted(self.heap, reverse=True):
            yield text.decode(errors="ignore")


def no_text(part: Part, tally: Tally) -> UserError:
    name = f"source {part.source.name} ({part.source.pattern})"
    if len(part.files) <= 1 and tally.failure:
        return UserError(tally.failure)
    if not part.files or not total_size(part.files):
        return UserError(f"{name} is empty; name a file or folder with text in it{because(tally)}")
    if tally.skipped_files:
        first = tally.skipped[0]
        return UserError(
            f"{name} holds no text: {tally.skipped_files} of its {len(part.files)} files were skipped, "
            f"the first ({first.path}) as {first.reason}"
        )
    if tally.skipped_records:
        first = tally.skipped[0]
        return UserError(f"{name} holds no text: all {tally.skipped_records} records were skipped ({first.reason})")
    return UserError(f"{name} holds nothing but white space; name a file or folder with text in it")
