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
from isoflop.data.readers import PIECE, Tally, read_documents, utf8_boundary
from isoflop.data.survey import Survey
from isoflop.errors import UserError

DROP, TRAIN, HELDOUT = b"\0", b"\1", b"\2"
SAMPLE_BYTES = 8_000_000  # of training text that a tokenizer is trained on
FEWEST_DOCUMENTS = 8  # that a sampled share should hold
HELDOUT_BYTES, HELDOUT_SHARE = 4_000_000, 0.05  # held-out text is capped at the larger of these


@dataclass(frozen=True)
class Part:
    """A source with its files, listed once for both readings."""

    source: Source
    files: list[SourceFile]
    heldout: bool = False  # named as held-out text


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


@dataclass
class Candidate:
    """The document that would change sides if one side stayed empty."""

    fraction: float
    index: int
    part: int
    bytes: int


def list_parts(config: DataConfig) -> list[Part]:
    """The held-out sources first, so that their digests are known when the training text is read."""
    heldout = parse_sources(config.heldout) if config.heldout else ()
    for source in heldout:
        if source.weight is not None:
            raise UserError(
                f"held-out source {source.name!r} has a weight; held-out text is read whole, so leave it out"
            )
    named = [(source, True) for source in heldout] + [(source, False) for source in parse_sources(config.sources)]
    return [Part(source, find_files(source), held) for source, held in named]


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
    parts: list[Part], tallies: list[Tally], column: str, moved: Callable[[int], None]
) -> Iterator[tuple[int, bytes]]:
    """(number of the part, document) of everything, in order. `moved(n)`: n bytes on disk have been read.

    Raises:
        UserError: if a file changed meanwhile.
    """
    before = 0
    for number, part in enumerate(parts):
        for file in part.files:
            for document in read_documents(file, column, tallies[number], after(before, moved)):
                yield number, document
            if not unchanged(file):
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
        self.accounts = [Account(tally=Tally(strict=config.strict)) for _ in parts]
        weighted = any(part.source.weight is not None for part in parts)
        self.samples = {i if weighted else 0: Sample(part.source.weight or 1.0) for i, part in enumerate(parts)}
        self.weighted = weighted
        self.documents = 0
        self.moved_train: Candidate | None = None  # the training document nearest to being held out
        self.moved_heldout: Candidate | None = None
        folder = files.home() / "spool"
        with files.disk_errors("the decisions about documents"):
            folder.mkdir(parents=True, exist_ok=True)
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
        for number, document in read_parts(self.parts, tallies, self.config.text_column, moved):
            decision = self.decide(number, document, digest_of(document), seen, held)
            with files.disk_errors("the decisions about documents"):
                self.decisions.write(decision)
            self.documents += 1
        for part, account in zip(self.parts, self.accounts, strict=True):
            if not account.read.documents:
                raise no_text(part, account.tally)
        self.fill_empty_side()
        self.check_sides()

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
        here = Candidate(split, self.documents, number, size)
        if is_heldout:
            account.heldout.add(size)
            if self.moved_heldout is None or split > self.moved_heldout.fraction:
                self.moved_heldout = here
            return HELDOUT
        account.train.add(size)
        if self.moved_train is None or split < self.moved_train.fraction:
            self.moved_train = here
        if self.config.tokenizer == "bpe":
            self.samples[number if self.weighted else 0].offer(document, digest, self.documents, seed)
        return TRAIN

    def fill_empty_side(self) -> None:
        """A small corpus may have no document whose hash falls below the held-out fraction: then the one with the
        smallest hash is held out (or, with none left to train on, the largest goes to training)."""
        if self.config.heldout:
            return
        train, heldout = self.total("train").documents, self.total("heldout").documents
        candidate = (
            self.moved_train if heldout == 0 and train > 1 else self.moved_heldout if heldout > 1 > train else None
        )
        if candidate is None:
            return
        to_heldout = candidate is self.moved_train
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
        for number, document in read_parts(self.parts, again, self.config.text_column, moved):
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
    if not total_size(part.files):
        return UserError(f"{name} is empty; name a file or folder with text in it")
    if tally.skipped_files:
        first = tally.skipped[0]
        return UserError(
            f"{name} holds no text: {tally.skipped_files} of its {len(part.files)} files were skipped, "
            f"the first ({first['path']}) as {first['reason']}"
        )
    if tally.skipped_records:
        first = tally.skipped[0]
        return UserError(f"{name} holds no text: all {tally.skipped_records} records were skipped ({first['reason']})")
    return UserError(f"{name} holds nothing but white space; name a file or folder with text in it")
