"""Estimates the amount of text in a corpus, and samples it, before all of it is read."""

import builtins
import math
from dataclasses import dataclass, field, replace

from isoflop.data.clean import digest_of
from isoflop.data.config import DataConfig
from isoflop.data.corpus import Source, SourceFile, find_files, parse_sources, total_size
from isoflop.data.readers import read_or_skip
from isoflop.data.reading import Reading
from isoflop.data.tally import Tally

SAMPLE_BYTES = 1_000_000  # of text, over all sources
READ_BYTES = 4_000_000  # of text per source, from which its amount of text is estimated
MOST_FILES = 32  # that are read of a source
CHUNK = 4096  # bytes of the chunks that a sample is made of


@dataclass(frozen=True)
class SourceSurvey:
    """Estimates for one source, from the first bytes of a few of its files. Sizes in bytes of UTF-8 text."""

    name: str
    files: int
    bytes_on_disk: int
    text_bytes: int
    document_bytes: float  # a mean document or piece


@dataclass(frozen=True)
class Survey:
    """The text to train on.

    Attributes:
        files: in all sources.
        bytes: of UTF-8 text, estimated.
        sources: estimates for each source.
        heldout_bytes: of the sources named as held-out; 0 if a split is made.
        sample: at most 1 MB of UTF-8 text from the parts that were read, for plans without prepared text. (The sample
            of prepared text is of all of it: excerpt.py.)
    """

    files: int
    bytes: int
    sources: tuple[SourceSurvey, ...]
    heldout_bytes: int
    sample: builtins.bytes


def survey_sources(config: DataConfig) -> Survey:
    """Estimates for all sources of a configuration."""
    sources = parse_sources(config.sources)
    heldout = parse_sources(config.heldout) if config.heldout else ()
    shares = [source.weight or 1 / len(sources) for source in sources]
    surveyed = [
        survey_source(source, config.reading(source), int(share * SAMPLE_BYTES))
        for source, share in zip(sources, shares, strict=True)
    ]
    estimates = tuple(estimate for estimate, _ in surveyed)
    heldout_estimates = [survey_source(source, config.reading(source), SAMPLE_BYTES)[0] for source in heldout]
    return Survey(
        files=sum(estimate.files for estimate in estimates),
        bytes=sum(estimate.text_bytes for estimate in estimates),
        sources=estimates,
        heldout_bytes=sum(estimate.text_bytes for estimate in heldout_estimates),
        sample=b"\n".join(sample for _, sample in surveyed)[:SAMPLE_BYTES],
    )


@dataclass
class Beginning:
    """The part of a file that was read: `text` for the sample, and the sizes of everything read."""

    text: list[bytes] = field(default_factory=list)
    text_bytes: int = 0
    documents: int = 0
    disk_bytes: int = 0


def survey_source(source: Source, how: Reading, wanted: int) -> tuple[SourceSurvey, bytes]:
    """Read the first bytes of a few files, spread over the list, and extrapolate to the source.

    Returns:
        The estimates, and a sample of at most `wanted` bytes.
    """
    all_files = find_files(source)
    if not all_files:
        return SourceSurvey(source.name, 0, 0, 0, 0.0), b""

    filled = [file for file in all_files if file.size] or all_files
    chosen = filled[:: math.ceil(len(filled) / MOST_FILES)]
    read = [read_beginning(file, how, READ_BYTES // len(chosen)) for file in chosen]
    disk, text = sum(beginning.disk_bytes for beginning in read), sum(beginning.text_bytes for beginning in read)
    size = total_size(all_files)
    estimate = SourceSurvey(
        name=source.name,
        files=len(all_files),
        bytes_on_disk=size,
        text_bytes=round(text / disk * size) if disk else 0,
        document_bytes=text / max(sum(beginning.documents for beginning in read), 1),
    )
    return estimate, sample_of([document for beginning in read for document in beginning.text], wanted)


def sample_of(documents: list[bytes], wanted: int) -> bytes:
    """At most `wanted` bytes of some documents: the chunks with the smallest digests, so that every part of the
    documents has the same chance."""
    chunks = [document[i : i + CHUNK] for document in documents for i in range(0, len(document), CHUNK)]
    if sum(map(len, chunks)) <= wanted:
        return b"\n".join(documents)
    chosen: list[bytes] = []
    size = 0
    for chunk in sorted(chunks, key=digest_of):
        size += len(chunk) + 1
        if size > wanted:
            break
        chosen.append(chunk)
    return b"\n".join(chosen)


def read_beginning(file: SourceFile, how: Reading, wanted: int) -> Beginning:
    """Read at least `wanted` bytes of text, or the complete file.

    The position on disk is known only between blocks, so text is counted up to the last complete block.
    """
    read, place = Beginning(), [0]
    block = 0
    for document in read_or_skip(file, how, Tally(), lambda n: place.__setitem__(0, n)):
        if place[0] != block:
            if block and read.text_bytes >= wanted:
                return replace(read, disk_bytes=block)
            block = place[0]
        if read.text_bytes < wanted:
            read.text.append(document)
        read.text_bytes += len(document)
        read.documents += 1
    return replace(read, disk_bytes=file.size)
