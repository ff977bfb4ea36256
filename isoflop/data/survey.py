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
READ_BYTES = 4_000_000  # of text of a source, to estimate the rest from
LOOKED_AT = 32  # files of a source
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
    """What there is to train on. `sample` is at most 1 MB of UTF-8 text from all sources, of what was read of them:
    for a plan that does without preparing the text, whose sample is that of all of it (excerpt.py)."""

    files: int
    bytes: int  # of UTF-8 text, estimated
    sources: tuple[SourceSurvey, ...]
    heldout_bytes: int  # of the sources named as held-out; 0 if a split is made
    sample: builtins.bytes


def survey_sources(config: DataConfig) -> Survey:
    sources = parse_sources(config.sources)
    heldout = parse_sources(config.heldout) if config.heldout else ()
    shares = [source.weight or 1 / len(sources) for source in sources]
    looks = [
        look(source, config.reading(source), int(share * SAMPLE_BYTES))
        for source, share in zip(sources, shares, strict=True)
    ]
    held = [look(source, config.reading(source), SAMPLE_BYTES)[0] for source in heldout]
    surveyed = tuple(one for one, _ in looks)
    return Survey(
        files=sum(one.files for one in surveyed),
        bytes=sum(one.text_bytes for one in surveyed),
        sources=surveyed,
        heldout_bytes=sum(one.text_bytes for one in held),
        sample=b"\n".join(sample for _, sample in looks)[:SAMPLE_BYTES],
    )


@dataclass
class Look:
    """What was read from the start of a file: `text` for the sample, and sizes of everything read."""

    text: list[bytes] = field(default_factory=list)
    text_bytes: int = 0
    documents: int = 0
    disk_bytes: int = 0


def look(source: Source, how: Reading, wanted: int) -> tuple[SourceSurvey, bytes]:
    """Read the first bytes of a few files, spread over the list, and extrapolate to the whole source."""
    all_files = find_files(source)
    if not all_files:
        return SourceSurvey(source.name, 0, 0, 0, 0.0), b""
    filled = [file for file in all_files if file.size] or all_files
    chosen = filled[:: math.ceil(len(filled) / LOOKED_AT)]
    looks = [beginning(file, how, READ_BYTES // len(chosen)) for file in chosen]
    disk, text = sum(one.disk_bytes for one in looks), sum(one.text_bytes for one in looks)
    size = total_size(all_files)
    described = SourceSurvey(
        name=source.name,
        files=len(all_files),
        bytes_on_disk=size,
        text_bytes=round(text / disk * size) if disk else 0,
        document_bytes=text / max(sum(one.documents for one in looks), 1),
    )
    return described, spread([document for one in looks for document in one.text], wanted)


def spread(documents: list[bytes], wanted: int) -> bytes:
    """At most `wanted` bytes of some documents: the chunks whose digests are smallest, so that a beginning counts no
    more than what comes after it."""
    chunks = [document[i : i + CHUNK] for document in documents for i in range(0, len(document), CHUNK)]
    if sum(map(len, chunks)) <= wanted:
        return b"\n".join(documents)
    chosen: list[bytes] = []
    held = 0
    for chunk in sorted(chunks, key=digest_of):
        held += len(chunk) + 1
        if held > wanted:
            break
        chosen.append(chunk)
    return b"\n".join(chosen)


def beginning(file: SourceFile, how: Reading, wanted: int) -> Look:
    """Read at least `wanted` bytes of text, or the whole file.

    The position on disk is known only between blocks, so text is counted up to the last complete block.
    """
    read, place = Look(), [0]
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
